"""One run at a time in an OUTPUT_DIR: two would overwrite each other's metrics, encoder and checkpoints.

Rank 0 holds a lock of the operating system on `OUTPUT_DIR/.lock` (a POSIX record lock, which NFS passes on to its
server). The system releases it when the process ends, however it ends, and forked workers do not inherit it. So a run
that resumes after a kill need not wait.

Some network disks have locks within each machine only, or none. So `OUTPUT_DIR/.lock.holder` says who holds the lock,
and the holder renews that file's time every few seconds. Whoever finds another machine's file on a network disk watches
for a while whether it is still renewed. docs/training.md says on which disks this was tried.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from system.command import UserError
from system.files import written_whole
from system.untrusted import parse_json, read_file, require_own_place
from training.distributed import Ranks

LOCK, HOLDER = ".lock", ".lock.holder"
# what a run writes into or appends to; it replaces its other files
WRITTEN_INTO = (
    *(LOCK, "metrics.jsonl", "skipped_clips.txt", "kept_clips.txt"),
    *("checkpoints", "tensorboard", "release", "release_best"),
)
RENEWED = 4.0  # seconds between two renewals
WATCHED = 15.0  # a holder that is not renewed for this many seconds is dead
SETTLED = 2.0  # seconds after which all machines see the same file on a network disk
MAX_HOLDER = 10_000  # bytes of the holder's file
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
OWN_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay")  # of one machine

Holder = Mapping[str, str]


class OutputInUseError(UserError):
    """Another run writes into the OUTPUT_DIR. The message says which one."""


@contextmanager
def sole_run(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Makes the folder and locks it for a run: rank 0 does, for all ranks. Raises OutputInUseError if another run has
    locked it, and OSError if the folder cannot be written to, or if a file or folder in it leads out of it."""
    if not ranks.main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN_INTO:
        require_own_place(folder / name)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        locked = _lock(handle, folder)
        _refuse_if_alive(folder, locked)
        mine = _this_run()
        with written_whole(folder / HOLDER, shared=True, durable=False) as partial:
            partial.write_text(json.dumps(mine), encoding="utf-8")
        # Where the lock may not hold between machines: of runs that start in the same moment, the last to write goes on
        if not locked or not _is_own_disk(folder):
            time.sleep(SETTLED)
            if _holder(folder) != mine:
                raise OutputInUseError(_refusal(folder))
        with _renewed(folder / HOLDER):
            yield
    finally:
        os.close(handle)  # and with it the lock


def _lock(handle: int, folder: Path) -> bool:
    """Takes the system's lock. Returns whether this disk has locks. Raises OutputInUseError if another process has
    it."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            time.sleep(0.3)  # a run that has just begun needs a moment to write who it is
            raise OutputInUseError(_refusal(folder)) from None
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _refuse_if_alive(folder: Path, locked: bool) -> None:
    """Raises OutputInUseError if a run that the lock does not show is alive: one on another machine, or on a disk
    without locks."""
    holder = _holder(folder)
    if not holder or (locked and (holder.get("machine") == _machine() or _is_own_disk(folder))):
        return
    if holder.get("processes") == _processes() and not Path(f"/proc/{holder.get('pid')}").exists():
        return
    print(
        f"{_described(holder)} has not left {folder} in the ordinary way: watching for {WATCHED:.0f} s whether it runs",
        file=sys.stderr,
        flush=True,
    )
    seen, ends = _time(folder), time.monotonic() + WATCHED
    while time.monotonic() < ends:
        time.sleep(min(1.0, WATCHED / 5))
        if not _holder(folder):  # it has ended
            return
        if _time(folder) != seen:
            raise OutputInUseError(_refusal(folder))


@contextmanager
def _renewed(path: Path) -> Iterator[None]:
    """Renews the time of a file while the block runs, and then deletes the file."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED):
            with suppress(OSError):  # a disk that fails for a while is no reason to stop
                os.utime(path)

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            path.unlink()


def _this_run() -> Holder:
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return {
        "pid": str(os.getpid()),
        "host": socket.gethostname(),
        "job": "" if job == "none" else job,
        "started": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "processes": _processes(),
        "token": secrets.token_hex(8),
    }


def _holder(folder: Path) -> Holder:
    """What the holder's file says: empty if there is none, or nobody can make sense of it."""
    try:
        found = parse_json(read_file(folder / HOLDER, MAX_HOLDER))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value)[:200] for key, value in found.items()} if isinstance(found, dict) else {}


def _time(folder: Path) -> int:
    """When the holder's file was renewed, in ns. Opening a file makes NFS ask its server."""
    try:
        with (folder / HOLDER).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _described(holder: Holder) -> str:
    if not holder:
        return "another run"
    job = f" of job {holder['job']}" if holder.get("job") else ""
    return f"a run{job} (process {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')})"


def _refusal(folder: Path) -> str:
    return (
        f"output_dir {folder} is in use by {_described(_holder(folder))}: wait until it ends, stop it, or choose "
        "another output_dir"
    )


def _machine() -> str:
    """The same for all processes on one running kernel, also in containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _processes() -> str:
    """The same for all processes that see each other's process numbers."""
    try:
        return f"{_machine()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_own_disk(folder: Path) -> bool:
    """Whether the folder is on a disk that no other machine writes to."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return True
    place, longest, kind = str(folder.resolve()), "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(longest):
            longest, kind = point, after.split()[0]
    return kind in OWN_DISKS
