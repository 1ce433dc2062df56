"""Reading files that a stranger may have made, such as those of a downloaded release: regular files of a bounded size,
and JSON of a bounded nesting. Everything else is an error at once: a pipe would make the reader wait for ever, a device
has no end, and deep JSON exhausts the stack."""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any

MAX_NESTING = 100  # levels of JSON; a release has 5
MAX_VALUES = 2_000_000  # in a JSON text; a tokenizer has 520,000


def require_regular(path: Path) -> None:
    """Raises OSError if `path` is not a regular file or a link to one: a folder, a pipe, a socket or a device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def require_own_place(path: Path) -> None:
    """Raises OSError if what is written to `path` would go elsewhere, or be waited for: if it is a link, a pipe, a
    socket or a device. A file, a folder and nothing are right."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link: replace it by what it leads to, or delete it", str(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no file but a pipe, a socket or a device: delete it", str(path))


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises OSError if it is something else, cannot be read, or has more than `limit`
    bytes."""
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EINVAL, f"it has more than {limit >> 20} MB", str(path))
    return content


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError for anything else, for values nested more than MAX_NESTING
    deep, for more than about MAX_VALUES values, and for an object with two values for a key."""
    # Every value but the outermost comes after one of these. Some of them are in strings, so this may count too many.
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unambiguous)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [parsed]
    for _ in range(MAX_NESTING):
        level = [inner for value in level for inner in _containers_in(value)]
        if not level:
            return parsed
    raise ValueError("it is nested too deeply")


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Programs differ in which of two values they take, so two are an error."""
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("an object has two values for the same key")
    return parsed


def _containers_in(value: Any) -> list[Any]:
    """The objects and lists that an object or a list holds itself."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]
