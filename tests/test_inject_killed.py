"""inject_encoder.py killed by SIGKILL at any moment: the release is as it was or as asked for, and the next run deletes
what is left over.

The command runs in children forked from this process, with everything imported, so that a random moment falls into its
work and not into its start. What the operating system does on a power cut is not simulated here.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

import codec
import inject_encoder
from experiments.random_release import TINY, linked_copy, write_release
from tests import kills
from tests.forked_commands import exit_status
from tests.injecting import (
    INDEX,
    OWN,
    Case,
    forked,
    inject,
    make_case,
    read_encoder,
    same,
    served,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE = replace(TINY, dim=256, hidden_dim=1024, head_dim=64, n_heads=4, n_kv_heads=4)  # an encoder of 20 MB


def state(folder: Path, old: dict[str, Tensor], new: dict[str, Tensor]) -> str:
    """Which of the two the server would load. Fails if it is neither."""
    codec.load_release(folder)
    tensors = served(folder)
    if same(tensors, new):
        return "new"
    assert same(tensors, old)
    return "old"


@pytest.mark.parametrize("command", ["", "--merge", "--remove"])
def test_killed_at_fifty_random_moments_the_release_is_old_or_new(tmp_path: Path, command: str) -> None:
    case = make_case(tmp_path, config=WIDE, megabytes=15)
    bare = snapshot(case.release)
    begin = linked_copy(case.release, tmp_path / "begin")
    if command == "--remove":
        assert inject(begin, "--merge", "--encoder", case.encoder) == 0
    end = linked_copy(begin, tmp_path / "end")
    assert inject(end, "--encoder", case.encoder, *command.split()) == 0  # so that all is imported before the forks
    before, old, new = snapshot(begin), served(begin), served(end)

    def start(folder: Path) -> kills.Start:
        return lambda first: forked(folder, "--encoder", case.encoder, *command.split(), first=first)

    undisturbed = start(linked_copy(begin, tmp_path / "undisturbed"))
    left_over = 0
    for number, moment in enumerate(kills.moments(undisturbed, inject_encoder, "apply", (10, 30, 10))):
        folder = linked_copy(begin, tmp_path / str(number))
        kills.kill(start(folder), inject_encoder, "apply", moment)
        found = state(folder, old, new)
        assert moment.part != kills.BEFORE or found == "old"
        assert moment.part != kills.AFTER or found == "new"
        if any(path.name.startswith(".") for path in folder.iterdir()):
            left_over += 1
            assert inject(folder, "--remove") == 0
            assert snapshot(folder) == bare
        shutil.rmtree(folder)
    assert left_over >= 3, "hardly a kill fell into the writing"
    assert snapshot(begin) == before, "something was written in place"


def whole(case: Case) -> Path:
    """The whole codec, with its encoder, spread over as many shards as the release."""
    shards = len(list(case.release.glob("consolidated*.safetensors")))
    return write_release(case.release.parent / "whole", case.codec, shards=shards)


def bare(case: Case) -> Path:
    return case.release


def with_own(case: Case) -> Path:
    assert inject(case.release, "--encoder", case.other) == 0
    return case.release


def with_merged(case: Case) -> Path:
    assert inject(case.release, "--merge", "--encoder", case.other) == 0
    return case.release


def with_both(case: Case) -> Path:
    """What --merge leaves if it is killed before its last steps: the index still lists the encoder's own file."""
    assert inject(case.release, "--encoder", case.other) == 0
    index = (case.release / INDEX).read_bytes() if (case.release / INDEX).exists() else None
    assert inject(case.release, "--merge", "--encoder", case.encoder) == 0
    shutil.copy(case.other, case.release / OWN)
    if index:
        (case.release / INDEX).write_bytes(index)
    return case.release


def with_own_unlisted(case: Case) -> Path:
    """What the default form leaves, on a merged encoder, if it is killed before it writes the index."""
    assert inject(case.release, "--merge", "--encoder", case.encoder) == 0
    shutil.copy(case.other, case.release / OWN)
    return case.release


IN_SHARDS: list[tuple[Callable[[Case], Path], str]] = [
    (bare, ""),
    (with_own, ""),
    (bare, "--merge"),
    (with_own, "--merge"),
    (with_merged, "--merge"),
    (with_both, "--merge"),
    (with_own_unlisted, "--merge"),
    (whole, "--merge"),
    (with_own, "--remove"),
    (with_merged, "--remove"),
    (with_both, "--remove"),
    (with_own_unlisted, "--remove"),
    (whole, "--remove"),
]
IN_ONE_FILE = [(bare, ""), (with_own, "--merge"), (with_both, "--remove")]  # without an index there are fewer states


@pytest.mark.parametrize(
    ("shards", "scene", "command"),
    [(3, *each) for each in IN_SHARDS] + [(1, *each) for each in IN_ONE_FILE],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_killed_before_any_of_its_steps_on_disk_the_release_is_old_or_new(
    tmp_path: Path, shards: int, scene: Callable[[Case], Path], command: str
) -> None:
    case = make_case(tmp_path, shards)
    begin = scene(case)
    end = linked_copy(begin, tmp_path / "end")
    assert inject(end, "--encoder", case.encoder, *command.split()) == 0
    old, new, wanted = served(begin), served(end), snapshot(end)
    states = []
    while True:
        folder = linked_copy(begin, tmp_path / "killed")
        child = forked(
            folder,
            "--encoder",
            case.encoder,
            *command.split(),
            first=partial(kills.killed_before_disk_change, len(states)),
        )
        status = exit_status(child)
        states.append(state(folder, old, new))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        # The same command again finishes the work.
        assert inject(folder, "--encoder", case.encoder, *command.split()) == 0
        assert snapshot(folder) == wanted
        shutil.rmtree(folder)
    assert len(states) >= 3
    assert states == sorted(states, reverse=True), "the new state once reached was lost again"
    assert states[-1] == "new"


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    before, output = snapshot(case.release), tmp_path / "new"
    arguments = ("--merge", "--encoder", case.encoder, "--output", output)
    number = 0
    while True:
        status = exit_status(forked(case.release, *arguments, first=partial(kills.killed_before_disk_change, number)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if output.exists():  # it was renamed, but the folder above was not yet forced to the disk
            shutil.rmtree(output)
        number += 1
    assert number > 3
    assert inject(output, "--check") == 0
    assert same(
        {n: t for n, t in served(output).items() if n in read_encoder(case.encoder)[0]}, read_encoder(case.encoder)[0]
    )
    assert snapshot(case.release) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
