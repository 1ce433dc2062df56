"""Files and folders written whole: they are written beside their place, forced to the disk and renamed. Whoever looks
finds the old one or the new one, never half of one, also after `kill -9`."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path, shared: bool = False, durable: bool = True) -> Iterator[Path]:
    """Yields a path beside `path` to write the file to. When the block ends without an exception, the file is forced to
    the disk and renamed to `path`, which it replaces. Otherwise it is deleted, and `path` stays as it is.

    The path beside is `.NAME.partial`, so the next run overwrites what a killed one left. With `shared` it is another
    one in every call: several processes may write the same file at once. Without `durable` nothing is forced to the
    disk: after a power cut the file may be damaged. Raises OSError."""
    unique = f".{secrets.token_hex(4)}" if shared else ""
    partial = path.with_name(f".{path.name}{unique}.partial")
    try:
        partial.unlink(missing_ok=True)  # in a stranger's folder it may be a link, which we would write through
        yield partial
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)
    finally:
        with suppress(OSError):  # a folder that takes no file has none to delete
            partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder `.NAME.partial` beside `path`. When the block ends without an exception, the folder is
    renamed to `path`, which must not exist by then, or be an empty folder. Otherwise it is deleted. The block has to
    `sync` what it writes. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if partial.is_symlink():
            partial.unlink()
        if partial.exists():  # a killed run left it
            shutil.rmtree(partial)
        partial.mkdir()
        yield partial
        sync(partial)
        partial.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 by `written_whole`. A path in it that is no UTF-8 is written with escapes. Raises
    OSError."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync(path: Path) -> None:
    """Forces a file's content to the disk; or a folder's entries, and so the renames in it. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot do this for a folder
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)
