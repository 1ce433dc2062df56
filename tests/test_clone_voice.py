"""examples/clone_voice.py sends only clips that do not break the server, writes whole files, and explains failures."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import socket
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import speech_server
from data.reference import prepare, read_clip
from examples import clone_voice
from tests.patching import clip, noise
from tests.speaking_server import SpeakingServer

SPEECH = (3000 * np.sin(np.arange(24000) / 20)).astype("<i2").tobytes()  # one second
STATUS_400 = "Voice cloning with 'ref_audio' requires the full Voxtral checkpoint with encoder weights."


@pytest.fixture
def listener() -> Iterator[SpeakingServer]:
    with SpeakingServer(SPEECH) as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "speech.wav"


def run(listener: SpeakingServer, out: Path, *arguments: str | Path) -> int:
    return clone_voice.main([*map(str, arguments), "Hello.", str(out), "--url", listener.url])


def test_the_speech_is_saved_as_it_was_spoken(listener: SpeakingServer, out: Path) -> None:
    assert run(listener, out, "--voice", "anna") == 0
    samples, rate = soundfile.read(out, dtype="int16")
    assert rate == 24000
    assert samples.tobytes() == SPEECH
    assert list(out.parent.iterdir()) == [out]
    asked = listener.posted[0]
    assert asked == {"input": "Hello.", "voice": "anna", "response_format": "pcm", "stream_format": "audio"}


@pytest.mark.parametrize(("form", "rate", "channels"), [("wav", 48000, 2), ("flac", 16000, 1), ("mp3", 24000, 1)])
def test_any_clip_is_sent_as_a_data_url_of_one_channel_at_24_khz(
    listener: SpeakingServer, out: Path, tmp_path: Path, form: str, rate: int, channels: int
) -> None:
    path = clip(tmp_path / f"a.{form}", 4, rate, channels)
    assert run(listener, out, path) == 0
    kind, _, content = listener.posted[0]["ref_audio"].partition(",")
    assert kind == "data:audio/wav;base64"
    samples, sent_rate = soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32")
    assert sent_rate == 24000
    assert np.array_equal(samples, prepare([read_clip(path)]).waveform[0].numpy())
    assert "voice" not in listener.posted[0]


BAD = {
    "empty": (noise(0), "is empty"),
    "NaN": (np.full(24000, np.nan), "not finite"),
    "silent": (np.zeros(24000), "is silent"),
    "400 s": (noise(400), "is too long"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_clip_that_the_server_does_not_stand_is_not_sent(
    listener: SpeakingServer, out: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, message = BAD[name]
    soundfile.write(tmp_path / "bad.wav", samples, 24000, subtype="FLOAT")
    assert run(listener, out, tmp_path / "bad.wav") == 2
    assert message in capsys.readouterr().err
    assert listener.posted == []
    assert list(out.parent.iterdir()) == []


def test_a_length_that_is_miscounted_is_sent_with_one_sample_less(
    listener: SpeakingServer, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(listener, out, clip(tmp_path / "a.wav", 105600 / 24000)) == 0
    content = base64.b64decode(listener.posted[0]["ref_audio"].partition(",")[2])
    assert soundfile.info(io.BytesIO(content)).frames == 105599
    assert "one sample is cut" in capsys.readouterr().out


MISUSES = {
    "a clip and a name": (["clip.wav", "--voice", "anna"], "a clip or --voice NAME"),
    "neither": ([], "CLIP TEXT OUT, or --voice NAME TEXT OUT"),
    "a server without http": (["--voice", "anna", "--url", "localhost:8000"], "expected one such as http://"),
    "a port that is none": (["--voice", "anna", "--url", "http://localhost:80x"], "expected one such as http://"),
    "a port that no machine has": (
        ["--voice", "anna", "--url", "http://localhost:80000"],
        "expected one such as http://",
    ),
    "no host": (["--voice", "anna", "--url", "http://../"], "expected one such as http://"),
    "a host with a part that is too long": (["--voice", "anna", "--url", f"http://{'x' * 70}"], "expected one such as"),
    "a path beyond ASCII": (["--voice", "anna", "--url", "http://localhost/ä"], "expected one such as http://"),
    "a query": (["--voice", "anna", "--url", "http://localhost/?a=b"], "expected one such as http://"),
    "a password": (["--voice", "anna", "--url", "http://a:b@localhost/"], "expected one such as http://"),
    "a name that is no text": (["--voice", "caf\udce9"], "the voice is no UTF-8"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_wrong_command_line_is_said_to_be_one(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISUSES[name]
    with pytest.raises(SystemExit, match="2"):
        clone_voice.main(["Hello.", str(out), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://host.example/voices", "http://[::1]:8000/"])
def test_a_server_may_be_named_by_any_of_these(url: str) -> None:
    assert clone_voice.parse(["--voice", "anna", "Hello.", "out.wav", "--url", url]).url == url


REFUSALS = {
    "no encoder": (400, STATUS_400, "inject_encoder.py"),
    "unknown name": (400, "Invalid speaker 'anna'. Supported: bert, carl", "has no voice 'anna', only bert, carl"),
    "a name in two places of three": (500, "'anna'", "patch_tokenizer.py --check"),
    "anything else": (400, "Input text is too long", "status 400: Input text is too long"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_server_has_against_a_request_is_said_with_what_helps(
    listener: SpeakingServer, out: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, message, sentence = REFUSALS[name]
    listener.refuse(status, message)
    assert run(listener, out, "--voice", "anna") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert list(out.parent.iterdir()) == []


def test_speech_that_breaks_off_leaves_no_file(
    listener: SpeakingServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener.breaks_off = True
    assert run(listener, out, "--voice", "anna") == 2
    assert "closed the connection in the middle" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_speech_that_is_shorter_than_it_was_said_to_be_leaves_no_file(
    listener: SpeakingServer, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for length, body in [(len(SPEECH) + 2, SPEECH), (len(SPEECH) - 1, SPEECH[:-1])]:
        listener.length, listener.body = length, body
        assert run(listener, out, "--voice", "anna") == 2
        assert "closed the connection in the middle" in capsys.readouterr().err
        assert list(out.parent.iterdir()) == []


PAGE = b"<html><head><title>Company proxy</title></head>\n<body>Please log in.</body></html>" * 20
ERROR = json.dumps({"error": {"message": "the engine is dead"}}).encode()
NO_SPEECH: dict[str, tuple[str, bytes, str]] = {
    "a page": ("text/html; charset=utf-8", PAGE, "text/html; charset=utf-8, <html>"),
    "a page that is said to be sound": ("audio/pcm", PAGE, "<html><head>"),
    "a page of no kind": ("", PAGE, "<html><head>"),
    "an error with status 200": ("application/json", ERROR, "the engine is dead"),
    "an error that is said to be sound": ("application/octet-stream", ERROR, "the engine is dead"),
    "deep JSON": ("application/json", b"[" * 100_000, "application/json, [["),
    "control characters": ("text/plain", b"\x1b[2J\x07" * 10, r"\x1b[2J"),
    "a WAV file": ("audio/wav", b"RIFF\x00\x00\x00\x00WAVE" + SPEECH, "audio/wav"),
    "a FLAC file": ("audio/flac", b"fLaC" + SPEECH, "audio/flac"),
    "a FLAC file that is said to be samples": ("audio/pcm", b"fLaC" + SPEECH, "a FLAC file"),
    "an MP3 file that begins with sound": ("audio/mpeg", b"\xff\xfb\x90\x00" + SPEECH, "audio/mpeg"),
    "sound of another kind": ("audio/aac; x=y", SPEECH, "audio/aac; x=y"),
    "events": ("text/event-stream", b"data: hello\n\n", "text/event-stream"),
    "two bytes": ("", b"no", "only 2 bytes, no"),
    "less than a frame": ("audio/pcm", SPEECH[:3838], "only 3838 bytes"),
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech_is_not_taken_for_speech(
    listener: SpeakingServer, out: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, listener.body, message = NO_SPEECH[name]
    listener.headers = {"Content-Type": kind} if kind else {}
    assert run(listener, out, "--voice", "anna") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: the answer of {listener.url} is not raw speech: ")
    assert message in said
    assert said.count("\n") == 1
    assert len(said) < 1000
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/L16;rate=24000", "application/octet-stream", ""])
def test_raw_samples_of_any_such_kind_are_speech(listener: SpeakingServer, out: Path, kind: str) -> None:
    listener.headers = {"Content-Type": kind} if kind else {}
    assert run(listener, out, "--voice", "anna") == 0
    assert soundfile.info(out).frames == 24000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_named_and_not_followed(
    listener: SpeakingServer, out: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    listener.status, listener.headers = status, {"Location": f"{listener.url}/login"}
    assert run(listener, out, "--voice", "anna") == 2
    assert f"sends requests on to {listener.url}/login: give that address" in capsys.readouterr().err
    assert listener.asked == ["/v1/audio/speech"]


def test_an_endless_answer_is_given_up(
    listener: SpeakingServer, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech_server, "MAX_SPEECH", len(SPEECH) - 2)
    assert run(listener, out, "--voice", "anna") == 2
    assert "more than an hour of speech" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_a_program_that_speaks_no_http_is_called_so(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert clone_voice.main(["--voice", "anna", "Hello.", str(out), "--url", url]) == 2
        thread.join()
    assert f"what answers at {url} is no speech server (SSH-2.0" in capsys.readouterr().err


PROXIES = ["http_proxy", "HTTP_PROXY", "all_proxy"]


@pytest.mark.parametrize("variable", PROXIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_without_the_proxy(
    listener: SpeakingServer, out: Path, variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing answers there
    url = listener.url.replace("127.0.0.1", host)
    assert clone_voice.main(["--voice", "anna", "Hello.", str(out), "--url", url]) == 0


def test_a_proxy_on_the_way_to_another_machine_is_named(
    listener: SpeakingServer, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--voice", "anna", "Hello.", str(out), "--url", "http://server.invalid:8000"]
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    assert clone_voice.main(arguments) == 2
    said = capsys.readouterr().err
    assert "through the proxy 127.0.0.1:9 (http_proxy; no_proxy=server.invalid goes around it)" in said
    assert "secret" not in said
    listener.body, listener.headers = PAGE, {"Content-Type": "text/html"}
    monkeypatch.setenv("http_proxy", listener.url)
    assert clone_voice.main(arguments) == 2
    assert f"through the proxy {listener.url.removeprefix('http://')} (http_proxy" in capsys.readouterr().err
    listener.status = 407
    assert clone_voice.main(arguments) == 2
    assert "status 407" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/audio/speech", "//"])
def test_the_address_may_be_the_one_of_another_client(listener: SpeakingServer, out: Path, end: str) -> None:
    assert clone_voice.main(["--voice", "anna", "Hello.", str(out), "--url", listener.url + end]) == 0
    assert listener.asked == ["/v1/audio/speech"]


def test_a_server_may_be_below_a_path(listener: SpeakingServer, out: Path) -> None:
    assert clone_voice.main(["--voice", "anna", "Hello.", str(out), "--url", f"{listener.url}/tts/v1"]) == 0
    assert listener.asked == ["/tts/v1/audio/speech"]


@pytest.mark.parametrize("way", ["itself", "another spelling", "a link", "a hard link"])
def test_the_reference_recording_is_not_replaced(
    listener: SpeakingServer,
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = clip(tmp_path / "a.wav")
    before, out = path.read_bytes(), tmp_path / "b.wav"
    if way == "a link":
        out.symlink_to(path)
    elif way == "a hard link":
        out.hardlink_to(path)
    else:
        monkeypatch.chdir(tmp_path)
        out = path if way == "itself" else Path("..", tmp_path.name, "a.wav")
    assert run(listener, out, path) == 2
    assert "is the clip itself" in capsys.readouterr().err
    assert (path.read_bytes(), listener.posted) == (before, [])


def test_no_speech_is_an_error(listener: SpeakingServer, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listener.body = b""
    assert run(listener, out, "--voice", "anna") == 2
    assert "sent no speech" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_where_no_server_is_it_is_said_how_to_start_one(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert clone_voice.main(["--voice", "anna", "Hello.", str(out), "--url", url]) == 2
    assert "vllm serve $MODEL_DIR --omni" in capsys.readouterr().err


PLACES = {
    "a folder that is not there": ("none/speech.wav", "cannot be written (No such file or directory)"),
    "a name that is too long": ("x" * 300, "cannot be written (File name too long)"),
    "a folder": ("", "is a folder"),
    "a pipe": ("pipe", "is no regular file"),
    "a device": ("device", "is no regular file"),
}


@pytest.mark.parametrize("name", PLACES)
def test_where_nothing_can_be_written_nothing_is_spoken(
    listener: SpeakingServer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, message = PLACES[name]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    assert run(listener, tmp_path / place, "--voice", "anna") == 2
    assert message in capsys.readouterr().err
    assert listener.posted == []


def test_a_full_disk_is_an_error_and_leaves_no_file(
    listener: SpeakingServer, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(file: wave.Wave_write, samples: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(wave.Wave_write, "writeframesraw", full)
    assert run(listener, out, "--voice", "anna") == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
