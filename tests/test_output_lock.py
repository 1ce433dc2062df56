"""One run at a time in an OUTPUT_DIR, and no run that waits for a dead one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_encoder
from experiments.random_release import TINY, params_json
from tests import forked_commands
from tests.rank_processes import start, statuses
from tests.waiting import until
from training import output_lock
from training.distributed import Ranks
from training.output_lock import HOLDER, WRITTEN_INTO, OutputInUseError, sole_run

ALONE = Ranks(0, 1, torch.device("cpu"))
ELSEWHERE = {"machine": "another", "host": "node7", "pid": "12", "job": "99", "started": "2026-03-01 10:00:00"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEWED", 0.05), ("WATCHED", 1.0), ("SETTLED", 0.5)):
        monkeypatch.setattr(output_lock, name, seconds)


def holding(folder: Path, then: Callable[[], object] = signal.pause) -> int:
    """Starts a process that holds the lock while it calls `then`. Returns its number when it holds the lock."""

    def hold() -> int:
        with sole_run(folder, ALONE):
            held.touch()
            then()
        return 0

    held = folder.with_name("held")
    held.unlink(missing_ok=True)
    child = forked_commands.forked(hold)
    until(held.exists)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def on_a_network_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lock, "_is_own_disk", lambda folder: False)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that has no locks."""
    on_a_network_disk(monkeypatch)

    def refused(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_lock.fcntl, "lockf", refused)


def test_a_second_run_is_refused_with_the_name_of_the_first_which_goes_on_unharmed(
    settings: Path, tmp_path: Path
) -> None:
    """The second command is the same; both write every step."""
    arguments = ["--config", str(settings), "save_every=1"]
    waits = f"""
import pathlib, train_encoder
from tests.waiting import until
step = train_encoder.Trainer.step
def wait(self, waveform, number, *others):
    if number == 2:
        pathlib.Path({str(tmp_path / "inside")!r}).touch()
        until(pathlib.Path({str(tmp_path / "refused")!r}).exists)
    return step(self, waveform, number, *others)
train_encoder.Trainer.step = wait
"""
    first = start(1, arguments, tmp_path / "first", waits)
    until(lambda: (tmp_path / "inside").exists() or first[0].exitcode is not None)
    assert statuses(start(1, arguments, tmp_path / "second")) == [2]
    (tmp_path / "refused").touch()
    assert statuses(first) == [0], (tmp_path / "first").read_text()
    said = (tmp_path / "second").read_text().strip()
    assert said.startswith(
        f"error: output_dir {tmp_path / 'run'} is in use by a run of job tests (process {first[0].pid} on "
    )
    assert said.endswith("wait until it ends, stop it, or choose another output_dir")
    assert "\n" not in said
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "mel" in line] == [1, 2, 3, 4, 5, 6]


def test_ranks_of_one_run_share_its_folder_and_a_second_run_of_ranks_is_refused(settings: Path, tmp_path: Path) -> None:
    child = holding(tmp_path / "run")
    assert statuses(start(2, ["--config", str(settings)], tmp_path / "log")) == [2, 2]
    assert f"is in use by a run (process {child} on" in (tmp_path / "log").read_text()
    kill(child)
    assert statuses(start(2, ["--config", str(settings), "steps=1"], tmp_path / "log")) == [0, 0]


def test_of_runs_that_start_in_the_same_moment_one_goes_on(folder: Path, tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"

    def race() -> int:
        until(go.exists)
        try:
            with sole_run(folder, ALONE):
                until(done.exists)
        except OutputInUseError:
            return 2
        return 0

    children = [forked_commands.forked(race) for _ in range(8)]
    go.touch()
    ended = [os.waitpid(-1, 0)[1] for _ in range(7)]
    done.touch()
    assert {os.waitstatus_to_exitcode(status) for status in ended} == {2}
    assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0
    assert len(children) == 8


def test_a_run_after_a_kill_does_not_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(holding(folder))
    assert (folder / HOLDER).exists()
    monkeypatch.setattr(output_lock, "time", None)  # nothing here may wait
    with sole_run(folder, ALONE):
        pass
    assert [path.name for path in folder.iterdir()] == [output_lock.LOCK]


def test_a_loader_worker_that_outlives_its_killed_run_holds_nothing(folder: Path, tmp_path: Path) -> None:
    def fork_a_worker() -> None:
        worker = forked_commands.forked(lambda: signal.pause() or 0)
        (tmp_path / "worker").write_text(str(worker))
        signal.pause()

    child = holding(folder, fork_a_worker)
    until(lambda: (tmp_path / "worker").exists() and bool((tmp_path / "worker").read_text()))
    kill(child)
    with sole_run(folder, ALONE):
        pass
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_a_folder_is_free_when_its_run_has_ended_or_failed(folder: Path) -> None:
    with pytest.raises(RuntimeError), sole_run(folder, ALONE):
        raise RuntimeError
    assert not (folder / HOLDER).exists()
    kill(holding(folder))


def test_a_run_of_another_machine_on_a_network_disk_is_refused_while_it_lives(
    folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_network_disk(monkeypatch)
    child = holding(folder)
    # this machine's locks do not show it, and its file is renewed
    monkeypatch.setattr(output_lock, "_lock", lambda handle, folder: True)
    entry = json.loads((folder / HOLDER).read_text()) | {"machine": "another", "host": "node7"}
    (folder / HOLDER).write_text(json.dumps(entry))
    with (
        pytest.raises(OutputInUseError, match=rf"is in use by a run \(process {child} on node7, started 20"),
        sole_run(folder, ALONE),
    ):
        pass
    assert "watching for 1 s whether it runs" in capsys.readouterr().err
    kill(child)
    with sole_run(folder, ALONE):
        pass


def test_a_run_of_another_machine_that_is_dead_is_followed_after_a_while(
    folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_network_disk(monkeypatch)
    folder.mkdir()
    (folder / HOLDER).write_text(json.dumps(ELSEWHERE))
    with sole_run(folder, ALONE):
        assert json.loads((folder / HOLDER).read_text())["pid"] == str(os.getpid())


def test_on_a_disk_of_this_machine_another_machines_entry_is_of_the_past(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the machine, or in a new container."""
    monkeypatch.setattr(output_lock, "_is_own_disk", lambda folder: True)
    monkeypatch.setattr(output_lock, "time", None)
    folder.mkdir()
    (folder / HOLDER).write_text(json.dumps(ELSEWHERE))
    with sole_run(folder, ALONE):
        pass


def test_a_disk_without_locks_has_one_run_at_a_time_too(
    folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    child = holding(folder)
    with pytest.raises(OutputInUseError, match=f"process {child} on"), sole_run(folder, ALONE):
        pass
    kill(child)


@pytest.mark.parametrize("locks", ["none", "of each machine"])
def test_where_locks_do_not_hold_between_machines_the_last_to_write_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    """Both look for a holder before either writes that it is one."""
    without_locks(monkeypatch)
    if locks != "none":
        monkeypatch.setattr(output_lock, "_lock", lambda handle, folder: True)
    overtaken = SimpleNamespace(sleep=lambda seconds: (folder / HOLDER).write_text(json.dumps(ELSEWHERE)))
    monkeypatch.setattr(output_lock, "time", overtaken)
    with pytest.raises(OutputInUseError, match="process 12 on node7, started"), sole_run(folder, ALONE):
        pass
    assert json.loads((folder / HOLDER).read_text()) == ELSEWHERE


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\0" * 100, b"\xff", b"[" * 5000, b'{"pid": {}}'])
def test_a_damaged_entry_is_no_run(folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    on_a_network_disk(monkeypatch)
    folder.mkdir()
    (folder / HOLDER).write_bytes(content)
    with sole_run(folder, ALONE):
        pass


def test_the_holder_renews_its_entry(folder: Path, quick: None) -> None:
    with sole_run(folder, ALONE):
        before = (folder / HOLDER).stat().st_mtime_ns
        until(lambda: (folder / HOLDER).stat().st_mtime_ns != before)


@pytest.mark.parametrize(
    ("path", "own"),
    [("/data/run", False), ("/data/my disk/run", True), ("/database", True), ("/home", True), ("/data", False)],
)
def test_the_kind_of_a_disk_is_that_of_the_nearest_mount(monkeypatch: pytest.MonkeyPatch, path: str, own: bool) -> None:
    lines = (
        "1 0 0:1 / / rw - overlay overlay rw",
        "2 1 0:2 / /data rw,noatime shared:2 - nfs4 server:/data rw,vers=4.2",
        r"3 2 0:3 / /data/my\040disk rw - ext4 /dev/sda rw",
    )
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: "\n".join(lines) if self.name == "mountinfo" else read(self, **how)
    )
    assert output_lock._is_own_disk(Path(path)) == own


@pytest.mark.parametrize("train", ["encoder", "codec"])
def test_files_of_a_run_that_are_links_are_replaced(
    settings: Path, tmp_path: Path, train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a run leaves but what it writes into: that is refused, as the next test shows."""
    (tmp_path / "params.json").write_text(json.dumps(params_json(TINY)))
    arguments = ["train_encoder.py", "--config", str(settings), f"train={train}", f"params={tmp_path / 'params.json'}"]
    monkeypatch.setattr(sys, "argv", [*arguments, "losses.shaping=0", "steps=1"])
    assert train_encoder.main() == 0
    folder, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(folder, outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    links = [path for path in folder.iterdir() if path.name not in WRITTEN_INTO]
    assert {"config.yaml", "encoder.safetensors"} <= {path.name for path in links}
    for path in links:
        path.unlink()
        path.symlink_to(outside / path.name)
    monkeypatch.setattr(sys, "argv", [*arguments, "losses.shaping=0", "steps=2"])
    assert train_encoder.main() == 0
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", WRITTEN_INTO)
def test_a_link_or_a_pipe_in_the_folder_of_a_run_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    folder.mkdir()
    makes = {
        "is a link": lambda: (folder / name).symlink_to(tmp_path / "new"),
        "is no file but a pipe": lambda: os.mkfifo(folder / name),
    }
    for expected, make in makes.items():
        make()
        with pytest.raises(OSError, match=expected), sole_run(folder, ALONE):
            pass
        (folder / name).unlink()
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file/run", "Not a directory")):
        monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), f"output_dir={path}"])
        assert train_encoder.main() == 2
        assert capsys.readouterr().err.strip() == f"error: {path}: {reason}"
