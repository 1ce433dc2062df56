"""Files and folders written whole, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from system.files import folder_written_whole, write_whole, written_whole
from tests.forked_commands import exit_status, forked


def test_a_file_is_replaced_by_a_whole_one_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "one")
    write_whole(path, "two, ë")
    assert path.read_text(encoding="utf-8") == "two, ë"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "names", "caf\udce9.wav")
    assert (tmp_path / "names").read_text(encoding="utf-8") == r"caf\udce9.wav"


def test_nothing_is_written_through_a_link_that_waits_in_a_strangers_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/.file.partial").symlink_to(tmp_path / "mine/file")
    (tmp_path / "theirs/.folder.partial").symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "theirs/file", "theirs")
    with folder_written_whole(tmp_path / "theirs/folder") as partial:
        (partial / "file").write_text("theirs")
    assert (tmp_path / "mine/file").read_text() == "mine"
    assert [(tmp_path / "theirs" / name).read_text() for name in ("file", "folder/file")] == ["theirs", "theirs"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_whose_writing_fails_is_as_it_was(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with written_whole(path, shared) as partial:
            partial.write_text("half")
            raise ValueError("writing failed")

    with pytest.raises(ValueError, match="writing failed"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_may_write_a_shared_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with written_whole(path, shared=True) as one, written_whole(path, shared=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last to end
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all_and_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def write(killed: bool) -> int:
        with folder_written_whole(path) as partial:
            (partial / "file").write_text("whole")
            if killed:
                (partial / "half").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert exit_status(forked(lambda: write(killed=True))) == -signal.SIGKILL
    assert not path.exists()
    write(killed=False)
    assert list(tmp_path.iterdir()) == [path]
    assert [file.name for file in path.iterdir()] == ["file"]


def test_the_plumbing_of_all_programs_is_imported_without_torch() -> None:
    modules = "system.command, system.environment, system.files, system.signals"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
