"""Starts `vllm serve DIR --omni` on a CPU, sends requests, records what the model computes, and stops the server."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PLATFORM = Path(__file__).parent / "cpu"
START_SECONDS = 900  # 60 to 90 s on two idle cores
ANSWER_SECONDS = 120
TEXT = "Hello there."

# Changes to vllm-omni's settings for Voxtral TTS that two cores and a few GB need: no compilation, small buffers.
STAGE = {"enforce_eager": True, "async_scheduling": False, "max_num_seqs": 4}
STAGES = {"0": STAGE | {"max_num_batched_tokens": 4096}, "1": STAGE}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_COLOR": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB a stage
}


class ServerError(Exception):
    """The server does not start, or not in time. The message holds the end of its log."""


class Server:
    """A running server of the release in `folder`. Its log, and what its model computes, are in `scratch`."""

    def __init__(self, environment: Path, folder: Path, scratch: Path) -> None:
        self.scratch, self.log = scratch, scratch / "server.log"
        self.seen = scratch / "seen"
        self.seen.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(environment / "bin" / "vllm"), "serve", str(folder), "--omni", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--gpu-memory-utilization", "0.2"]
        command += ["--stage-overrides", json.dumps(STAGES)]
        # its own limits are 10 minutes, and 5 for each stage
        command += ["--init-timeout", str(START_SECONDS), "--stage-init-timeout", str(START_SECONDS)]
        own = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PLATFORM)}
        own["SERVER_RECORDS"] = str(self.seen)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT | own, start_new_session=True, cwd=scratch
            )
        started = time.monotonic()
        try:
            self._wait(started)
        except BaseException:
            self.stop()
            raise
        self.take()  # what it computed to warm up
        said(f"vllm serve {folder.name} --omni: ready after {time.monotonic() - started:.0f} s")

    def _wait(self, started: float) -> None:
        while time.monotonic() - started < START_SECONDS:
            if self.process.poll() is not None:
                raise ServerError(f"the server ended with status {self.process.returncode}:\n{self._log_end()}")
            if self.healthy():
                return
            time.sleep(0.5)
        raise ServerError(f"the server was not ready after {START_SECONDS} s:\n{self._log_end()}")

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False

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
        """What the model computed since the last call, as cpu/omni_cpu/recorder.py recorded it."""
        events = []
        for path in sorted(self.seen.glob("*.pt")):
            events.append(torch.load(path, weights_only=True))
            path.unlink()
        return events

    def stop(self) -> None:
        """Ends the server's process, and then all that is left of its process group."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


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
