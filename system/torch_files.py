"""Reading files of `torch.save` that may be damaged, or that a stranger made."""

from __future__ import annotations

import errno
import mmap
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from system.untrusted import require_regular

# What torch.load raises for a damaged file. Found by changing single bytes of voice files.
LOAD_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


class TorchFileError(ValueError):
    """A file that torch cannot load. The message is the reason, without the name of the file."""


def reason_of(error: BaseException) -> str:
    """What an error of a library says, in one line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def load_torch_file(path: Path, limit: int | None = None, checksums: bool = False) -> Any:
    """What `torch.save` wrote into a file, on the CPU. `weights_only` calls nothing that the file names but
    constructors. Raises TorchFileError for anything else, for more than `limit` bytes, and for a file that would take
    more memory than it has bytes. `checksums` compares those that torch writes and does not read itself."""
    try:
        require_regular(path)
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit >> 20} MB")
        if not size:
            raise EOFError
        _require_harmless(path, size, checksums)
        return torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        text = str(getattr(error, "strerror", None) or error).strip()
        reason = text.splitlines()[0].split(". ")[0] if text else "the file is empty or ends too early"
        raise TorchFileError(reason) from error


def _require_harmless(path: Path, size: int, checksums: bool) -> None:
    """Raises ValueError for compressed records and for a `bytearray` of any length: a small file with them can take any
    amount of memory. Raises BadZipFile for a wrong checksum."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        is_zip = content[:4] == b"PK\x03\x04"  # as torch decides
        if content.find(b"\nbytearray\n") >= 0:
            raise ValueError("it holds a bytearray")
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > size:
                raise ValueError("its records are larger than the file")
            damaged = archive.testzip() if checksums else None
            if damaged:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
