"""Codes -> the rows that stand for a voice in the language model's prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.config import SPECIAL_TOKENS

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
