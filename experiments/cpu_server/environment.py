"""Where the server is installed: an environment of its own, because it needs another PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.runs import ROOT, ExperimentError
from system.environment import from_environment

USUAL = ROOT / ".venv-server"  # where `make install-server` makes it


def add_server_option(parser: argparse.ArgumentParser) -> None:
    usual = from_environment("SERVER_VENV") or USUAL
    parser.add_argument(
        "--venv", type=Path, default=usual, help="has the server (default: $SERVER_VENV or %(default)s)"
    )


def checked_environment(environment: Path) -> Path:
    """The virtual environment. Raises ExperimentError if it has no server."""
    if not (environment / "bin" / "vllm").exists():
        raise ExperimentError(
            f"{environment} has no vllm: run `make install-server`, or name it with SERVER_VENV or --venv"
        )
    return environment.resolve()
