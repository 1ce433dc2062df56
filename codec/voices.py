"""Voice embeddings: read from a release's files, made from codes, and turned back into codes."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.config import SPECIAL_TOKENS, ReleaseError
from system.torch_files import TorchFileError, load_torch_file

SWEEPS = 30
EXPLAINED = 0.02  # relative residual: bf16 sums of exact codes leave 0.002, one wrong code of 37 about 0.2
END_OF_AUDIO = 1  # in the first codebook; the others hold 0, and no offset is added
NOT_FINITE = "holds values that are not finite"
MAX_BYTES = 64 << 20  # of a voice file; 163 s at the release's width have 13 MB


class VoiceFileError(ReleaseError):
    """A voice file that cannot be used. `fault` says what is wrong, without the name of the file; `readable` is False
    if torch cannot load the file at all."""

    def __init__(self, path: Path, fault: str, readable: bool = True):
        super().__init__(f"{path} {fault}: get this voice file from its release again, or remove it")
        self.fault, self.readable = fault, readable


def read_voices(folder: Path, dim: int) -> dict[str, Tensor]:
    """A folder's voices by name (NAME.pt), sorted, each read with `read_voice`. Empty if there is no folder."""
    return {path.stem: read_voice(path, dim) for path in sorted(folder.glob("*.pt"))}


def read_voice(path: Path, dim: int) -> Tensor:
    """A voice embedding [F + 1, dim] on the CPU, in the dtype of its file. The last row is the end-of-audio frame.
    Raises VoiceFileError if the file is damaged, if it holds anything but a floating-point tensor of this shape with at
    least 2 rows, or if a value is not finite."""
    embedding = load_voice(path, dim)
    if not embedding.is_floating_point():
        raise VoiceFileError(path, f"holds {dtype_name(embedding)}, expected floating-point values")
    if len(embedding) < 2:
        raise VoiceFileError(path, "holds 1 row, expected at least one frame and the end-of-audio row")
    if not embedding.isfinite().all():
        raise VoiceFileError(path, NOT_FINITE)
    return embedding


def load_voice(path: Path, dim: int) -> Tensor:
    """The tensor [N, dim] of a voice file, N of 1 or more, with its values unchecked. Raises VoiceFileError if the file
    cannot be loaded or holds something else."""
    try:
        stored = load_torch_file(path, MAX_BYTES)
    except TorchFileError as error:
        raise VoiceFileError(path, f"cannot be read ({error})", readable=False) from error
    if not isinstance(stored, Tensor):
        raise VoiceFileError(path, f"holds a {type(stored).__name__} instead of a tensor")
    if stored.ndim != 2 or stored.shape[1] != dim or not len(stored):
        raise VoiceFileError(path, f"has the shape {list(stored.shape)}, expected [N, {dim}]")
    if not _is_dense(stored) or stored.numel() * stored.element_size() > path.stat().st_size:
        raise VoiceFileError(path, "holds a tensor without a value for each of its elements")
    return stored


def _is_dense(tensor: Tensor) -> bool:
    """A small file can describe a huge tensor: sparse, on the meta device, or with a stride of 0."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def dtype_name(tensor: Tensor) -> str:
    """For example "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def embed_codes(codes: Tensor, table: Tensor, codebook_sizes: list[int]) -> Tensor:
    """Codes [B, K, F] and the audio embedding table [rows, dim] to embeddings [B, F + 1, dim]. Every codebook has
    its own rows, two special tokens first; a frame is the sum of its K rows; the last row is the end-of-audio frame.
    """
    batch, books, _ = codes.shape
    end = torch.zeros(batch, books, 1, dtype=codes.dtype, device=codes.device)
    end[:, 0] = END_OF_AUDIO
    tokens = torch.cat([codes + SPECIAL_TOKENS, end], dim=-1)
    first_row = torch.tensor([0, *codebook_sizes[:-1]], device=codes.device).cumsum(0)
    return F.embedding(tokens + first_row[:, None], table).sum(dim=1)


def until_end_of_audio(coded: Tensor) -> tuple[Tensor, bool]:
    """Frames [F, K] as a language model speaks them, with special tokens, up to the first end of audio: codes [K, F'],
    and whether there is an end."""
    ends = (coded[:, 0] == END_OF_AUDIO).nonzero()
    length = int(ends[0]) if len(ends) else len(coded)
    return coded[:length].T - SPECIAL_TOKENS, bool(len(ends))


class Recovered(NamedTuple):
    codes: Tensor
    """[N, K] int64, the codes whose rows sum to the embedding's rows."""
    residual: Tensor
    """[N], the norm of what the codes do not explain, relative to the embedding's norm."""


def recover_codes(embedding: Tensor, table: Tensor, codebook_sizes: list[int], restarts: int = 100) -> Recovered:
    """The codes behind an embedding [N, dim] of codes, without its end-of-audio row: each row is the sum of K rows of
    the table, one a codebook. In the hundreds of dimensions of a language model the table's rows are nearly orthogonal,
    and coordinate descent from the codebooks' means finds the codes exactly; the few rows of an embedding where it ends
    elsewhere are tried again from other starts, drawn but the same every time. Where all of them fail, the residual
    says so.
    """
    target, entries = embedding.float(), table.float()
    books = [
        entries[start + SPECIAL_TOKENS : start + size]
        for start, size in zip(accumulate([0, *codebook_sizes[:-1]]), codebook_sizes, strict=True)
    ]
    found = _descend(target, books, [book.mean(dim=0).expand_as(target) for book in books])
    generator = torch.Generator().manual_seed(0)
    for _ in range(restarts):
        left = (found.residual > EXPLAINED).nonzero().flatten()
        if not len(left):
            break
        picks = [torch.randint(len(book), (len(left),), generator=generator).to(book.device) for book in books]
        again = _descend(target[left], books, [book[pick] for book, pick in zip(books, picks, strict=True)])
        better = again.residual < found.residual[left]
        found.codes[left[better]], found.residual[left[better]] = again.codes[better], again.residual[better]
    return found


def _descend(target: Tensor, books: list[Tensor], chosen: list[Tensor]) -> Recovered:
    """Coordinate descent from what is `chosen` [N, dim] of each codebook: each in turn takes the row that is nearest to
    what the others leave, until none changes."""
    left = target - torch.stack(chosen).sum(dim=0)
    codes = torch.full((len(target), len(books)), -1, dtype=torch.long, device=target.device)
    for _ in range(SWEEPS):
        before = codes.clone()
        for k, book in enumerate(books):
            wanted = left + chosen[k]
            codes[:, k] = (book.square().sum(dim=1) - 2 * wanted @ book.T).argmin(dim=1)
            chosen[k] = book[codes[:, k]]
            left = wanted - chosen[k]
        if torch.equal(codes, before):
            break
    return Recovered(codes, left.norm(dim=1) / target.norm(dim=1).clamp(min=1e-12))
