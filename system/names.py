"""Names of files, shown and written: a name on disk is bytes, and need not be text."""

from __future__ import annotations

import os
from contextlib import suppress


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name as text that every UTF-8 file and terminal takes. Bytes that are no UTF-8 become `\\xe9`, line ends
    and other control characters `\\n` and so on. Other names stay as they are."""
    text = os.fsdecode(name)
    with suppress(UnicodeEncodeError):  # half a character, which JSON can hold and a name on disk cannot
        text = text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() or c == "\u3000" else c.encode("unicode_escape").decode() for c in text)
