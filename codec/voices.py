"""Codes -> the rows that stand for a voice in the language model's prompt, and back."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.config import SPECIAL_TOKENS

SWEEPS = 30
EXPLAINED = 0.02  # relative residual: bf16 sums of exact codes leave 0.002, one wrong code of 37 about 0.2
END_OF_AUDIO = 1  # in the first codebook; the others hold 0, and no offset is added


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


class Recovered(NamedTuple):
    codes: Tensor
    """[N, K] int64, the codes whose rows sum to the embedding's rows."""
    residual: Tensor
    """[N], the norm of what the codes do not explain, relative to the embedding's norm."""


def recover_codes(embedding: Tensor, table: Tensor, codebook_sizes: list[int], restarts: int = 20) -> Recovered:
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
