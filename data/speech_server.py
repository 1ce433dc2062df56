"""Asks a server of a release for speech: `POST /v1/audio/speech` of `vllm serve --omni`, streamed.

Whoever answers may be somebody else: a proxy with a page of its own, or another program. So nothing but raw samples is
taken for speech, redirects are not followed, and a server on this machine is asked without a proxy.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import re
import ssl
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codec.config import FRAME_SIZE
from codec.files import shortened
from data.reference import SAMPLE_RATE, Reference
from system.command import UserError
from system.files import written_whole
from system.untrusted import parse_json

WAV = "data:audio/wav;base64,"  # begins the `ref_audio` of a request
SAMPLE_BYTES = 2  # the server's "pcm" is 16 bits, one channel
PIECE = 4096  # bytes read at a time
URL = re.compile(r"https?://(\[[0-9a-f:]+\]|[^\s/:?#@\\]+)(:\d{1,5})?(/[!-\"$->@-~]*)?", re.IGNORECASE)
TIMEOUT = 600  # seconds without a byte
HEALTH_TIMEOUT = 10  # seconds
MAX_SPEECH = 3600 * SAMPLE_RATE * SAMPLE_BYTES  # bytes; the model speaks less than six minutes
# kinds of an answer that may be raw samples, and those of an answer that says nothing of its kind
RAW = ("audio/pcm", "audio/x-pcm", "audio/l16", "audio/raw", "audio/x-raw", "application/octet-stream", "")
MAX_MESSAGE = 1 << 16  # bytes of an answer that is no speech
FORMATS = {b"RIFF": "a WAV file", b"OggS": "an OGG file", b"fLaC": "a FLAC file", b"ID3": "an MP3 file"}


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


def request_by_clip(text: str, reference: Reference, longest: float | None = None) -> dict[str, Any]:
    """The body of a request that speaks `text` in the voice of a clip, for `longest` seconds at most."""
    return _request(text, longest) | {"ref_audio": WAV + base64.b64encode(reference.wav()).decode()}


def requested_clip(ref_audio: str) -> bytes:
    """The WAV file in the `ref_audio` of a request by clip. Raises ValueError for one that holds none."""
    if not ref_audio.startswith(WAV):
        raise ValueError(f"expected a text that begins with {WAV}")
    return base64.b64decode(ref_audio.removeprefix(WAV), validate=True)


def request_by_name(text: str, voice: str, longest: float | None = None) -> dict[str, Any]:
    """The body of a request that speaks `text` in a named voice of the server, for `longest` seconds at most."""
    return _request(text, longest) | {"voice": voice}


def _request(text: str, longest: float | None) -> dict[str, Any]:
    # pcm, because the server breaks off a streamed wav
    body: dict[str, Any] = {"input": text, "response_format": "pcm", "stream_format": "audio"}
    if longest is not None:
        body["max_new_tokens"] = max(1, round(longest * SAMPLE_RATE / FRAME_SIZE))
    return body


def speak(url: str, body: dict[str, Any], out: Path) -> Timing:
    """Sends a request and writes the speech to the wav file `out` while it arrives. The file appears when it is whole.
    Raises SpeechError if there is no speech, and OSError if the file cannot be written; then nothing is asked."""
    if out.exists() and not out.is_file():
        raise SpeechError(f"{out} is {'a folder' if out.is_dir() else 'no regular file'}: name a wav file to write")
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
    """Sends a request and yields the speech as it arrives, in whole samples. Raises SpeechError."""
    headers = {"Content-Type": "application/json"}
    posted = urllib.request.Request(f"{base_url(url)}/v1/audio/speech", json.dumps(body).encode(), headers)
    try:
        with _opened(posted, TIMEOUT) as answer:
            yield from _samples(answer, url)
    except urllib.error.HTTPError as error:
        raise SpeechError(_refusal(error, url, body.get("voice"))) from error
    except urllib.error.URLError as error:
        start = "start one with `vllm serve $MODEL_DIR --omni`, or give another address"
        if isinstance(error.reason, ssl.SSLError):
            start = "a server without a certificate has an address that begins with http://"
        raise NoServerError(f"no server answers at {url}{_way(url)} ({error.reason}): {start}") from error
    except http.client.RemoteDisconnected as error:
        raise SpeechError(f"the server closed the connection without an answer{_way(url)}: its log says why") from error
    except (http.client.BadStatusLine, http.client.UnknownProtocol, http.client.LineTooLong, ValueError) as error:
        reason = shortened(str(error).strip()) or type(error).__name__
        raise NoServerError(f"what answers at {url}{_way(url)} is no speech server ({reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise SpeechError(
            "the server closed the connection in the middle: its log says why; restart it if it stopped"
        ) from error


def base_url(url: str) -> str:
    """The address of a server, without what other clients' settings have in it: `/v1` or `/v1/audio/speech`. Raises
    SpeechError if it is no address."""
    try:
        valid = URL.fullmatch(url) and urlsplit(url).port != 0 and str(urlsplit(url).hostname).encode("idna")
    except ValueError:  # a port over 65535, or no name of a host
        valid = False
    if not valid:
        raise SpeechError(f"{shortened(url)}: expected one such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1/audio/speech").removesuffix("/v1").rstrip("/")


def healthy(url: str) -> bool:
    """Whether a server answers at `url`, and does not say that it is broken. Its engine may have died: then a vLLM
    server stops, or answers /health with status 503."""
    try:
        with _opened(urllib.request.Request(f"{base_url(url)}/health"), HEALTH_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # another server may have no /health
    except (OSError, http.client.HTTPException, ValueError):
        return False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect becomes an HTTPError. urllib would send a GET without the text, and speech is no answer to that."""

    def redirect_request(self, *request: Any) -> None:
        return None


def _opened(request: urllib.request.Request, timeout: float) -> Any:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if _is_local(request.full_url):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


def _is_local(url: str) -> bool:
    """Whether a server is on this machine. A proxy, which is another one, cannot reach it."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def _way(url: str) -> str:
    """Says through which proxy a server is asked; empty if through none."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or _is_local(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    shown = shortened(proxy.rpartition("@")[2].rpartition("://")[2])  # without a password
    return f" through the proxy {shown} ({parts.scheme}_proxy; no_proxy={parts.hostname} goes around it)"


def _samples(answer: Any, url: str) -> Iterator[bytes]:
    """The speech in a server's answer, in whole samples. Raises SpeechError for anything else."""
    kind, begin, odd, total = str(answer.headers.get("Content-Type", "")), b"", b"", 0
    if kind.partition(";")[0].strip().lower() not in RAW:
        raise SpeechError(f"{_no_speech(url)}: {shortened(kind)}, {_message(answer.read(MAX_MESSAGE))}")
    while piece := answer.read1(PIECE):
        if not begin:
            begin = piece
            form = next((name for start, name in FORMATS.items() if begin.startswith(start)), "")
            if form or _is_text(begin):
                raise SpeechError(f"{_no_speech(url)}: {form or _message(begin)}")
        total += len(piece)
        if total > MAX_SPEECH:
            raise SpeechError("the server sent more than an hour of speech: its log says why")
        piece = odd + piece
        odd = piece[len(piece) - len(piece) % SAMPLE_BYTES :]
        yield piece[: len(piece) - len(odd)]
    if answer.length or odd:  # bytes that the header promised, or half a sample
        raise http.client.IncompleteRead(b"")
    if 0 < total < FRAME_SIZE * SAMPLE_BYTES:  # the server speaks whole frames
        raise SpeechError(f"{_no_speech(url)}: only {total} bytes, {_message(begin)}")


def _no_speech(url: str) -> str:
    return f"the answer of {url}{_way(url)} is not raw speech"


def _is_text(begin: bytes) -> bool:
    """Whether an answer begins as a text does: a page, or JSON. The samples of speech never do."""
    return len(begin) >= 16 and begin.isascii() and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in begin)


def _refusal(error: urllib.error.HTTPError, url: str, voice: str | None) -> str:
    """What an error status means, and what to do."""
    if 300 <= error.code < 400:
        place = shortened(str(error.headers.get("Location") or "another address"))
        return f"{url}{_way(url)} sends requests on to {place}: give that address"
    content = b""
    with suppress(OSError, http.client.HTTPException):
        content = error.read(MAX_MESSAGE)
    sentence = explained(error.code, _message(content), voice)
    return f"{sentence}; the answer came{_way(url)}" if _way(url) else sentence


def _message(content: bytes) -> str:
    """What an answer that is no speech says, in one line."""
    with suppress(ValueError, KeyError, TypeError):
        return shortened(str(parse_json(content)["error"]["message"]), 1000)
    return shortened(" ".join(content.decode(errors="replace").split()), 300)


def explained(status: int, message: str, voice: str | None) -> str:
    """What an error status with its message means, and what to do."""
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
