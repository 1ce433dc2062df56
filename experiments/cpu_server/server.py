"""Starts and stops `vllm serve DIR --omni` on a CPU."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

PLUGIN = Path(__file__).parent / "plugin"
START_SECONDS = 900  # 60 to 90 s on two idle cores

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


class CpuServer:
    """A running server of the release in `folder`, on 127.0.0.1. Its log is `scratch`/server.log.

    `environment` is the virtual environment that has the server. `port` 0 takes a free one. `variables` are added to
    the server's environment variables. The constructor returns when the server answers. It raises ServerError if the
    server does not start. Leaving the context stops it.
    """

    def __init__(
        self, environment: Path, folder: Path, scratch: Path, port: int = 0, variables: Mapping[str, str] | None = None
    ) -> None:
        self.log = scratch / "server.log"
        scratch.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(environment / "bin" / "vllm"), "serve", str(folder), "--omni", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--gpu-memory-utilization", "0.2"]
        command += ["--stage-overrides", json.dumps(STAGES)]
        # its own limits are 10 minutes, and 5 for each stage
        command += ["--init-timeout", str(START_SECONDS), "--stage-init-timeout", str(START_SECONDS)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=variables_for(environment) | dict(variables or {}),
                start_new_session=True,
                cwd=scratch,
            )
        self.started = time.monotonic()
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - self.started

    def _wait(self) -> None:
        while time.monotonic() - self.started < START_SECONDS:
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

    def stop(self) -> None:
        """Ends the server's process, and then all that is left of its process group."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def variables_for(environment: Path) -> dict[str, str]:
    """The environment variables of a program that uses vllm-omni of the virtual environment `environment` on a CPU."""
    own = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PLUGIN)}
    return dict(os.environ) | ENVIRONMENT | own


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
