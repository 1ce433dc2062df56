"""Ctrl-C and SIGTERM at any moment of a program: one sentence and the status 128 plus the signal's number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401 (the first optimizer imports it: here once, and not in every child)

import inject_encoder
import train_encoder
from system.command import exit_status
from system.signals import RaisedSignals, StopRequest, children_without_ctrl_c
from tests import forked_commands

ROOT = Path(__file__).parents[1]
BOTH = [signal.SIGINT, signal.SIGTERM]
PROGRAMS = {
    "train_encoder.py": ["torch"],
    "inject_encoder.py": ["safetensors"],
    "patch_tokenizer.py": ["torch", "safetensors"],
    "evaluate_encoder.py": ["torch"],
    "evaluate_cloning.py": ["torch"],
    "examples/clone_voice.py": ["numpy", "soundfile"],
    "-m data.export": ["torch", "soundfile"],
    "-m examples.demo": ["torch", "soundfile"],
    "-m losses.asr.whisper_weights": ["torch"],
    "-m experiments.step_speed": ["torch"],
}


def end_of(program: str, folder: Path, before: Callable[[], object] | None = None) -> tuple[int, str]:
    """Runs a program that finds its libraries in `folder` first. Returns its status and standard error."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    arguments = [sys.executable, *program.split()]
    ended = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, preexec_fn=before
    )
    return ended.returncode, ended.stderr


def answer_ctrl_c() -> None:
    """Where a shell runs the tests in the background, they ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("program", "number"), [(program, BOTH[i % 2]) for i, program in enumerate(PROGRAMS)])
def test_a_signal_during_the_imports_of_a_program_is_one_sentence(
    program: str, number: signal.Signals, tmp_path: Path
) -> None:
    for library in PROGRAMS[program]:
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(f"import os; os.kill(os.getpid(), {int(number)})")
    status, error = end_of(program, tmp_path, answer_ctrl_c)
    assert (status, error) == (128 + number, f"error: interrupted by {number.name}\n")


def test_ctrl_c_that_a_shell_ignores_in_the_background_is_ignored_during_the_imports(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    lines = "import os, signal, sys", "os.kill(os.getpid(), signal.SIGINT)", "sys.exit('went on')"
    (tmp_path / "torch/__init__.py").write_text("\n".join(lines))
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    assert end_of("train_encoder.py", tmp_path, ignore) == (1, "went on\n")


def ended(
    main: Callable[[], int], place: str, number: int, log: Path, before: object = signal.default_int_handler
) -> int:
    """The status of a program that gets the signal when it calls `place`, a function of a module."""

    def prepare() -> None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr = sys.__stderr__
        signal.signal(signal.SIGINT, before)  # type: ignore[arg-type]
        owner, _, name = place.rpartition(".")
        module = sys.modules.get(owner) or getattr(sys.modules[owner.rpartition(".")[0]], owner.rpartition(".")[2])
        called = getattr(module, name)

        def interrupted(*arguments: object, **named: object) -> object:
            os.kill(os.getpid(), number)
            return called(*arguments, **named)

        setattr(module, name, interrupted)

    return forked_commands.exit_status(forked_commands.forked(main, prepare))


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("train_encoder.load_config", signal.SIGINT),
        ("train_encoder.newest_checkpoint", signal.SIGTERM),
        ("training.state.load_release", signal.SIGINT),
        ("codec.codec.start_as_inverse", signal.SIGTERM),
        ("training.dataset.open_sources", signal.SIGINT),
        ("train_encoder.validate", signal.SIGTERM),
    ],
)
def test_a_signal_before_the_first_step_of_a_run_is_one_sentence(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: signal.Signals
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings)])
    assert ended(train_encoder.main, place, number, tmp_path / "log") == 128 + number
    assert (tmp_path / "log").read_text().splitlines()[-1] == "error: interrupted: repeat the command to resume"
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_run_in_the_background_of_a_shell_ignores_ctrl_c(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), "steps=1"])
    assert ended(train_encoder.main, "train_encoder.step_inputs", signal.SIGINT, tmp_path / "log", signal.SIG_IGN) == 0


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_while_a_release_is_changed_is_one_sentence(
    tiny_release: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def main() -> int:
        return inject_encoder.main(["--model-dir", str(tiny_release), "--check"])

    assert ended(main, "inject_encoder.read_release", number, tmp_path / "log") == 128 + number
    expected = "error: interrupted: the release has either the old encoder or the new one: see --check\n"
    assert (tmp_path / "log").read_text() == expected


@pytest.mark.parametrize("number", BOTH)
def test_an_error_that_a_library_makes_of_a_signal_is_an_interruption(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted() -> int:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            raise RuntimeError("a worker died") from error
        return 0

    try:
        assert exit_status(interrupted, "nothing was written") == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "error: interrupted: nothing was written\n"


@pytest.mark.parametrize("handlers", [RaisedSignals, StopRequest])
def test_handlers_are_put_back(handlers: type[RaisedSignals]) -> None:
    before = [signal.getsignal(number) for number in (*BOTH, signal.SIGCHLD)]
    with handlers():
        pass
    assert [signal.getsignal(number) for number in (*BOTH, signal.SIGCHLD)] == before


def test_children_do_not_receive_ctrl_c_and_the_parent_answers_it_afterwards() -> None:
    def start() -> None:
        with children_without_ctrl_c():
            os.kill(os.getpid(), signal.SIGINT)
            child = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
            said.append(subprocess.check_output([sys.executable, "-c", child], text=True))

    said: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == ["True\n"]


SPAWNING = """
import multiprocessing, signal, sys
from system.signals import children_without_ctrl_c

def show():
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=show) for _ in range(2)]
    with children_without_ctrl_c():
        for child in children:
            child.start()
    for child in children:
        child.join()
    show()
"""


def test_children_that_are_spawned_do_not_receive_ctrl_c_either(tmp_path: Path) -> None:
    """With the first of them Python starts a process of its own, and then lets Ctrl-C through again."""
    (tmp_path / "spawning.py").write_text(SPAWNING)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    said = subprocess.check_output([sys.executable, tmp_path / "spawning.py"], text=True, env=environment)
    assert said.split() == ["True", "True", "False"]
