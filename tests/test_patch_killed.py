"""patch_tokenizer.py killed by SIGKILL at any moment: the release loads and serves, and the next run leaves the change
wholly done or not at all.

The command runs in children forked from this process, with everything imported, so that a random moment falls into its
work and not into its start. What the operating system does on a power cut is not simulated here.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mistral_common.protocol.speech.request import SpeechRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

import codec
from experiments.random_release import linked_copy
from release import changes
from release.changes import STATE
from tests import forked_commands, kills
from tests.forked_commands import exit_status
from tests.patching import (
    PRESET,
    clip,
    edit,
    forked,
    make_release,
    patch,
    rows,
    served_voices,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("one_thread")
Snapshot = dict[str, tuple[int, bytes]]


def assert_serves(folder: Path, ends: tuple[Snapshot, Snapshot]) -> None:
    """Without any repair the release loads, the preset is as before, and any other voice is whole or absent."""
    found, voices = snapshot(folder), served_voices(folder)
    assert PRESET in voices
    tokenizer = MistralTokenizer.from_file(folder / "tekken.json")
    for name in voices:
        request = SpeechRequest(input="a", voice=name)
        assert tokenizer.encode_speech_request(request).tokens.count(24) == len(rows(folder, name))
        file = f"voice_embedding/{name}.pt"
        assert found[file] in [end[file] for end in ends if file in end]


def recovered(folder: Path, ends: tuple[Snapshot, Snapshot]) -> int:
    """Runs the command without arguments. Returns which of `ends` the release is then, 0 or 1."""
    assert patch(folder) == 0
    assert not (folder / STATE / "change").exists()
    return ends.index(snapshot(folder))


def test_killed_at_fifty_random_moments_the_voice_is_wholly_there_or_wholly_absent(tmp_path: Path) -> None:
    begin = make_release(tmp_path / "begin")
    command = ("--voice", f"anna={clip(tmp_path / 'a.wav')}")
    end = linked_copy(begin, tmp_path / "end")
    assert patch(end, *command) == 0  # so that all is imported before the forks
    ends = (snapshot(begin), snapshot(end))

    def start(folder: Path) -> kills.Start:
        return lambda first: forked(folder, *command, first=first)

    undisturbed = start(linked_copy(begin, tmp_path / "undisturbed"))
    for number, moment in enumerate(kills.moments(undisturbed, changes, "change", (12, 28, 10))):
        folder = linked_copy(begin, tmp_path / str(number))
        kills.kill(start(folder), changes, "change", moment)
        assert_serves(folder, ends)
        assert codec.load_release(folder).has_encoder
        begun = changes.interrupted(folder) or snapshot(folder) == ends[1]
        assert moment.part != kills.BEFORE or not begun
        assert moment.part != kills.AFTER or begun
        assert recovered(folder, ends) == begun
        shutil.rmtree(folder)
    assert (snapshot(begin), snapshot(end)) == ends, "something was written in place"


def bare(release: Path, path: Path) -> None:
    """Changes nothing."""


def with_anna(release: Path, path: Path) -> None:
    assert patch(release, "--voice", f"anna={path}") == 0


def with_anna_replaced(release: Path, path: Path) -> None:
    assert patch(release, "--voice", f"anna={path}") == 0
    assert patch(release, "--voice", f"anna={path},{path}") == 0


SCENES: list[tuple[Callable[[Path, Path], None], str]] = [
    (bare, "--voice anna=CLIP"),
    (with_anna, "--voice anna=CLIP,CLIP"),
    (with_anna, "--remove anna"),
    (with_anna_replaced, "--undo"),
]


@pytest.mark.parametrize(("scene", "command"), SCENES, ids=lambda part: getattr(part, "__name__", part))
def test_killed_before_any_of_its_steps_on_disk_the_change_is_done_or_not(
    tmp_path: Path, scene: Callable[[Path, Path], None], command: str
) -> None:
    path = clip(tmp_path / "a.wav", 1.5)
    begin = make_release(tmp_path / "begin")
    scene(begin, path)
    arguments = command.replace("CLIP", str(path)).split()
    end = linked_copy(begin, tmp_path / "end")
    assert patch(end, *arguments) == 0
    ends = (snapshot(begin), snapshot(end))
    reached = []
    while True:
        folder = linked_copy(begin, tmp_path / "killed")
        status = exit_status(forked(folder, *arguments, first=partial(kills.killed_before_disk_change, len(reached))))
        assert_serves(folder, ends)
        changes.recover(folder)
        assert not (folder / STATE / "change").exists()
        reached.append(ends.index(snapshot(folder)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        shutil.rmtree(folder)
    assert reached == sorted(reached), "a change once begun was given up"
    assert {0, 1} == set(reached)
    assert len(reached) > 15


def test_killed_while_it_recovers_the_next_run_recovers(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.wav", 1.5)
    begin = make_release(tmp_path / "begin")
    end = linked_copy(begin, tmp_path / "end")
    assert patch(end, "--voice", f"anna={path}") == 0
    ends = (snapshot(begin), snapshot(end))
    half = half_done(begin, tmp_path, path)
    number, status = 0, -signal.SIGKILL
    while status:
        folder = linked_copy(half, tmp_path / "again")
        status = exit_status(forked(folder, first=partial(kills.killed_before_disk_change, number)))
        assert status in (0, -signal.SIGKILL)
        assert_serves(folder, ends)
        changes.recover(folder)
        assert snapshot(folder) == ends[1]
        shutil.rmtree(folder)
        number += 1
    assert number > 5


def half_done(begin: Path, scratch: Path, path: Path) -> Path:
    """A release in which a run that adds the voice anna was killed: its journal is written, no step is taken."""
    folder = linked_copy(begin, scratch / "half")
    assert exit_status(forked(folder, "--voice", f"anna={path}", first=killed_before_it_finishes)) == -signal.SIGKILL
    assert changes.interrupted(folder)
    return folder


def killed_before_it_finishes() -> None:
    """This process will be killed when its journal is written and no step is taken."""
    changes._finish = lambda folder: os.kill(os.getpid(), signal.SIGKILL)


def test_check_and_list_leave_an_interrupted_change_alone_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = half_done(make_release(tmp_path / "begin"), tmp_path, clip(tmp_path / "a.wav"))
    before = snapshot(half)
    for argument in ("--check", "--list"):
        assert patch(half, argument) == 0
        assert "a change was interrupted" in capsys.readouterr().out
        assert (snapshot(half), changes.interrupted(half)) == (before, True)


def test_an_interrupted_change_is_not_finished_over_what_somebody_else_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = half_done(make_release(tmp_path / "begin"), tmp_path, clip(tmp_path / "a.wav"))
    edit(half / "params.json", lambda params: params.update(rope_theta=1.0))
    before = snapshot(half)
    assert patch(half) == 2
    assert "params.json was changed since by something else" in capsys.readouterr().err
    assert snapshot(half) == before


def test_killed_while_links_come_back_the_next_run_brings_them_back(tmp_path: Path) -> None:
    """In a hub's cache the files of a release are links."""

    def changed(folder: Path, *contents: bytes) -> int:
        changes.change(folder, [(changes.PARAMS, content) for content in contents])
        return 0

    (tmp_path / "blob").write_bytes(b"blob")
    number, status = 0, -signal.SIGKILL
    while status:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / changes.PARAMS).symlink_to(tmp_path / "blob")
        changed(folder, b"one", b"two")
        first = partial(kills.killed_before_disk_change, number)
        status = exit_status(forked_commands.forked(lambda: changed(folder, b"three", b"blob"), first))  # noqa: B023
        assert (folder / changes.PARAMS).read_bytes() in (b"two", b"three", b"blob")
        changes.recover(folder)
        path = folder / changes.PARAMS
        assert path.readlink() == tmp_path / "blob" if path.is_symlink() else path.read_bytes() == b"two"
        number += 1
    assert path.is_symlink()
    assert number > 20
