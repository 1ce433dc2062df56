"""Changes several small files of a release together or not at all, and changes them back.

The work is done in `.patch_tokenizer/` inside the release and ends in renames:

    change/new/, change/old/   the new files and copies of the files they replace, read back after writing
    change/journal.json        the steps in their order; as soon as it exists, the change will be finished
    undo/                      the last change's folder, renamed: it holds what that change replaced

A run that is killed before the journal exists has changed nothing. One that is killed later has done some of the steps;
the next run does the others (`recover`). The caller orders the steps so that the release can be served between any two
of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codec.config import ReleaseError
from codec.files import shortened
from release.links import keep_link, kept_link
from release.splice import explain_os_error, holds, require_room, write_verified
from system.files import sync
from system.untrusted import parse_json, read_file

STATE = ".patch_tokenizer"
PARAMS, TEKKEN, EMBEDDINGS, ADDED = "params.json", "tekken.json", "voice_embedding", f"{STATE}/voices.json"
MAX_BYTES = 64 << 20  # of any of these files; a tokenizer has 19 MB
_CHANGE, _UNDO, _JOURNAL = "change", "undo", "journal.json"
_MAX_JOURNAL = 1 << 20  # bytes
_DIGEST = re.compile("[0-9a-f]{64}")

Content = bytes | None  # None: no file
Replacement = tuple[str, Content]  # a path within the release, and the content it gets


@dataclass(frozen=True)
class Journal:
    """The steps of a change in their order, and what its targets held before: SHA-256 digests, None for no file."""

    undoable: bool
    steps: list[tuple[str, str | None]]
    old: dict[str, str | None]


def embedding_path(name: str) -> str:
    return f"{EMBEDDINGS}/{name}.pt"


def is_file_name(name: str) -> bool:
    """Whether a name, which may come from anyone, is a file name and so stays in its folder."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & {"/", "\\"}


def is_target(path: str) -> bool:
    """Whether a change may write or delete this path of a release: one of the files that describe its voices."""
    name = path.removeprefix(f"{EMBEDDINGS}/").removesuffix(".pt")
    return path in (PARAMS, TEKKEN, ADDED) or (path == embedding_path(name) and is_file_name(name))


def read(folder: Path, target: str) -> Content:
    """A file's bytes, or None if there is no file. Raises ReleaseError if it cannot be read."""
    with explain_os_error("read", folder / target):
        try:
            return read_file(folder / target, MAX_BYTES)
        except FileNotFoundError:
            return None


def change(folder: Path, steps: Sequence[Replacement], undoable: bool = True) -> None:
    """Takes the steps in their order. Raises ReleaseError if that fails. Unless the message says otherwise, nothing has
    changed. A change that is not `undoable` also makes the change before it impossible to undo."""
    _require_own_folders(folder)
    work = folder / STATE / _CHANGE
    targets = dict.fromkeys(target for target, _ in steps)
    old = {target: read(folder, target) for target in targets}
    require_room(folder, sum(len(content or b"") for content in [*old.values(), *(new for _, new in steps)]))
    try:
        with explain_os_error("write", folder / STATE):
            (folder / STATE).mkdir(exist_ok=True)
        with explain_os_error("write", work):
            for part in ("new", "old"):
                (work / part).mkdir(parents=True)
        journal = Journal(undoable, [], {})
        for number, (target, content) in enumerate(steps):
            _keep(folder, target, content, work / "new" / str(number))
            journal.steps.append((target, _digest(content)))
        for number, (target, content) in enumerate(old.items()):
            _keep(folder, target, content, work / "old" / str(number))
            journal.old[target] = _digest(content)
        draft = work / f"{_JOURNAL}.partial"
        write_verified(draft, _journal_text(journal), like=folder / "params.json")
        with explain_os_error("write", work):
            for made in (work / "new", work / "old", work, work.parent, folder):
                sync(made)
            draft.rename(work / _JOURNAL)
            sync(work)
    except ReleaseError:
        _tidy(folder)
        raise
    _finish(folder)


def interrupted(folder: Path) -> bool:
    """Whether a killed run left a change unfinished. Raises ReleaseError if what it left is not what this program
    writes."""
    _require_own_folders(folder)
    work = folder / STATE / _CHANGE
    if not (work / _JOURNAL).is_file():
        return False
    _journal(work)
    return True


def recover(folder: Path) -> bool:
    """Finishes the change of a killed run if its journal exists, else deletes what the run prepared. Returns whether it
    finished a change. Raises ReleaseError if something else has changed the files since."""
    if interrupted(folder):
        _finish(folder)
        return True
    if (folder / STATE / _CHANGE).exists():
        _tidy(folder)
    return False


def last_change(folder: Path) -> dict[str, Content]:
    """Path -> content that the last change replaced. Raises ReleaseError if there is no change to undo, or if a file is
    not as the change left it."""
    record = folder / STATE / _UNDO
    _require_own_folders(folder)
    if not (record / _JOURNAL).is_file():
        raise ReleaseError(f"{folder} has no change to undo: patch_tokenizer.py keeps only the last one")
    journal = _journal(record)
    for target, digest in dict(journal.steps).items():
        if _digest(read(folder, target)) != digest:
            raise ReleaseError(f"{folder / target} was changed since by something else: undo that first")
    before = {}
    for number, (target, digest) in enumerate(journal.old.items()):
        before[target] = read(record, f"old/{number}")
        if _digest(before[target]) != digest:
            raise ReleaseError(
                f"{record} is damaged: its copy of {target} is not what was there; download that file again"
            )
    return before


def _finish(folder: Path) -> None:
    """Takes the journal's steps that are not done yet. Taking a step twice does no harm."""
    work, undo = folder / STATE / _CHANGE, folder / STATE / _UNDO
    journal = _journal(work)
    known: dict[str, set[str | None]] = {target: {digest} for target, digest in journal.old.items()}
    for name, digest in journal.steps:
        known[name].add(digest)
    for name, digests in known.items():
        if _digest(read(folder, name)) not in digests:
            raise ReleaseError(
                f"a change of {folder} was interrupted, and {name} was changed since by something else: restore it, "
                f"or delete {work} to give up that change"
            )
    for number, (name, digest) in enumerate(journal.steps):
        new = work / "new" / str(number)
        if new.is_symlink() or _digest(read(work, f"new/{number}")) not in (digest, None):
            raise ReleaseError(f"{new} is not what {name} was to become: delete {work} to give up that change")
    outcome = "run the command again to finish: the release can be served meanwhile"
    for number, (name, digest) in enumerate(journal.steps):
        target, new = folder / name, work / "new" / str(number)
        with explain_os_error("replace", target, outcome):
            if digest is None:
                keep_link(target)
                target.unlink(missing_ok=True)
            elif new.exists():  # otherwise a run before this one renamed it
                target.parent.mkdir(exist_ok=True)
                _put(new, target)
            # Before the next step, so that a power cut cannot keep a later step and lose an earlier one.
            if target.parent.is_dir():
                sync(target.parent)
    with explain_os_error("write", work, outcome):
        if undo.exists():
            _delete(undo)
        if journal.undoable:
            work.rename(undo)
            sync(undo.parent)
        else:
            (work / _JOURNAL).unlink()
            _tidy(folder)


def _tidy(folder: Path) -> None:
    """Deletes a change that has no journal, and the folder `.patch_tokenizer` if it is empty then."""
    with suppress(OSError):
        _delete(folder / STATE / _CHANGE)
    with suppress(OSError):
        (folder / STATE).rmdir()


def _keep(folder: Path, target: str, content: Content, path: Path) -> None:
    """Writes `content` to `path`, with the permissions of `target`, or of params.json if there is no such file."""
    if content is not None:
        there = folder / target
        write_verified(path, content, like=there if there.exists() else folder / "params.json")


def _digest(content: Content) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _put(new: Path, target: Path) -> None:
    """Renames `new` to `target`. If a kept link leads to the same content, the link goes there instead."""
    link = kept_link(target)
    if link.is_file() and holds(link, new.read_bytes()):
        link.replace(target)
    if target.is_symlink() and target.is_file() and holds(target, new.read_bytes()):
        new.unlink()
        return
    keep_link(target)
    new.rename(target)


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except RecursionError:
        raise ReleaseError(f"{folder} is nested too deeply to be deleted: delete it yourself") from None


def _require_own_folders(folder: Path) -> None:
    """Raises ReleaseError if a folder that a change writes to is a link or no folder."""
    work, undo = f"{STATE}/{_CHANGE}", f"{STATE}/{_UNDO}"
    for place in (EMBEDDINGS, STATE, work, f"{work}/new", f"{work}/old", undo, f"{undo}/old"):
        path = folder / place
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            what = "a link" if path.is_symlink() else "no folder"
            raise ReleaseError(f"{path} is {what}: replace it by a folder, or delete it; nothing was changed")


def _journal_text(journal: Journal) -> bytes:
    steps = [{"target": target, "sha256": digest} for target, digest in journal.steps]
    return json.dumps(asdict(journal) | {"steps": steps}, indent=1).encode()


def _journal(work: Path) -> Journal:
    """Raises ReleaseError if the file is not a journal, or one of another change than this program makes."""
    path = work / _JOURNAL
    try:
        stated = parse_json(read_file(path, _MAX_JOURNAL))
        return _checked_journal(stated)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReleaseError(
            f"{path} is damaged, or not this program's ({reason}): delete {work}, then look at the release with --check"
        ) from error


def _checked_journal(stated: Any) -> Journal:
    """Raises ValueError for anything that `_journal_text` does not write."""
    if not isinstance(stated, dict) or not isinstance(stated.get("undoable"), bool):
        raise ValueError("it does not say whether the change can be undone")
    steps, old = stated.get("steps"), stated.get("old")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps) or not isinstance(old, dict):
        raise ValueError("it holds no steps")
    pairs = [(step.get("target"), step.get("sha256")) for step in steps]
    for target, digest in [*pairs, *old.items()]:
        if not isinstance(target, str) or not is_target(target):
            raise ValueError(f"it names {shortened(str(target))!r}, no file that describes a voice")
        if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise ValueError(f"it has a wrong digest for {target}")
    if {target for target, _ in pairs} != old.keys():
        raise ValueError("its steps are for other files than it knows the old content of")
    return Journal(stated["undoable"], pairs, old)
