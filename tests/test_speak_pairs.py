"""speak_pairs.py without the server: texts, voices, what is no speech, and shards that are written once.

tests/serving/test_speak_pairs.py lets the real server's first stage speak."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file

import speak_pairs
from codec import load_release
from codec.checkpoint import codec_fingerprint
from codec.config import ReleaseError
from codec.voices import until_end_of_audio
from data import DataError, open_clips
from data.pairs import About, Pair, Pairs
from data.speaking import Job, Plan, Task, choose_voices, fault, processes, prompt_of, read_texts
from data.speaking.engine import Engine
from data.speaking.faults import LENGTH, LOOP, NO_END, loops
from experiments.random_speech import audio_bytes, write_parquet
from system.command import UserError
from tests.random_pairs import random_pair

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 12.5


def spoken(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 60, (37, frames), generator=generator)


def test_every_text_is_spoken_once_or_again_and_again_in_other_voices() -> None:
    texts, voices = tuple(f"text {i}" for i in range(25)), tuple("abcde")
    once = Plan(texts, voices, shard_jobs=10)
    assert once.shards == 3
    assert [job.text for shard in range(3) for job in once.jobs(shard)] == list(texts)
    again = Plan(texts, voices, shard_jobs=10, repeat=True)
    assert again.shards is None
    jobs = [job for shard in range(10) for job in again.jobs(shard)]
    assert sorted(job.text for job in jobs[:25]) == sorted(job.text for job in jobs[25:50]) == sorted(texts)
    assert [job.number for job in jobs] == list(range(100))
    assert {job.voice for job in jobs} == set(voices)
    assert len({job.voice for job in jobs if job.text == "text 3"}) > 1


def test_a_job_is_a_function_of_its_number_and_the_seed() -> None:
    plan = Plan(("a", "b"), ("x", "y", "z"), shard_jobs=50, repeat=True)
    assert plan.jobs(7) == Plan(("a", "b"), ("x", "y", "z"), shard_jobs=50, repeat=True).jobs(7)
    assert plan.jobs(7) != Plan(("a", "b"), ("x", "y", "z"), shard_jobs=50, repeat=True, seed=1).jobs(7)
    assert plan.fingerprint() != Plan(("a", "b"), ("x", "y"), shard_jobs=50, repeat=True).fingerprint()


def test_guidance_is_a_number_or_drawn_from_a_range() -> None:
    assert {Plan(("a",), ("x",)).guidance(shard) for shard in range(9)} == {1.2}
    drawn = [Plan(("a",), ("x",), cfg_alpha=(1.0, 1.5)).guidance(shard) for shard in range(50)]
    assert 1.0 <= min(drawn) < 1.1 < 1.4 < max(drawn) <= 1.5


@pytest.mark.parametrize(
    ("frames", "ended", "characters", "reason"),
    [
        (50, True, 60, ""),
        (50, False, 60, NO_END),
        (0, True, 60, LENGTH),
        (10, True, 60, LENGTH),
        (400, True, 60, LENGTH),
        (30, True, 2, ""),
    ],
)
def test_speech_that_has_no_end_or_an_impossible_length_is_left_out(
    frames: int, ended: bool, characters: int, reason: str
) -> None:
    assert fault(spoken(frames), ended, "x" * characters, RATE) == reason


@pytest.mark.parametrize("period", [1, 2, 7, 20])
def test_codes_that_come_again_and_again_are_a_loop(period: int) -> None:
    group = spoken(period)[0]
    looping = torch.cat([spoken(20, 1)[0], group.repeat(70 // period), spoken(9, 2)[0]])
    assert loops(looping, RATE)
    codes = spoken(len(looping), 3)
    codes[0] = looping
    assert fault(codes, True, "x" * 100, RATE) == LOOP


def test_ordinary_speech_and_pauses_are_no_loop() -> None:
    assert not loops(spoken(200)[0], RATE)
    pause = torch.cat([spoken(30)[0], torch.full((20,), 5), spoken(30, 1)[0]])  # 1.6 s
    assert not loops(pause, RATE)
    assert not loops(torch.tensor([3]), RATE)


def test_texts_are_lines_or_transcripts(tmp_path: Path, speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("Grüß dich.\n\n  Zwei.  \n", encoding="utf-8")
    assert read_texts(str(path)) == ("Grüß dich.", "Zwei.")
    chapter = tmp_path / "speech" / "7" / "1"
    chapter.mkdir(parents=True)
    (chapter / "a.wav").write_bytes(audio_bytes(0.5))
    (chapter / "a.normalized.txt").write_text("What was said.\n")
    assert read_texts(str(tmp_path / "speech")) == ("What was said.",)
    table = write_parquet(tmp_path / "table.parquet", {"a1": audio_bytes(0.1), "b1": b"no audio"})
    assert read_texts(str(table), str(tmp_path / "cache")) == ("words", "words")
    (tmp_path / "list.TSV").write_text('path\tsentence\na.wav\tEr sagte: "Ja"\n', encoding="utf-8")
    assert read_texts(f"{{path: {tmp_path}/list.TSV, audio: path, text: sentence}}") == ('Er sagte: "Ja"',)
    with pytest.raises(DataError, match=r"lacks the column audio; it has path, sentence\. Name the column"):
        read_texts(str(tmp_path / "list.TSV"))
    both = open_clips([str(tmp_path / "speech"), str(table), str(speech_folder)], str(tmp_path / "cache"))
    assert both.texts() == ["What was said.", "words", "words", *[""] * 13]
    with pytest.raises(DataError, match="has no texts"):
        read_texts(str(speech_folder))
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_texts(str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_texts("~/texts.txt")


def test_voices_are_those_of_the_release(tiny_release: Path) -> None:
    assert choose_voices(tiny_release, []) == ("casual_female",)
    with pytest.raises(DataError, match="has no voice 'anna'; it has casual_female"):
        choose_voices(tiny_release, ["anna"])
    with pytest.raises(ReleaseError, match=r"holds no params\.json"):
        choose_voices(tiny_release / "voice_embedding", [])


def test_a_prompt_is_a_clip_of_a_useful_length(tmp_path: Path) -> None:
    for i, seconds in enumerate((0.5, 4.0, 30.0)):
        (tmp_path / f"{i}.wav").write_bytes(audio_bytes(seconds))
    clips = open_clips([str(tmp_path)])
    for index in range(3):
        assert prompt_of(clips, index, seed=index)[0].seconds == pytest.approx(4.0, abs=0.001)
    (tmp_path / "1.wav").unlink()
    with pytest.raises(DataError, match=r"none of 50 clips can be a prompt"):
        prompt_of(open_clips([str(tmp_path)]), 0, seed=0)


class FakeEngine:
    """In place of vllm-omni: random codes. Texts that begin with "bad" do not end."""

    made = 0

    def __init__(self, task: Task, clips: object, seed: int):
        FakeEngine.made += 1
        self.task, self.seed = task, seed

    def pairs(self, jobs: Sequence[Job], cfg_alpha: float) -> Iterator[tuple[Pair, str]]:
        for job in jobs:
            about = About(job.text, job.voice, self.task.language, self.seed, cfg_alpha)
            yield Pair(random_pair(self.task.config, 20, job.number).codes, about), NO_END if "bad" in job.text else ""

    def close(self) -> None:
        pass


@pytest.fixture
def task(tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text {i}\n" if i % 4 else f"bad {i}\n" for i in range(10)))
    monkeypatch.setattr(processes, "Engine", FakeEngine)
    FakeEngine.made = 0
    return speak_pairs.read_task(parsed(tiny_release, tmp_path))


def parsed(release: Path, folder: Path, *more: str) -> Any:
    arguments = [f"--model-dir={release}", f"--texts={folder / 'texts.txt'}", f"--out={folder / 'out'}"]
    return speak_pairs.build_parser().parse_args([*arguments, "--shard-texts=4", *more])


def messages_of(task: Task, number: int = 0) -> list[tuple[str, Any]]:
    messages: queue.Queue[tuple[str, Any]] = queue.Queue()
    processes.work(task, number, messages, threading.Event(), threading.Lock())
    return list(messages.queue)


def test_shards_have_what_was_spoken_and_the_rest_is_counted(tiny_release: Path, task: Task) -> None:
    told = messages_of(task)
    assert [value for kind, value in told if kind == "left out"] == [NO_END] * 3
    assert sum(value for kind, value in told if kind == "spoken") == pytest.approx(7 * 20 / RATE)
    codec = load_release(tiny_release)
    pairs = Pairs([task.out], codec.config, codec_fingerprint(codec))
    assert [path.name for path in sorted(task.out.iterdir())] == [f"pairs_0000{i}.safetensors" for i in range(3)]
    assert [about.text for about in pairs.about()] == [f"text {i}" for i in (1, 2, 3, 5, 6, 7, 9)]
    assert {about.voice for about in pairs.about()} == {"casual_female"}
    assert torch.equal(pairs.codes(0), random_pair(codec.config, 20, 1).codes)


def test_what_is_there_is_not_spoken_again(task: Task) -> None:
    messages_of(task)
    second = task.out / "pairs_00001.safetensors"
    before = {path: path.stat().st_mtime_ns for path in task.out.iterdir()}
    second.unlink()
    told = messages_of(task)
    assert sum(kind == "spoken" for kind, _ in told) == 3
    assert before.keys() == set(task.out.iterdir())
    assert all(path == second or path.stat().st_mtime_ns == time for path, time in before.items())
    assert messages_of(task) == []
    assert FakeEngine.made == 2


def test_several_processes_share_the_shards(task: Task) -> None:
    two = replace(task, processes=2)
    messages_of(two, 1)
    assert [path.name for path in task.out.iterdir()] == ["pairs_00001.safetensors"]
    messages_of(two, 0)
    assert len(list(task.out.iterdir())) == 3


def test_a_folder_with_pairs_of_another_plan_is_refused(tiny_release: Path, tmp_path: Path, task: Task) -> None:
    task.out.mkdir()
    speak_pairs.check_plan(task)
    speak_pairs.check_plan(task)
    other = speak_pairs.read_task(parsed(tiny_release, tmp_path, "--seed=1"))
    with pytest.raises(DataError, match="no pairs are there: delete it"):
        speak_pairs.check_plan(other)
    messages_of(task)
    with pytest.raises(DataError, match="has pairs of other texts, voices, numbers or another release"):
        speak_pairs.check_plan(other)


@pytest.mark.parametrize("missing", ["jiwer", "evaluation.judges.words"])
def test_an_engine_is_closed_if_the_words_cannot_be_judged(
    task: Task, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Else its process would never end."""
    server = MagicMock()
    names = ("vllm_omni.config.pipeline_registry", "vllm_omni.entrypoints.omni", "vllm_omni.outputs.output_modality")
    for name in ("mistral_common.tokens.tokenizers.mistral", "vllm_omni.config.stage_config", *names):
        monkeypatch.setitem(sys.modules, name, server)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"--max-word-errors: .*{missing}"):
        Engine(replace(task, max_word_errors=0.1), None, seed=0)
    server.Omni.return_value.close.assert_called_once_with()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--cfg-alpha", "1", "2", "3"), "has 3 numbers, expected one, or the ends of a range"),
        (("--voices", "anna"), "has no voice 'anna'"),
        (("--engine", "eager"), "expected KEY=VALUE"),
        (("--engine", "a=["), "is not valid YAML"),
    ],
)
def test_what_cannot_be_spoken_is_one_sentence(
    tiny_release: Path,
    tmp_path: Path,
    task: Task,
    more: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"--model-dir={tiny_release}", f"--texts={tmp_path / 'texts.txt'}", f"--out={tmp_path / 'new'}"]
    assert speak_pairs.main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "option", ["--shard-texts=0", "--hours=nan", "--max-seconds=inf", "--cfg-alpha=0", "--seed=-1"]
)
def test_numbers_that_cannot_be_meant_are_usage_errors(option: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        speak_pairs.main([option])


@pytest.mark.parametrize("voices", [[], {}, ["a"], 3, None])
def test_a_release_whose_params_name_no_voices_is_a_sentence(tmp_path: Path, voices: Any) -> None:
    params = {"multimodal": {"audio_tokenizer_args": {"voice": voices}}}
    for content in (params, {"multimodal": voices}, {"multimodal": {"audio_tokenizer_args": voices}}):
        (tmp_path / "params.json").write_text(json.dumps(content))
        with pytest.raises(ReleaseError, match="has no voices"):
            choose_voices(tmp_path, [])


def test_a_damaged_file_among_the_pairs_is_named(tiny_release: Path, tmp_path: Path, task: Task) -> None:
    task.out.mkdir()
    save_file({"semantic": torch.zeros(3)}, task.out / "pairs_00007.safetensors")
    with pytest.raises(DataError, match=r"pairs_00007\.safetensors holds no pairs"):
        speak_pairs.speak(parsed(tiny_release, tmp_path))


def test_prompts_need_a_release_with_an_encoder(
    tmp_path: Path, tiny_release: Path, speech_folder: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_encoder = speak_pairs.read_task(parsed(tiny_release, tmp_path, "--prompts", str(speech_folder)))
    assert with_encoder.plan.prompts == 13
    assert {job.voice for job in with_encoder.plan.jobs(0)} == {""}
    monkeypatch.setattr("codec.codec.Codec.has_encoder", False)
    with pytest.raises(DataError, match="has no encoder for them yet"):
        speak_pairs.read_task(parsed(tiny_release, tmp_path, "--prompts", str(speech_folder)))


def test_the_report_says_how_much_is_to_go_and_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report = processes.Report(1800.0, hours=1.0)
    report.take("ready", 0)
    report.take("spoken", 900.0)
    assert not report.complete
    report.show()
    assert "0.75 hours spoken (1 pairs now)" in (shown := capsys.readouterr().err)
    assert "0.25 hours to go" in shown
    report.take("left out", LOOP)
    report.take("spoken", 900.0)
    assert report.complete
    report.show(final=True)
    assert "left out 1 times: a code or a group of codes came again and again" in capsys.readouterr().err


def test_frames_are_cut_at_the_first_end_of_audio() -> None:
    coded = torch.arange(37 * 6).view(6, 37) + 2
    codes, ended = until_end_of_audio(coded)
    assert not ended
    assert torch.equal(codes, coded.T - 2)
    coded[4, 0] = coded[5, 0] = 1
    codes, ended = until_end_of_audio(coded)
    assert ended
    assert codes.shape == (37, 4)
