"""Sends requests to one server, also by the programs that a user runs, and records the answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.serving.server import Answer, Server, said

USUAL_URL = "http://localhost:8000"  # in docs/clients.md


@dataclass
class Scene:
    """`answers`: by the name of the request. `programs`: output and exit status of the clients, by their arguments."""

    answers: dict[str, Answer] = field(default_factory=dict)
    programs: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    alive_before_the_last: bool = False
    died_of_the_last: bool = False

    def ask(self, server: Server, what: str, **request: object) -> None:
        self.answers[what] = server.ask(what, **request)

    def kill(self, server: Server, what: str, **request: object) -> None:
        """Sends the last request, one that kills the engine."""
        self.alive_before_the_last = server.healthy()
        self.ask(server, what, **request)
        self.died_of_the_last = server.dies()
        said(f"  the engine {'is dead' if self.died_of_the_last else 'lives'}")

    def use_client(self, server: Server, folder: Path, *given: str) -> None:
        """Runs examples/clone_voice.py in `folder`, with a clip in it or with the option for a name."""
        program = Path("examples/clone_voice.py").resolve()
        command = [sys.executable, str(program), *given, "Hello there.", "hello.wav", "--url", server.url]
        self._run(server, folder, f"client {' '.join(given)}", command)

    def follow_page(self, server: Server, folder: Path, page: str, python: Path) -> None:
        """Runs every block of a page of the documents in `folder`, with the server's address in place of the usual
        one. `python` has the clients that the page shows."""
        for i, (language, code) in enumerate(blocks(page)):
            code = code.replace(USUAL_URL, server.url)
            command = ["bash", "-euc", code] if language == "bash" else [str(python), "-c", code]
            self._run(server, folder, f"{page} {i}", command)

    def _run(self, server: Server, folder: Path, what: str, command: list[str]) -> None:
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True, check=False)
        said(f"  {what}: exit status {done.returncode} {(done.stdout + done.stderr).strip()}")
        speech = folder / "hello.wav"
        self.programs[what] = done
        self.answers[what] = Answer(0, speech.read_bytes() if speech.exists() else b"", server.take())
        speech.unlink(missing_ok=True)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and code of each block of a page."""
    for block in Path(page).read_text(encoding="utf-8").split("```")[1::2]:
        language, _, code = block.partition("\n")
        yield language, code
