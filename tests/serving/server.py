"""Sends requests to `vllm serve DIR --omni` on a CPU, and records what the model computes."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.cpu_server.server import CpuServer

ANSWER_SECONDS = 120
TEXT = "Hello there."


class Server(CpuServer):
    """A running server of the release in `folder`. Its log, and what its model computes, are in `scratch`."""

    def __init__(self, environment: Path, folder: Path, scratch: Path) -> None:
        self.seen = scratch / "seen"
        self.seen.mkdir(parents=True)
        super().__init__(environment, folder, scratch, variables={"SERVER_RECORDS": str(self.seen)})
        self.take()  # what it computed to warm up
        said(f"vllm serve {folder.name} --omni: ready after {self.start_seconds:.0f} s")

    def dies(self, seconds: float = 60) -> bool:
        """Whether it stops being healthy within this time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.healthy():
                return True
            time.sleep(0.5)
        return False

    def ask(self, what: str, **request: Any) -> Answer:
        """POST /v1/audio/speech. `what` is the request's name in the log."""
        content = {"input": TEXT, "max_new_tokens": 6} | request
        headers = {"Content-Type": "application/json"}
        posted = urllib.request.Request(f"{self.url}/v1/audio/speech", json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(posted, timeout=ANSWER_SECONDS) as response:
                status, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        answer = Answer(status, body, self.take())
        said(f"  {what}: status {status}, {f'{len(body)} bytes of audio' if status == 200 else answer.text[:300]}")
        return answer

    def take(self) -> list[dict[str, Tensor]]:
        """What the model computed since the last call (experiments/cpu_server/plugin/omni_cpu/recorder.py)."""
        events = []
        for path in sorted(self.seen.glob("*.pt")):
            events.append(torch.load(path, weights_only=True))
            path.unlink()
        return events


@dataclass(frozen=True)
class Answer:
    """The response, and what the model computed for it."""

    status: int
    """The HTTP status; 0 if the server closed the connection before the end of its answer."""
    body: bytes
    events: list[dict[str, Tensor]]

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def seen(self, name: str) -> list[Tensor]:
        return [event[name] for event in self.events if name in event]

    @property
    def codes(self) -> Tensor:
        """[37, F] of the one clip that was encoded, as in this repository: no special tokens, no end-of-audio frame."""
        (codes,) = self.seen("codes")
        return codes[:, :-1] - 2

    @property
    def prompt(self) -> Tensor:
        """[N, dim], the voice's embedding in the prompt."""
        (prompt,) = self.seen("prompt")
        return prompt

    @property
    def spoken(self) -> Tensor:
        """[frames, 37], the generated codes."""
        return torch.stack(self.seen("frame"))


def data_url(audio: bytes, kind: str = "wav") -> str:
    return f"data:audio/{kind};base64,{base64.b64encode(audio).decode()}"


def said(line: str) -> None:
    """Prints a line for the test log."""
    print(line, flush=True)
