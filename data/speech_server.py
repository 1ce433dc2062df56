"""Asks a server of a release for speech: `POST /v1/audio/speech` of `vllm serve --omni`, streamed."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.reference import SAMPLE_RATE, Reference
from system.command import UserError
from system.files import written_whole

SAMPLE_BYTES = 2  # the server's "pcm" is 16 bits, one channel
PIECE = 4096  # bytes read at a time
URL = re.compile(r"https?://(\[[0-9a-f:]+\]|[^\s/:]+)(:\d+)?(/\S*)?", re.IGNORECASE)
TIMEOUT = 600  # seconds without a byte
HEALTH_TIMEOUT = 10  # seconds


class SpeechError(UserError):
    """There is no speech. The message says why."""


class NoServerError(SpeechError):
    """No server answers."""


@dataclass(frozen=True)
class Timing:
    """Seconds: the length of the speech, and how long it took until the first of it, and until the end."""

    speech: float
    first: float
    took: float


def request_by_clip(text: str, reference: Reference) -> dict[str, Any]:
    """The body of a request that speaks `text` in the voice of a clip."""
    wav = base64.b64encode(reference.wav()).decode()
    return _request(text) | {"ref_audio": f"data:audio/wav;base64,{wav}"}


def request_by_name(text: str, voice: str) -> dict[str, Any]:
    """The body of a request that speaks `text` in a named voice of the server."""
    return _request(text) | {"voice": voice}


def _request(text: str) -> dict[str, Any]:
    # pcm, because the server breaks off a streamed wav
    return {"input": text, "response_format": "pcm", "stream_format": "audio"}


def speak(url: str, body: dict[str, Any], out: Path) -> Timing:
    """Sends a request and writes the speech to the wav file `out` while it arrives. The file appears when it is whole.
    Raises SpeechError if there is no speech, and OSError if the file cannot be written; then nothing is asked."""
    if out.is_dir():
        raise SpeechError(f"{out} is a folder: name a wav file to write")
    started, first = time.monotonic(), None
    with written_whole(out) as partial, partial.open("wb") as opened, wave.open(opened, "wb") as file:
        file.setparams((1, SAMPLE_BYTES, SAMPLE_RATE, 0, "NONE", "not compressed"))
        for piece in streamed(url, body):
            first = first or time.monotonic() - started
            file.writeframesraw(piece)
        if first is None:
            raise SpeechError("the server sent no speech: its log says why")
        seconds = file.tell() / SAMPLE_RATE
    return Timing(seconds, first, time.monotonic() - started)


def streamed(url: str, body: dict[str, Any]) -> Iterator[bytes]:
    """Sends a request and yields the speech as it arrives. Raises SpeechError."""
    headers = {"Content-Type": "application/json"}
    posted = urllib.request.Request(f"{url.rstrip('/')}/v1/audio/speech", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(posted, timeout=TIMEOUT) as answer:
            while piece := answer.read1(PIECE):
                yield piece
    except urllib.error.HTTPError as error:
        raise SpeechError(explained(error.code, error.read().decode(errors="replace"), body.get("voice"))) from error
    except urllib.error.URLError as error:
        start = "start one with `vllm serve $MODEL_DIR --omni`, or give another address"
        raise NoServerError(f"no server answers at {url} ({error.reason}): {start}") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise SpeechError(
            "the server closed the connection in the middle: its log says why; restart it if it stopped"
        ) from error


def healthy(url: str) -> bool:
    """Whether a server answers at `url`, and does not say that it is broken. Its engine may have died: then a vLLM
    server stops, or answers /health with status 503."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HEALTH_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # another server may have no /health
    except (OSError, http.client.HTTPException):
        return False


def explained(status: int, answer: str, voice: str | None) -> str:
    """What an error status means, and what to do."""
    try:
        message = str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.strip()[:300]
    if "encoder weights" in message:
        return "the served release has no encoder: inject one with inject_encoder.py and restart the server"
    if message.startswith("Invalid speaker"):
        known = message.partition("Supported:")[2].strip() or "none"
        return (
            f"the server has no voice {voice!r}, only {known}: add it with patch_tokenizer.py --voice {voice}=CLIP "
            "and restart the server"
        )
    if status >= 500 and voice:
        return (
            f"the server failed with status {status} for the voice {voice!r} ({message}): python patch_tokenizer.py "
            "--check says whether the release names it everywhere; see also the server's log"
        )
    if status >= 500:
        return f"the server failed with status {status} ({message}): its log says why; it may have to be restarted"
    return f"the server refused with status {status}: {message}"
