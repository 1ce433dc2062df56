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
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from codec.config import ReleaseError
from release.splice import explain_os_error, require_room, write_verified
from system.files import sync

STATE = ".patch_tokenizer"
_CHANGE, _UNDO, _JOURNAL = "change", "undo", "journal.json"

Content = bytes | None  # None: no file
Replacement = tuple[str, Content]  # a path within the release, and the content it gets


def read(folder: Path, target: str) -> Content:
    """A file's bytes, or None if there is no file. Raises ReleaseError if it cannot be read."""
    with explain_os_error("read", folder / target):
        try:
            return (folder / target).read_bytes()
        except FileNotFoundError:
            return None


def change(folder: Path, steps: Sequence[Replacement], undoable: bool = True) -> None:
    """Takes the steps in their order. Raises ReleaseError if that fails. Unless the message says otherwise, nothing has
    changed. A change that is not `undoable` also makes the change before it impossible to undo."""
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
        journal: dict[str, Any] = {"undoable": undoable, "steps": [], "old": {}}
        for number, (target, content) in enumerate(steps):
            _keep(folder, target, content, work / "new" / str(number))
            journal["steps"].append({"target": target, "sha256": _digest(content)})
        for number, (target, content) in enumerate(old.items()):
            _keep(folder, target, content, work / "old" / str(number))
            journal["old"][target] = _digest(content)
        draft = work / f"{_JOURNAL}.partial"
        write_verified(draft, json.dumps(journal, indent=1).encode(), like=folder / "params.json")
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
    """Whether a killed run left a change unfinished."""
    return (folder / STATE / _CHANGE / _JOURNAL).is_file()


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
    if not (record / _JOURNAL).is_file():
        raise ReleaseError(f"{folder} has no change to undo: patch_tokenizer.py keeps only the last one")
    journal = _journal(record)
    after = {step["target"]: step["sha256"] for step in journal["steps"]}
    for target, digest in after.items():
        if _digest(read(folder, target)) != digest:
            raise ReleaseError(f"{folder / target} was changed since by something else: undo that first")
    before = {}
    for number, (target, digest) in enumerate(journal["old"].items()):
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
    known: dict[str, set[str | None]] = {target: {digest} for target, digest in journal["old"].items()}
    for step in journal["steps"]:
        known[step["target"]].add(step["sha256"])
    for target, digests in known.items():
        if _digest(read(folder, target)) not in digests:
            raise ReleaseError(
                f"a change of {folder} was interrupted, and {target} was changed since by something else: restore it, "
                f"or delete {work} to give up that change"
            )
    outcome = "run the command again to finish: the release can be served meanwhile"
    for number, step in enumerate(journal["steps"]):
        target, new = folder / step["target"], work / "new" / str(number)
        with explain_os_error("replace", target, outcome):
            if step["sha256"] is None:
                target.unlink(missing_ok=True)
            elif new.exists():  # otherwise a run before this one renamed it
                target.parent.mkdir(exist_ok=True)
                new.rename(target)
            # Before the next step, so that a power cut cannot keep a later step and lose an earlier one.
            if target.parent.is_dir():
                sync(target.parent)
    with explain_os_error("write", work, outcome):
        if undo.exists():
            shutil.rmtree(undo)
        if journal["undoable"]:
            work.rename(undo)
            sync(undo.parent)
        else:
            (work / _JOURNAL).unlink()
            _tidy(folder)


def _tidy(folder: Path) -> None:
    """Deletes a change that has no journal, and the folder `.patch_tokenizer` if it is empty then."""
    shutil.rmtree(folder / STATE / _CHANGE, ignore_errors=True)
    with suppress(OSError):
        (folder / STATE).rmdir()


def _keep(folder: Path, target: str, content: Content, path: Path) -> None:
    """Writes `content` to `path`, with the permissions of `target`, or of params.json if there is no such file."""
    if content is not None:
        there = folder / target
        write_verified(path, content, like=there if there.exists() else folder / "params.json")


def _digest(content: Content) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _journal(work: Path) -> Mapping[str, Any]:
    path = work / _JOURNAL
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReleaseError(
            f"{path} is damaged ({error}): delete {work}, then look at the release with --check"
        ) from error
