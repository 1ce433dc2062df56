"""Links among a release's files. In a hub's cache they are what the release consists of: each leads to a blob.

Nothing is written through a link: a changed file replaces it. The link is then kept beside the file, as `.NAME.link`.
When the file is to get the blob's content again, it becomes the link again. So the content is not there twice for ever,
and nobody has to know the cache's layout.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_DEPTH = 20  # folders in one another; a release has one level


def kept_link(path: Path) -> Path:
    """Where the link is kept that stood at `path`."""
    return path.with_name(f".{path.name}.link")


def keep_link(path: Path) -> None:
    """Before `path` is replaced or deleted: keeps it if it is a link. Raises OSError."""
    if path.is_symlink():
        partial = path.with_name(f".{path.name}.link.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.readlink())
        partial.replace(kept_link(path))


def leads_out(folder: Path, path: Path) -> bool:
    """Whether a file of a release in `folder` is a link to a file outside of it, which is not a blob of the hub's cache
    that the release lies in."""
    root = Path(os.path.realpath(folder))
    inside = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    target = Path(os.path.realpath(path))
    return not any(target.is_relative_to(place) for place in inside)


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, relative to it, sorted. Links to files are files. Raises OSError, and ValueError for
    what cannot be copied: links to folders and to nothing, pipes, sockets, devices, folders nested too deeply."""
    found: list[Path] = []
    level = [folder]
    for _ in range(MAX_DEPTH):
        inner = []
        for parent in level:
            for path in parent.iterdir():
                if path.is_dir() and not path.is_symlink():
                    inner.append(path)
                elif path.is_file():
                    found.append(path.relative_to(folder))
                else:
                    raise ValueError(f"{path} {_oddity(path)}")
        level = inner
        if not level:
            return sorted(found)
    raise ValueError(f"{level[0]} is nested more than {MAX_DEPTH} folders deep")


def _oddity(path: Path) -> str:
    if not path.is_symlink():
        return "is no file but a pipe, a socket or a device"
    target = path.readlink()
    return f"is a link to a folder, {target}" if path.is_dir() else f"is a link to {target}, which is no file"
