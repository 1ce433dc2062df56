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
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data.reference import prepare, read_clip
from examples import clone_voice
from tests.patching import clip, noise

SPEECH = (3000 * np.sin(np.arange(24000) / 20)).astype("<i2").tobytes()  # one second
STATUS_400 = "Voice cloning with 'ref_audio' requires the full Voxtral checkpoint with encoder weights."


class Listener(HTTPServer):
    """Takes down what is posted, and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.posted: list[dict[str, Any]] = []
        self.status, self.body, self.breaks_off = 200, SPEECH, False

    def refuse(self, status: int, message: str) -> None:
        self.status, self.body = status, json.dumps({"error": {"message": message}}).encode()


class Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"  # sends in chunks, as the server does

    def do_POST(self) -> None:
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.server.body:
            self.wfile.write(f"{len(self.server.body):x}\r\n".encode() + self.server.body + b"\r\n")
        if not self.server.breaks_off:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "speech.wav"


def run(listener: Listener, out: Path, *arguments: str | Path) -> int:
    return clone_voice.main([*map(str, arguments), "Hello.", str(out), "--url", listener.url])


def test_the_speech_is_saved_as_it_was_spoken(listener: Listener, out: Path) -> None:
    assert run(listener, out, "--voice", "anna") == 0
    samples, rate = soundfile.read(out, dtype="int16")
    assert rate == 24000
    assert samples.tobytes() == SPEECH
    assert list(out.parent.iterdir()) == [out]
    asked = listener.posted[0]
    assert asked == {"input": "Hello.", "voice": "anna", "response_format": "pcm", "stream_format": "audio"}


@pytest.mark.parametrize(("form", "rate", "channels"), [("wav", 48000, 2), ("flac", 16000, 1), ("mp3", 24000, 1)])
def test_any_clip_is_sent_as_a_data_url_of_one_channel_at_24_khz(
    listener: Listener, out: Path, tmp_path: Path, form: str, rate: int, channels: int
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
    listener: Listener, out: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, message = BAD[name]
    soundfile.write(tmp_path / "bad.wav", samples, 24000, subtype="FLOAT")
    assert run(listener, out, tmp_path / "bad.wav") == 2
    assert message in capsys.readouterr().err
    assert listener.posted == []
    assert list(out.parent.iterdir()) == []


def test_a_length_that_is_miscounted_is_sent_with_one_sample_less(
    listener: Listener, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    listener: Listener, out: Path, name: str, capsys: pytest.CaptureFixture[str]
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
    listener: Listener, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener.breaks_off = True
    assert run(listener, out, "--voice", "anna") == 2
    assert "closed the connection in the middle" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_no_speech_is_an_error(listener: Listener, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
}


@pytest.mark.parametrize("name", PLACES)
def test_where_nothing_can_be_written_nothing_is_spoken(
    listener: Listener, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, message = PLACES[name]
    assert run(listener, tmp_path / place, "--voice", "anna") == 2
    assert message in capsys.readouterr().err
    assert listener.posted == []


def test_a_full_disk_is_an_error_and_leaves_no_file(
    listener: Listener, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(file: wave.Wave_write, samples: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(wave.Wave_write, "writeframesraw", full)
    assert run(listener, out, "--voice", "anna") == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []
