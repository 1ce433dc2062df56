"""evaluate_cloning.py lets servers speak, judges what they spoke, and resumes.

The servers here answer with the clip they were sent, and hide the text in its first samples. The recognizer here reads
it from there, and the speaker network measures a tone's frequency. So every figure is known beforehand."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import evaluate_cloning
from data import DataError, speech_server
from data.speech_server import Timing
from evaluation.cloning import measure, speaking
from evaluation.cloning.prompts import read_list
from evaluation.judges.judge import Measurements, Metric
from evaluation.judges.pool import JudgePool
from evaluation.judges.words import CER, WER
from evaluation.speech import Speech
from tests.speaking_server import SpeakingServer

RATE, LETTERS = 24000, 2400  # samples at the beginning that hide the text
FREQUENCIES = {"anna": 200, "bert": 300, "carl": 400}
pytestmark = pytest.mark.usefixtures("one_thread")


def tone(frequency: float, seconds: float = 2) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)


def spoken(text: str, sound: np.ndarray) -> bytes:
    """16-bit samples: the text's letters, then the sound."""
    letters = np.zeros(LETTERS)
    letters[: len(text)] = [ord(letter) for letter in text]
    return np.concatenate([letters, 32767 * sound]).astype("<i2").tobytes()


def sent_clip(request: dict[str, Any]) -> np.ndarray:
    return soundfile.read(io.BytesIO(base64.b64decode(request["ref_audio"].partition(",")[2])))[0]


def speaks(request: dict[str, Any]) -> bytes:
    """The text in the voice of the clip; a named voice is anna's."""
    sound = sent_clip(request) if "ref_audio" in request else tone(FREQUENCIES["anna"])
    return spoken(request["input"], sound)


class Recognizer:
    """Finds the text that is hidden in the first samples."""

    name, metrics, absolute = "words", (WER, CER), True

    def __init__(self) -> None:
        self.calls = 0

    def listen(self, audio: Tensor) -> Measurements:
        self.calls += 1
        letters = (32768 * audio[:LETTERS]).round().int().tolist()
        return Measurements(transcript="".join(chr(letter) for letter in letters if 31 < letter < 127))

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        raise NotImplementedError


class Tones:
    """An embedding that turns with the frequency: 90 degrees are 1000 Hz."""

    name, absolute = "resemblyzer", False
    metrics = (Metric("speaker_resemblyzer", "speaker, Resemblyzer", "higher", "cosine"),)

    def listen(self, audio: Tensor) -> Measurements:
        if float(audio[LETTERS:].abs().max()) < 0.01:
            raise ValueError("the audio is silent")
        spectrum = torch.fft.rfft(audio[LETTERS:]).abs()
        angle = float(spectrum.argmax()) * RATE / len(audio[LETTERS:]) / 1000 * np.pi / 2
        return Measurements(embeddings={"speaker_resemblyzer": [float(np.cos(angle)), float(np.sin(angle))]})

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        raise NotImplementedError


@pytest.fixture
def recognizer(monkeypatch: pytest.MonkeyPatch) -> Recognizer:
    """Puts the judges above in the place of the real ones."""
    judge = Recognizer()

    @contextmanager
    def opened(names: object, workers: int, **options: object) -> Iterator[JudgePool]:
        yield JudgePool([judge, Tones()], {"wavlm": "it is not here"})

    monkeypatch.setattr(measure, "open_judge_pool", opened)
    return judge


@pytest.fixture
def server() -> Iterator[SpeakingServer]:
    with SpeakingServer(speaks) as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A list of three speakers."""
    (tmp_path / "clips").mkdir()
    for name, frequency in FREQUENCIES.items():
        soundfile.write(tmp_path / "clips" / f"{name}.wav", tone(frequency), RATE)
    lines = [f"{name}|twenty letters in all here|clips/{name}.wav|Hello from {name}." for name in FREQUENCIES]
    path = tmp_path / "meta.lst"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(prompts: Path, *arguments: object) -> int:
    output = prompts.parent / "out"
    given = ["--list", prompts, "--output", output, "--jobs", 1, *arguments]
    return evaluate_cloning.main([str(argument) for argument in given])


def figures(prompts: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((prompts.parent / "out" / "figures.json").read_text())
    return found


def test_a_server_that_says_the_texts_in_the_clips_voices_has_no_errors_and_the_right_speakers(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(prompts, "--server", f"new={server.url}", "--require", "wer<=0") == 0
    totals = figures(prompts)["totals"]["new"]
    assert totals["wer"]["value"] == totals["cer"]["value"] == totals["failed"]["value"] == 0
    assert totals["speaker_resemblyzer"]["value"] == pytest.approx(1)
    assert totals["nearest_resemblyzer"]["value"] == 1
    near, far = np.cos(np.pi / 20), np.cos(np.pi / 10)  # 100 Hz and 200 Hz apart
    assert totals["others_resemblyzer"]["value"] == pytest.approx((4 * near + 2 * far) / 6, abs=1e-3)
    assert [request["input"] for request in server.posted] == [f"Hello from {name}." for name in FREQUENCIES]
    said = capsys.readouterr().out
    assert "right one of 3, Resemblyzer" in said
    assert "left out: wavlm: it is not here" in said
    samples, rate = soundfile.read(prompts.parent / "out" / "spoken" / "new" / "anna.wav", dtype="int16")
    assert rate == RATE
    assert samples.tobytes() == speaks(server.posted[0])


def test_the_words_of_a_wrong_sentence_are_counted_per_word(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    wrong = {"Hello from bert.": "Hello bird."}  # one word missing, one wrong
    server.body = lambda request: spoken(wrong.get(request["input"], request["input"]), sent_clip(request))
    assert run(prompts, "--server", f"new={server.url}", "--require", "wer<=0.2") == 1
    found = figures(prompts)
    assert found["totals"]["new"]["wer"]["value"] == pytest.approx(2 / 9)
    assert found["clips"][1]["scores"]["new"]["wer"] == pytest.approx(2 / 3)
    assert found["clips"][1]["transcript"]["new"] == "Hello bird."


def test_a_voice_of_another_speaker_is_not_the_right_one(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    server.body = lambda request: spoken(request["input"], tone(FREQUENCIES["anna"]))
    assert run(prompts, "--server", f"new={server.url}") == 0
    clips = figures(prompts)["clips"]
    assert [clip["scores"]["new"]["nearest_resemblyzer"] for clip in clips] == [1, 0, 0]
    assert clips[2]["scores"]["new"]["speaker_resemblyzer"] == pytest.approx(np.cos(np.pi / 10), abs=1e-3)


def test_length_is_relative_to_the_clips_speaking_rate(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    server.body = lambda request: spoken(request["input"], tone(200, 1.9))  # 2 s with the hidden text
    assert run(prompts, "--server", f"new={server.url}") == 0
    (scores, *_) = [clip["scores"]["new"] for clip in figures(prompts)["clips"]]
    assert scores["rate"] == 13 / 2  # Hello from anna
    assert scores["length"] == pytest.approx(22 / 13)  # the clip has 22 letters in 2 s


def test_a_request_without_speech_is_a_failure_with_a_reason_and_no_zero_in_any_score(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body = lambda request: b"" if "bert" in request["input"] else speaks(request)
    assert run(prompts, "--server", f"new={server.url}") == 0
    found = figures(prompts)
    assert found["totals"]["new"]["failed"]["value"] == pytest.approx(1 / 3)
    assert found["totals"]["new"]["wer"] == {"value": 0, "low": 0, "high": 0, "clips": 2}
    assert found["clips"][1]["scores"]["new"] == {"failed": 1}
    assert "sent no speech" in found["spoken"]["new"]["bert"]["failed"]
    assert "not scored: bert: sound of new: the server sent no speech" in capsys.readouterr().out


def test_silent_speech_has_no_speaker_and_the_reason_is_given(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body = lambda request: spoken("", 0 * tone(200)) if "bert" in request["input"] else speaks(request)
    assert run(prompts, "--server", f"new={server.url}") == 0
    found = figures(prompts)
    assert found["clips"][1]["scores"]["new"]["wer"] == 1
    assert "speaker_resemblyzer" not in found["clips"][1]["scores"]["new"]
    assert found["totals"]["new"]["speaker_resemblyzer"]["clips"] == 2
    assert "not scored: bert: speaker_resemblyzer of new: the audio is silent" in capsys.readouterr().out


def test_servers_side_by_side_give_differences_paired_by_text(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    with SpeakingServer(lambda request: spoken("Hello", sent_clip(request))) as other:
        assert run(prompts, "--server", f"new={server.url}", f"old={other.url}", "--require", "old.wer>0.6") == 0
    found = figures(prompts)
    assert list(found["totals"]) == ["new", "old", "clip"]
    difference = found["comparisons"]["old"]["wer"]
    assert difference["clips"] == 3
    assert difference["difference"]["value"] == pytest.approx(2 / 3)
    assert [request["input"] for request in server.posted] == [request["input"] for request in other.posted]


def test_named_voices_speak_the_same_texts_and_are_compared_with_their_clip(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    clip = prompts.parent / "clips" / "anna.wav"
    assert run(prompts, "--server", server.url, "--voice", f"anna={clip}", "neutral") == 0
    found = figures(prompts)
    address = server.url.removeprefix("http://")
    assert list(found["totals"]) == [address, "anna", "neutral", "clip"]
    assert found["totals"]["anna"]["nearest_resemblyzer"]["value"] == 1
    assert found["totals"]["neutral"]["wer"]["value"] == 0
    assert "speaker_resemblyzer" not in found["totals"]["neutral"]
    assert found["problems"] == []
    assert "neutral has no clip to compare its speaker with: --voice neutral=CLIP gives one" in found["notes"]
    assert [request.get("voice") for request in server.posted] == 3 * [None] + 3 * ["anna"] + 3 * ["neutral"]


def test_longest_asks_for_that_many_frames_of_80_ms(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    assert run(prompts, "--server", f"new={server.url}", "--clips", 1, "--longest", 10) == 0
    assert [request["max_new_tokens"] for request in server.posted] == [125]


def test_voices_alone_need_only_texts(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("One.\n\nTwo.\n")
    arguments = ["--voice", "anna", "--texts", tmp_path / "texts.txt", "--output", tmp_path / "out", "--jobs", "1"]
    assert evaluate_cloning.main([*map(str, arguments), "--server", server.url]) == 0
    assert figures(prompts)["totals"]["anna"]["wer"]["clips"] == 2
    assert (tmp_path / "out" / "index.html").exists()


def test_a_run_that_was_stopped_goes_on_without_asking_or_judging_again(
    prompts: Path,
    server: SpeakingServer,
    recognizer: Recognizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(url: str, body: dict[str, Any], out: Path) -> Timing:
        if "carl" in body["input"]:
            raise KeyboardInterrupt
        return speech_server.speak(url, body, out)

    with monkeypatch.context() as patch:
        patch.setattr(speaking, "speak", interrupted)
        assert run(prompts, "--server", f"new={server.url}") == 130
    assert "repeat the command to resume" in capsys.readouterr().err
    assert len(server.posted) == 2
    assert run(prompts, "--server", f"new={server.url}") == 0
    assert [request["input"] for request in server.posted] == [f"Hello from {name}." for name in FREQUENCIES]
    assert "2 spoken texts" in capsys.readouterr().out
    first, calls = figures(prompts)["totals"], recognizer.calls
    server.stop()  # nothing is left to ask
    assert run(prompts, "--server", f"new={server.url}") == 0
    assert recognizer.calls == calls
    assert figures(prompts)["totals"] == first


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another text": lambda out: (out.parent / "meta.lst").write_text(
        (out.parent / "meta.lst").read_text().replace("Hello from anna", "Good day from anna")
    ),
    "a damaged wav": lambda out: (out / "spoken" / "new" / "anna.wav").write_bytes(b"RIFF"),
    "a damaged record": lambda out: (out / "spoken" / "new" / "anna.json").write_text("[]"),
    "another clip": lambda out: soundfile.write(out.parent / "clips" / "anna.wav", tone(210), RATE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_spoken_for_another_request_or_is_damaged_is_asked_again(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, damage: str
) -> None:
    assert run(prompts, "--server", f"new={server.url}") == 0
    DAMAGES[damage](prompts.parent / "out")
    assert run(prompts, "--server", f"new={server.url}") == 0
    assert len(server.posted) == 4
    assert figures(prompts)["totals"]["new"]["wer"]["value"] == 0


def test_other_judges_judge_again(prompts: Path, server: SpeakingServer, recognizer: Recognizer) -> None:
    assert run(prompts, "--server", f"new={server.url}") == 0
    before = recognizer.calls
    assert run(prompts, "--server", f"new={server.url}", "--whisper", "small") == 0
    assert recognizer.calls == 2 * before
    assert len(server.posted) == 3


def test_without_a_server_nothing_is_spoken_and_it_is_said_how_to_start_one(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert run(prompts, "--server", f"new={server.url}", f"old={url}") == 2
    error = capsys.readouterr().err
    assert f"old: no server answers at {url}" in error
    assert "vllm serve $MODEL_DIR --omni" in error
    assert server.posted == []


def test_a_server_that_dies_in_the_middle_keeps_what_it_spoke_and_the_others_go_on(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(request: dict[str, Any]) -> bytes:
        if len(server.posted) < 2:
            return speaks(request)
        server.refuse(500, "EngineCore encountered an issue")
        server.health = 503
        assert isinstance(server.body, bytes)
        return server.body

    server.body = dies
    with SpeakingServer(speaks) as other:
        assert run(prompts, "--server", f"new={server.url}", f"old={other.url}") == 2
        assert len(server.posted) == 2
        error = capsys.readouterr().err
        assert "new: the server was gone after 2 of 3 texts: the server failed with status 500" in error
        assert "repeat the command" in error
        totals = figures(prompts)["totals"]
        assert totals["new"]["wer"]["clips"] == 1
        assert totals["old"]["wer"]["clips"] == 3
        server.body, server.status, server.health = speaks, 200, 200
        assert run(prompts, "--server", f"new={server.url}", f"old={other.url}") == 0
        assert len(server.posted) == 4
        assert len(other.posted) == 3


def test_the_first_sound_is_timed_when_it_arrives_and_the_whole_when_it_ends(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def streamed(url: str, body: dict[str, Any]) -> Iterator[bytes]:
        for seconds in (0.5, 1.0, 1.5):
            clock.now += seconds
            yield bytes(2 * RATE)

    monkeypatch.setattr(speech_server, "streamed", streamed)
    monkeypatch.setattr(speech_server, "time", clock)
    assert run(prompts, "--server", f"new={server.url}") == 0
    totals = figures(prompts)["totals"]["new"]
    assert totals["first_sound"]["value"] == 0.5
    assert totals["rtf"]["value"] == 1  # 3 s for 3 s of speech


def test_the_page_has_the_clip_and_what_each_system_spoke(
    prompts: Path, server: SpeakingServer, recognizer: Recognizer
) -> None:
    prompts.write_text(prompts.read_text().replace("Hello from", "<script>"))
    assert run(prompts, "--server", f"new={server.url}", "--voice", "anna", "--shown", 2) == 0
    page = (prompts.parent / "out" / "index.html").read_text()
    assert page.count("<article") == 2
    assert page.count("<audio") == 2 * 3
    assert page.count("data:audio/flac") == 2 * 3
    assert page.count("<script>") == 1  # the page's own


ODD = {
    "three fields": ("anna|hi|clips/anna.wav", "expected name|prompt text|prompt clip|text"),
    "no text": ("dora|hi|clips/anna.wav|", "expected name|prompt text|prompt clip|text"),
    "no file": ("dora|hi|clips/dora.wav|Hello.", "dora.wav cannot be read"),
    "no audio": ("dora|hi|meta.lst|Hello.", "cannot be decoded"),
    "a name that was there": ("anna|hi|clips/anna.wav|Hello.", "an earlier line is called 'anna'"),
    "a zero byte": ("dora|hi|clips/a\0.wav|Hello.", "expected name|prompt text|prompt clip|text"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_line_of_a_list_is_named_and_the_others_are_used(prompts: Path, name: str) -> None:
    line, reason = ODD[name]
    with prompts.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    found, (problem,), _ = read_list(prompts)
    assert [prompt.name for prompt in found] == list(FREQUENCIES)
    assert problem.clip == "line 5 of meta.lst"
    assert reason in problem.reason


def test_a_seed_tts_list_is_read_with_paths_relative_to_it_and_a_fifth_field(
    prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    prompts.write_text("\ufeffa|Said.|clips/anna.wav|Hello.|recordings/a.wav\r\n", encoding="utf-8")
    (prompt,), problems, _ = read_list(prompts)
    assert problems == []
    assert prompt.text == "Hello."
    assert prompt.clip is not None
    assert (prompt.clip.text, prompt.clip.seconds) == ("Said.", 2)


def test_clips_in_several_folders_belong_to_the_folders_speakers(prompts: Path) -> None:
    def speakers() -> int:
        return len({prompt.clip.speaker for prompt in read_list(prompts)[0] if prompt.clip})

    assert speakers() == 3
    (prompts.parent / "more").mkdir()
    (prompts.parent / "clips" / "carl.wav").rename(prompts.parent / "more" / "carl.wav")
    prompts.write_text(prompts.read_text().replace("clips/carl", "more/carl"))
    assert speakers() == 2


@pytest.mark.parametrize("content", ["", "a|b|c\n", "\xff"])
def test_a_list_without_a_usable_line_is_an_error_that_shows_what_a_line_is(prompts: Path, content: str) -> None:
    prompts.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"meta\.lst"):
        read_list(prompts)


def test_names_cannot_leave_the_folder(prompts: Path, server: SpeakingServer, recognizer: Recognizer) -> None:
    prompts.write_text("../../../escaped|hi|clips/anna.wav|Hello.\n" + "x" * 300 + "|hi|clips/bert.wav|Hello.\n")
    assert run(prompts, "--server", f"..={server.url}") == 0
    files = [path for path in prompts.parent.rglob("*.wav") if path.parent.name != "clips"]
    assert len(files) == 2
    assert all(path.is_relative_to(prompts.parent / "out" / "spoken") for path in files)
    assert all(len(path.name) < 100 for path in files)


MISUSES = {
    "two servers of one name": (["--server", "a=http://h:1", "a=http://h:2"], "the name 'a' is taken"),
    "a name that is a column's": (["--server", "clip=http://h:1"], "the name 'clip' is taken"),
    "no URL": (["--server", "h:1"], "expected NAME=URL"),
    "a clip that is not there": (["--server", "http://h:1", "--voice", "anna=none.wav"], "none.wav cannot be read"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_wrong_command_is_a_sentence(prompts: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISUSES[name]
    assert run(prompts, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_clips_with_transcripts_say_each_others_texts(
    tmp_path: Path, server: SpeakingServer, recognizer: Recognizer, prompts: Path
) -> None:
    for name, frequency in FREQUENCIES.items():
        folder = tmp_path / "speech" / name / "1"
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.wav", tone(frequency), RATE)
        (folder / "a.normalized.txt").write_text(f"I am {name}.")
    arguments = ["--data", tmp_path / "speech", "--output", tmp_path / "out", "--jobs", "1", "--server", server.url]
    assert evaluate_cloning.main([str(argument) for argument in arguments]) == 0
    assert [request["input"] for request in server.posted] == ["I am bert.", "I am carl.", "I am anna."]
    clips = figures(prompts)["clips"]
    assert [clip["speaker"] for clip in clips] == list(FREQUENCIES)
    assert len({clip["name"] for clip in clips}) == 3


def test_a_real_judge_finds_the_speaker_of_real_speech(tmp_path: Path, server: SpeakingServer) -> None:
    server.body = lambda request: (32767 * sent_clip(request)).astype("<i2").tobytes()
    arguments = ["--data", "data/demo/unseen.parquet", "--clips", "2", "--output", str(tmp_path), "--jobs", "1"]
    arguments += ["--without", "words", "ecapa", "wavlm", "quality", "--server", f"new={server.url}"]
    assert evaluate_cloning.main(arguments) == 0
    totals = json.loads((tmp_path / "figures.json").read_text())["totals"]
    assert totals["new"]["speaker_resemblyzer"]["value"] > 0.99
    assert totals["new"]["nearest_resemblyzer"]["value"] == 1
    assert totals["new"]["others_resemblyzer"]["value"] < 0.9
