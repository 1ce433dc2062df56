"""Adds, replaces and removes tensors of safetensors files on disk, with a few megabytes of memory.

A safetensors file is 8 bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, offsets)
and the tensors' bytes, one after another. A new file is put together from byte ranges of others. It is written the way
the safetensors library writes: compact JSON, padded with spaces to 8 bytes, tensors in the order of their offsets. So
adding tensors and removing them again gives the old file, bit by bit.

Nothing is written in place. `apply` writes every new file beside the one it replaces and reads it back. When all of
them are whole, it renames them in the given order.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from codec.config import ReleaseError
from codec.files import tensor_names
from release.links import files_below, keep_link, kept_link
from system.files import folder_written_whole, sync

CHUNK = 1 << 20  # bytes; a multiple of every dtype's size. Writing 4 MB at a time took four times as long
WRITE_OUT = 64 << 20  # bytes, after which we ask the kernel to begin writing them out
LINK_FROM = 32 << 20  # bytes: larger files are linked, not copied. The tokenizer has 15 MB, weights have more
LOCK_SECONDS = 60  # how long a run waits for others that use the release
_PARTIALS = ".consolidated*.partial"
CONVERTIBLE = {"F32": 4, "F16": 2, "BF16": 2}  # dtypes that can become BF16, and their bytes per value


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: `size` bytes at `offset` of `path`. With `to_bf16` it is converted while it is read."""

    path: Path
    offset: int
    size: int
    shape: tuple[int, ...]
    stored_as: str  # the dtype in the file, by safetensors' name for it
    to_bf16: bool = False

    @property
    def dtype(self) -> str:
        return "BF16" if self.to_bf16 else self.stored_as

    @property
    def nbytes(self) -> int:
        """How many bytes it takes when it is written."""
        return self.size * 2 // CONVERTIBLE[self.stored_as] if self.to_bf16 else self.size

    def chunks(self, buffer: bytearray) -> Iterator[memoryview]:
        """The bytes to write, in pieces that share `buffer`: a piece is valid until the next one is read."""
        view = memoryview(buffer)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for begin in range(0, self.size, len(buffer)):
                wanted = min(len(buffer), self.size - begin)
                if file.readinto(view[:wanted]) != wanted:
                    raise ReleaseError(
                        f"{self.path} became shorter while it was read: nothing else may change it; start again"
                    )
                yield self._converted(view[:wanted])

    def _converted(self, piece: memoryview) -> memoryview:
        if not self.to_bf16 or self.stored_as == "BF16":
            return piece
        import torch  # importing it takes more than a second, and only an encoder that is not BF16 needs it

        stored_as = {"F32": torch.float32, "F16": torch.float16}[self.stored_as]
        values = torch.frombuffer(piece, dtype=stored_as).to(torch.bfloat16)
        return values.view(torch.uint8).numpy().data

    def is_finite(self, buffer: bytearray) -> bool:
        """Whether no value is NaN or infinite. Only for a tensor that is BF16 or becomes BF16."""
        magnitudes = (np.frombuffer(chunk, np.uint16) & 0x7FFF for chunk in self.chunks(buffer))
        return all(bits.max() < 0x7F80 for bits in magnitudes)  # an exponent of ones only is NaN or infinity


@dataclass(frozen=True)
class TensorFile:
    """The content of a safetensors file, present or planned: tensors in the order of their offsets, and metadata."""

    tensors: dict[str, Stored]
    metadata: dict[str, str] | None = None

    @property
    def nbytes(self) -> int:
        return len(self.header()) + sum(tensor.nbytes for tensor in self.tensors.values())

    def header(self) -> bytes:
        """The file's first bytes: the header's length and the header."""
        entries: dict[str, object] = {} if self.metadata is None else {"__metadata__": self.metadata}
        offset = 0
        for name, tensor in self.tensors.items():
            end = offset + tensor.nbytes
            entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def spliced(self, add: Mapping[str, Stored], remove: Iterable[str] = ()) -> TensorFile:
        """The same file with tensors added, replaced or removed. The others keep their order."""
        gone = set(remove)
        tensors = {name: add.get(name, tensor) for name, tensor in self.tensors.items() if name not in gone}
        new = {name: tensor for name, tensor in add.items() if name not in tensors}
        # Tensors after one of odd size have odd offsets, so BF16 tensors go before the first such one.
        odd = [name for name, tensor in tensors.items() if tensor.nbytes % 2]
        after = {name: tensors.pop(name) for name in list(tensors)[list(tensors).index(odd[0]) :]} if odd else {}
        return TensorFile(tensors | new | after, self.metadata)

    def chunks(self, buffer: bytearray) -> Iterator[bytes | memoryview]:
        yield self.header()
        for tensor in self.tensors.values():
            yield from tensor.chunks(buffer)


def read_tensor_file(path: Path) -> TensorFile:
    """Where each tensor of a safetensors file is. Raises ReleaseError if it is truncated or no such file."""
    tensor_names(path)  # the safetensors library checks the whole header
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    metadata = entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        tensors[name] = Stored(path, 8 + length + begin, end - begin, tuple(entry["shape"]), entry["dtype"])
    return TensorFile(tensors, metadata)


@dataclass(frozen=True)
class Write:
    """Put a file at `target`, with the permissions of the file `like`."""

    target: Path
    content: TensorFile | bytes
    like: Path

    @property
    def nbytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


@dataclass(frozen=True)
class Delete:
    """Delete the file `target`."""

    target: Path


@dataclass(frozen=True)
class Relink:
    """Put the link back that stood at `target`: what it leads to is what `target` is to hold."""

    target: Path


Step = Write | Delete | Relink


def relinked(step: Step) -> Step:
    """The step; but `Relink` instead of writing what the file at the kept link holds already."""
    if isinstance(step, Write) and kept_link(step.target).is_file() and holds(kept_link(step.target), step.content):
        return Relink(step.target)
    return step


def apply(folder: Path, steps: Sequence[Step]) -> None:
    """Takes the steps in `folder`: writes and verifies all new files beside their targets, then renames and deletes in
    the order of the steps. Raises ReleaseError if that fails. Unless its message says otherwise, nothing has changed.
    """
    require_room(folder, sum(step.nbytes for step in steps if isinstance(step, Write)))
    partials: dict[int, Path] = {}
    try:
        for number, step in enumerate(steps):
            if isinstance(step, Write):
                # The dot keeps `consolidated*.safetensors` from matching. The number: an index may be written twice.
                partials[number] = step.target.with_name(f".{step.target.name}.{number}.partial")
                write_verified(partials[number], step.content, step.like)
        for number, step in enumerate(steps):
            outcome = "run the same command again to finish: the release can be served meanwhile" if number else None
            with explain_os_error("delete" if isinstance(step, Delete) else "replace", step.target, outcome):
                if isinstance(step, Relink):
                    kept_link(step.target).replace(step.target)
                else:
                    keep_link(step.target)
                if isinstance(step, Write):
                    partials[number].replace(step.target)
                if isinstance(step, Delete):
                    step.target.unlink(missing_ok=True)
                # Before the next step, so that a power cut cannot keep a later step and lose an earlier one.
                sync(folder)
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_verified(path: Path, content: TensorFile | bytes, like: Path) -> None:
    """Writes a new file, forces it to the disk, reads it back and compares it with its sources. Raises ReleaseError."""
    buffer = bytearray(CHUNK)
    with explain_os_error("write", path):
        owner = like.stat()
        with path.open("xb") as file:
            os.fchmod(file.fileno(), owner.st_mode & 0o7777)
            if (
                os.geteuid() == 0
            ):  # the file must stay with the user who owns the release, also when root writes it in a container
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            begun = written = 0
            for piece in _pieces(content, buffer):
                written += file.write(piece)
                if written - begun >= WRITE_OUT:
                    file.flush()
                    # The kernel begins to write these out and we do not wait: the disk works while we copy the rest.
                    os.posix_fadvise(file.fileno(), begun, written - begun, os.POSIX_FADV_DONTNEED)
                    begun = written
            file.flush()
            os.fsync(file.fileno())
        # This reads the page cache, not the disk, which could take longer than the copy. That the disk has the bytes is
        # the promise of fsync.
        equal = holds(path, content)
    if not equal:
        raise ReleaseError(f"{path} read back differs from what was written: check the disk; nothing was changed")


def holds(path: Path, content: TensorFile | bytes) -> bool:
    """Whether a file has exactly this content. Raises OSError."""
    size = len(content) if isinstance(content, bytes) else content.nbytes
    if path.stat().st_size != size:
        return False
    buffer, read = bytearray(CHUNK), bytearray(CHUNK)
    with path.open("rb") as file:
        return all(_next_equals(file, piece, read) for piece in _pieces(content, buffer)) and not file.read(1)


def _pieces(content: TensorFile | bytes, buffer: bytearray) -> Iterable[bytes | memoryview]:
    return (content,) if isinstance(content, bytes) else content.chunks(buffer)


def _next_equals(file: BufferedReader, piece: bytes | memoryview, read: bytearray) -> bool:
    if len(piece) != len(read):
        return file.read(len(piece)) == bytes(piece)
    # A bytearray compares with a buffer by memcmp; two memoryviews would compare item by item.
    return file.readinto(read) == len(read) and read == piece


def index_text(like: str, index: object) -> bytes:
    """`index` as JSON, in the layout of the text `like`: so undoing a change gives the same bytes."""
    layouts: list[dict] = [{"indent": 2}, {"indent": 4}, {}, {"separators": (",", ":")}]
    body = like.rstrip()
    parsed = json.loads(body)
    layout = next((each for each in layouts if json.dumps(parsed, **each) == body), layouts[0])
    return (json.dumps(index, **layout) + like[len(body) :]).encode()


def require_room(folder: Path, needed: int) -> None:
    """Raises ReleaseError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ReleaseError(
            f"the disk of {folder} has {readable(free)} free, but writing the new files beside the old ones needs "
            f"{readable(needed)}: free {readable(needed - free)}; nothing was changed"
        )


@contextmanager
def locked(folder: Path, to_change: bool) -> Iterator[None]:
    """Locks `folder` for a run that changes it, or for one that only reads it. Many runs may read at once. A run that
    changes is refused while another one changes; runs that read and a run that changes wait for one another. Raises
    ReleaseError if another run changes the folder, or if waiting takes longer than LOCK_SECONDS."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        begun = 0.0
        while not _lock(handle, fcntl.LOCK_EX if to_change else fcntl.LOCK_SH):
            busy = f"another run is {'reading' if to_change else 'changing'} {folder}"
            if to_change and not _lock(handle, fcntl.LOCK_SH):  # not only readers have it
                raise ReleaseError(f"another run is changing {folder}: wait until it ends")
            if not begun:
                begun = time.monotonic()
                print(f"note: {busy}: waiting up to {LOCK_SECONDS} s", file=sys.stderr)
            if time.monotonic() - begun > LOCK_SECONDS:
                raise ReleaseError(f"{busy}: wait until it ends")
            fcntl.flock(handle, fcntl.LOCK_UN)
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    """Whether the lock was taken, or there are no locks on this disk."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # a network disk without locks
            raise
    return True


def clear_partials(folder: Path) -> None:
    """Deletes the half-written files that killed runs left in `folder`."""
    for partial in folder.glob(_PARTIALS):
        with explain_os_error("delete", partial):
            partial.unlink()


def apply_to_copy(folder: Path, steps: Sequence[Step], output: Path, leave_out: set[str]) -> None:
    """Makes `output`: a copy of `folder` in which the steps are taken, without the files named in `leave_out`. It is
    there whole or not at all. Raises ReleaseError if that fails."""
    final = {step.target.name: step for step in steps}  # a file's last step counts
    writes = [step for step in final.values() if isinstance(step, Write)]
    carried = carried_files(folder, leave_out | set(final))
    require_room(output.parent, sum(step.nbytes for step in writes))
    with explain_os_error("write", output), folder_written_whole(output) as partial:
        for step in writes:
            write_verified(partial / step.target.name, step.content, step.like)
        for name in carried:
            with explain_os_error("copy", folder / name):
                (partial / name).parent.mkdir(exist_ok=True, parents=True)
                _carry_over(folder / name, partial / name)
        for made in {partial / parent for name in carried for parent in name.parents}:
            sync(made)


def carried_files(folder: Path, leave_out: set[str]) -> list[Path]:
    """The files below a release, relative to it, that a complete copy of it has, except those named and the traces of
    changes. Raises ReleaseError, naming it, if there is something that cannot be copied."""
    try:
        found = files_below(folder)
    except OSError as error:
        raise ReleaseError(f"{error.filename} cannot be read ({error.strerror}); nothing was changed") from error
    except ValueError as error:
        raise ReleaseError(f"{error}: delete it, or replace it by a copy; nothing was changed") from error
    left = leave_out | {path.name for path in folder.glob(_PARTIALS)}
    return [name for name in found if str(name) not in left and not _is_kept_link(folder / name)]


def _is_kept_link(path: Path) -> bool:
    return path.is_symlink() and path.name.startswith(".") and path.name.endswith(".link")


def _carry_over(source: Path, target: Path) -> None:
    """Copies a file, or links it if it is large. Follows links: a hub's cache holds links to its files."""
    file = Path(os.path.realpath(source))
    # People edit small files, and editing a linked file would change the release too.
    if file.stat().st_size < LINK_FROM or not _linked(file, target):
        shutil.copy(file, target)
        sync(target)


def _linked(file: Path, target: Path) -> bool:
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        return False
    return True


@contextmanager
def explain_os_error(doing: str, path: Path, outcome: str | None = None) -> Iterator[None]:
    """Raises ReleaseError for an OSError in the block: what failed, why, what to do, and the outcome."""
    allow = f"make {path} readable" if doing in ("read", "copy") else f"make {path.parent} writable"
    advice = {
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or raise the limit"),
        **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), allow),
    }
    try:
        yield
    except OSError as error:
        todo = advice.get(error.errno or 0, "see to the disk")
        outcome = outcome or "nothing was changed"
        raise ReleaseError(f"cannot {doing} {path} ({error.strerror}): {todo}; {outcome}") from error


def readable(size: int) -> str:
    """A number of bytes as text, in kB, MB or GB."""
    power, unit = next((pair for pair in ((9, "GB"), (6, "MB")) if size >= 10 ** pair[0]), (3, "kB"))
    return f"{size / 10**power:.1f} {unit}"
