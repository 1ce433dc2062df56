"""python -m experiments.cpu_server DIR: see __init__.py."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from experiments.cpu_server.environment import add_server_option, checked_environment
from experiments.cpu_server.server import CpuServer, ServerError
from experiments.runs import ExperimentError, experiment_status


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs `vllm serve DIR --omni` on a CPU until Ctrl-C.")
    parser.add_argument("release", type=Path, metavar="DIR")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    add_server_option(parser)
    parser.add_argument("--log", type=Path, help="folder for the server's log (default: a temporary one)")
    options = parser.parse_args()
    return experiment_status(lambda: serve(options), "the server was stopped")


def serve(options: argparse.Namespace) -> int:
    environment = checked_environment(options.venv)
    log = options.log or Path(tempfile.mkdtemp(prefix="cpu_server_"))
    print(f"The server starts, which takes one to two minutes. Its log is {log / 'server.log'}", flush=True)
    try:
        with CpuServer(environment, options.release.resolve(), log.resolve(), options.port) as server:
            print(f"It answers at {server.url}. Ctrl-C stops it.", flush=True)
            signal.pause()
    except ServerError as error:
        raise ExperimentError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
