"""Small files of a release changed together or not at all, and changed back.

Everything happens in `.patch_tokenizer/` inside the release and ends in renames:

    change/new/, change/old/   the new files and copies of those they replace, read back from the disk
    change/journal.json        the steps in their order; from the moment it is there, the change will be finished
    undo/                      the same folder after the last change: what it replaced

A run killed before the journal is in place has changed nothing; one killed later leaves some steps done, which the
caller orders so that the release serves between any two of them, and `recover` in the next run does the others.
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
from release.splice import require_room, told, write_verified
from system.files import sync

STATE = ".patch_tokenizer"
_CHANGE, _UNDO, _JOURNAL = "change", "undo", "journal.json"

Content = bytes | None  # None stands for no file
Step = tuple[str, Content]  # a path within the release, and what shall be there


def read(folder: Path, target: str) -> Content:
    """A file's bytes, or None where there is none."""
    with told("read", folder / target):
        try:
            return (folder / target).read_bytes()
        except FileNotFoundError:
            return None


def change(folder: Path, steps: Sequence[Step], undoable: bool = True) -> None:
    """Takes the steps in their order. Raises ReleaseError where that fails; unless the message says otherwise nothing
    has changed. An undoable change can be changed back; another one forgets the change before it as well."""
    work = folder / STATE / _CHANGE
    targets = dict.fromkeys(target for target, _ in steps)
    old = {target: read(folder, target) for target in targets}
    require_room(folder, sum(len(content or b"") for content in [*old.values(), *(new for _, new in steps)]))
    try:
        with told("write", folder / STATE):
            (folder / STATE).mkdir(exist_ok=True)
        with told("write", work):
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
        with told("write", work):
            for made in (work / "new", work / "old", work, work.parent, folder):
                sync(made)
            draft.rename(work / _JOURNAL)
            sync(work)
    except ReleaseError:
        _tidy(folder)
        raise
    _finish(folder)


def interrupted(folder: Path) -> bool:
    """Whether a killed run left a change half done."""
    return (folder / STATE / _CHANGE / _JOURNAL).is_file()


def recover(folder: Path) -> bool:
    """Finishes what a killed run had begun, or clears away what it had not. Says whether it finished a change. Raises
    ReleaseError where somebody else has changed the files since."""
    if interrupted(folder):
        _finish(folder)
        return True
    if (folder / STATE / _CHANGE).exists():
        _tidy(folder)
    return False


def last_change(folder: Path) -> dict[str, Content]:
    """What the last change replaced. Raises ReleaseError where there is none, or its files are not as it left them."""
    record = folder / STATE / _UNDO
    if not (record / _JOURNAL).is_file():
        raise ReleaseError(f"{folder} has no change to undo: patch_tokenizer.py keeps the last one only")
    journal = _journal(record)
    after = {step["target"]: step["sha256"] for step in journal["steps"]}
    for target, digest in after.items():
        if _digest(read(folder, target)) != digest:
            raise ReleaseError(f"{folder / target} was changed since by something else: undo that first")
    before = {}
    for number, (target, digest) in enumerate(journal["old"].items()):
        before[target] = read(record, f"old/{number}")
        if _digest(before[target]) != digest:
            raise ReleaseError(f"{record} was damaged, it does not hold {target} as it was: get that file anew")
    return before


def _finish(folder: Path) -> None:
    """Does those of the journal's steps that are not done. Doing one again changes nothing."""
    work, undo = folder / STATE / _CHANGE, folder / STATE / _UNDO
    journal = _journal(work)
    known: dict[str, set[str | None]] = {target: {digest} for target, digest in journal["old"].items()}
    for step in journal["steps"]:
        known[step["target"]].add(step["sha256"])
    for target, digests in known.items():
        if _digest(read(folder, target)) not in digests:
            raise ReleaseError(
                f"a change of {folder} was interrupted, and {target} was changed since by something else: put it back, "
                f"or delete {work} to give up that change"
            )
    outcome = "run the command again to finish: the release can be served meanwhile"
    for number, step in enumerate(journal["steps"]):
        target, new = folder / step["target"], work / "new" / str(number)
        with told("replace", target, outcome):
            if step["sha256"] is None:
                target.unlink(missing_ok=True)
            elif new.exists():  # otherwise a run before this one has put it in place
                target.parent.mkdir(exist_ok=True)
                new.rename(target)
            # Before the next step, so that a power cut can't keep a later step and lose an earlier one.
            if target.parent.is_dir():
                sync(target.parent)
    with told("write", work, outcome):
        if undo.exists():
            shutil.rmtree(undo)
        if journal["undoable"]:
            work.rename(undo)
            sync(undo.parent)
        else:
            (work / _JOURNAL).unlink()
            _tidy(folder)


def _tidy(folder: Path) -> None:
    """Removes a change without journal, and the state's folder where nothing else is in it."""
    shutil.rmtree(folder / STATE / _CHANGE, ignore_errors=True)
    with suppress(OSError):
        (folder / STATE).rmdir()


def _keep(folder: Path, target: str, content: Content, path: Path) -> None:
    """Writes `content` to `path` with the permissions that the file `target` has, or the release's other files."""
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
