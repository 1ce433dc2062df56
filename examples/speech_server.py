"""Speaks with a small release on any machine, behind the address of the real server. For a real release, run
`vllm serve $MODEL_DIR --omni`.

    python -m examples.speech_server --model-dir DIR [--port 8000]

It answers `GET /health`, and `POST /v1/audio/speech` with raw samples (`"response_format": "pcm"`), in a named `voice`
of the release or in the voice of a `ref_audio`. The models are those of `codec/` and `language_model/`: the codec in
bf16 as served, the language model on a CPU in float32. The noise of an answer depends on its text alone.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import json
import sys
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.checkpoint import load_release
from codec.voices import read_voices
from data import BadClipError
from data.audio import Clip
from data.reference import prepare
from data.speech_server import WAV, requested_clip
from language_model import Prompt, generate, load_language_model, text_tokenizer
from system.command import UserError, exit_status
from system.device import open_device
from system.untrusted import parse_json

MAX_REQUEST = 64 << 20  # bytes
MAX_FRAMES = 250  # 20 s, unless the request has max_new_tokens


class RefusedError(UserError):
    """The request cannot be answered. The message says why."""


class Speaker:
    """A release that speaks. Raises ReleaseError if it cannot."""

    def __init__(self, release: Path, device: torch.device) -> None:
        self.codec = load_release(release, device=device)
        # processors without instructions for bf16 emulate it, and take several times as long
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = load_language_model(release, device, dtype)
        self.tokenizer = text_tokenizer(release)
        self.voices = read_voices(release / "voice_embedding", self.model.config.dim)

    def speak(self, request: dict[str, Any]) -> bytes:
        """Samples of 16 bits at 24 kHz. Raises RefusedError."""
        text = request.get("input")
        if not isinstance(text, str) or not text.strip():
            raise RefusedError("input is empty: expected the text to speak")
        ids = self.tokenizer.encode(text, bos=False, eos=False)
        frames, seed = request.get("max_new_tokens") or MAX_FRAMES, zlib.crc32(text.encode())
        (speech,) = generate(self.model, [Prompt(self.voice(request), ids)], int(frames), seeds=[seed])
        if not speech.codes.shape[1]:
            return b""
        waveform = self.codec.decode(speech.codes[None].to(self.codec.device))[0, 0].clamp(-1, 1).cpu()
        return (waveform * 32767).round().to(torch.int16).numpy().tobytes()

    def voice(self, request: dict[str, Any]) -> Tensor:
        """The rows of a named voice, or the codes [37, F] of a clip. Raises RefusedError."""
        if (name := request.get("voice")) is not None:
            if name not in self.voices:
                raise RefusedError(f"Invalid speaker {name!r}. Supported: {', '.join(sorted(self.voices))}")
            return self.voices[name]
        audio = request.get("ref_audio")
        if not isinstance(audio, str) or not audio.startswith(WAV):
            raise RefusedError(f"expected a voice, or a ref_audio that begins with {WAV}")
        if not self.codec.has_encoder:
            raise RefusedError("the release has no encoder weights")
        try:
            reference = prepare([Clip("ref_audio", requested_clip(audio))])
        except (BadClipError, ValueError) as error:
            raise RefusedError(f"ref_audio cannot be used: {error}") from error
        return self.codec.encode(reference.waveform[None].to(self.codec.device))[0].cpu()


class SpeechServer(HTTPServer):
    """Answers one request at a time."""

    def __init__(self, speaker: Speaker, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.speaker = speaker


class Handler(BaseHTTPRequestHandler):
    server: SpeechServer

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/health" else 404, "text/plain", b"")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/v1/audio/speech" or not 0 < length <= MAX_REQUEST:
            return self.answer(404, "text/plain", b"")
        try:
            request = parse_json(self.rfile.read(length))
            if not isinstance(request, dict):
                raise RefusedError("expected a JSON object")
            self.answer(200, "audio/pcm", self.server.speaker.speak(request))
        except (RefusedError, ValueError) as error:
            self.answer(400, "application/json", json.dumps({"error": {"message": str(error)}}).encode())

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the client says what went wrong."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--device", default="", help="(default: a GPU where there is one)")
    options = parser.parse_args()
    return exit_status(lambda: serve(options), "the server was stopped")


def serve(options: argparse.Namespace) -> int:
    speaker = Speaker(options.model_dir, open_device(options.device))
    try:
        server = SpeechServer(speaker, options.port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {options.port} cannot be used ({error}): give another one, or 0") from error
    with server:
        print(f"It answers at http://127.0.0.1:{server.server_port}. Ctrl-C stops it.", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
