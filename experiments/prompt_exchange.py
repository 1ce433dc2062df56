"""Stands between a client and a speech server, and exchanges the clip of a request for another prompt: another clip, or
a named voice of the server. So a client that sends clips can measure prompts that no encoder made."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

import soundfile
import torch
from torch import Tensor

from data.speech_server import requested_clip
from evaluation.provenance import fingerprint

TIMEOUT = 600  # seconds without a byte


class PromptExchange:
    """A server on a free port of 127.0.0.1 before the one at `server`.

    `prompts` has, for the fingerprint of each clip's samples, the fields that take the place of its `ref_audio`. A
    request with another clip is refused with status 400. All else passes unchanged. Leaving the context stops it.
    """

    def __init__(self, server: str, prompts: Mapping[str, Mapping[str, Any]]):
        address = urlsplit(server).netloc

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.forward(None)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if "ref_audio" in body:
                    prompt = prompts.get(fingerprint(sent_clip(body.pop("ref_audio"))))
                    if prompt is None:
                        self.send_error(400, "no prompt is known for this clip")
                        return
                    body |= prompt
                self.forward(json.dumps(body).encode())

            def forward(self, body: bytes | None) -> None:
                behind = http.client.HTTPConnection(address, timeout=TIMEOUT)
                headers = {"Content-Type": "application/json"} if body else {}
                try:
                    behind.request(self.command, self.path, body, headers)
                    answer = behind.getresponse()
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                    self.end_headers()
                    while piece := answer.read1():
                        self.wfile.write(piece)
                finally:
                    behind.close()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def sent_clip(url: str) -> Tensor:
    """The samples [T] of a `data:` URL that holds a WAV file."""
    samples, _ = soundfile.read(io.BytesIO(requested_clip(url)), dtype="float32")
    return torch.from_numpy(samples)
