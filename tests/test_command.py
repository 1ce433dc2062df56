"""How programs end."""

from __future__ import annotations

import errno
import io
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import inject_encoder
import patch_tokenizer
from data import DataError
from data.sources import open_clips
from evaluation.measure import named_encoders
from system.command import UserError, exit_status, model_folder
from system.signals import StoppedError

SENTENCES = {
    "the codec is damaged: get it again": (UserError("the codec is damaged: get it again"), 2),
    "a.wav: No such file or directory; nothing was changed": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a.wav"),
        2,
    ),
    "[Errno 28] No space left on device; nothing was changed": (OSError(errno.ENOSPC, "No space left on device"), 2),
    "interrupted: the old file is still there": (KeyboardInterrupt(), 128 + signal.SIGINT),
    "stopped by SIGTERM after step 3, which is saved: repeat the command to resume": (
        StoppedError(signal.SIGTERM, 3),
        128 + signal.SIGTERM,
    ),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_failure_is_one_sentence_and_an_exit_status(sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    failure, status = SENTENCES[sentence]

    def command() -> int:
        raise failure

    assert exit_status(command, "the old file is still there") == status
    assert capsys.readouterr().err.removeprefix("error: ") == sentence + "\n"


FULL = {
    "torch": lambda: torch.empty(2**47),
    "numpy": lambda: np.empty(2**47),
    "Python": lambda: bytearray(2**60),
}


@pytest.mark.parametrize("library", FULL)
def test_full_memory_is_a_sentence_whichever_library_asked_for_it(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: len(FULL[library]()), "", "no speech was written") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the memory is full (")
    assert said.endswith("): end other programs, or use a machine with more; no speech was written\n")


def test_a_bug_is_no_sentence() -> None:
    def command() -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        exit_status(command, "")


def test_the_release_is_the_folder_given_or_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    assert model_folder(None) == tmp_path
    monkeypatch.delenv("MODEL_DIR")
    assert model_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="set MODEL_DIR"):
        model_folder(None)
    with pytest.raises(UserError, match="is not a folder"):
        model_folder(str(tmp_path / "missing"))


NAMES = {  # as it is printed, and in the sentence of an error
    "caf\udce9.wav": (r"caf\udce9.wav", r"caf\xe9.wav"),
    "声.wav": (r"\u58f0.wav", r"\u58f0.wav"),
    "Grüße\x1b[2J": ("Gr\\xfc\\xdfe\x1b[2J", r"Gr\xfc\xdfe\x1b[2J"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test_a_name_that_the_terminal_cannot_show_never_ends_a_program(
    name: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under LANG=C, and in a UTF-8 locale for a file name whose bytes are no UTF-8."""
    shown = io.BytesIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(shown, encoding="ascii", errors="strict", write_through=True))

    def command() -> int:
        if fails:
            raise UserError(name)
        print(name)
        return 0

    assert exit_status(command, "") == (2 if fails else 0)
    assert shown.getvalue().decode("ascii").removeprefix("error: ") == NAMES[name][fails] + "\n"


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells expand a ~ only at the beginning of a word: not in --model-dir=~/release, nor in --voice a-b=~/a.wav."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "release").mkdir()
    assert model_folder("~/release") == tmp_path / "release"
    monkeypatch.setenv("MODEL_DIR", "~/release")
    assert model_folder(None) == tmp_path / "release"
    assert patch_tokenizer.clip_paths("~/a.wav,b.wav") == [f"{tmp_path}/a.wav", "b.wav"]
    assert named_encoders(["new=~/a.safetensors"]) == {"new": f"{tmp_path}/a.safetensors"}
    arguments = inject_encoder.parse(["--encoder=~/a", "--output=~/b", "--merge"])
    assert (arguments.encoder, arguments.output) == (f"{tmp_path}/a", f"{tmp_path}/b")
    with pytest.raises(DataError, match=f"{tmp_path}/speech does not exist"):
        open_clips(["~/speech"])
