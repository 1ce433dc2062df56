"""ASR distillation (Voxtral TTS, arXiv 2603.25551, the codec's training): the semantic part of the code learns what a
speech recogniser makes of the words.

With z_f the semantic embedding of frame f after its quantization, h_l Whisper's last decoder state for token l, A the
alignment of tokens and frames, and proj a learned linear map to Whisper's width, a clip's loss is

    1 − mean over l of cos(Σ_f A_lf proj(z_f), h_l)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from system.command import UserError


class TeacherError(UserError):
    """A teacher that cannot be had. The message names it, the configuration key and what to do."""


class Heard(NamedTuple):
    """What a teacher heard in B clips, without gradient. Rows are text tokens: no prompt, no end, padded to L."""

    alignment: Tensor
    """[B, L, F]: the codec frames of each token, rows summing to 1; 0 in padding."""
    states: Tensor
    """[B, L, D]: the last decoder layer's state that gave the token, after the final norm; 0 in padding."""
    mask: Tensor
    """[B, L], True for tokens."""

    @property
    def speaking(self) -> Tensor:
        """[B], True for the clips in which something was heard."""
        return self.mask.any(dim=1)

    @property
    def silent(self) -> Tensor:
        """How many clips give no term, as a scalar on the device."""
        return (~self.speaking).sum()


class ASRDistillation(nn.Module):
    """What a teacher heard in the original, and the semantic embeddings [B, semantic, F] after the quantizer, to a
    scalar in [0, 2]: the mean over the clips in which something was heard, 0 if there is none. Gradients reach the
    embeddings and the projection. Arithmetic is float32.

    The projection has parameters of its own, to be trained beside the encoder.
    """

    def __init__(self, semantic_dim: int, width: int):
        super().__init__()
        self.projection = nn.Linear(semantic_dim, width)

    def forward(self, heard: Heard, semantic: Tensor) -> Tensor:
        return self.per_clip(heard, semantic).sum() / heard.speaking.sum().clamp(min=1)

    def per_clip(self, heard: Heard, semantic: Tensor) -> Tensor:
        """The loss of each clip: [B], 0 where nothing was heard."""
        if semantic.shape[-1] != heard.alignment.shape[-1]:
            raise ValueError(
                f"{semantic.shape[-1]} frames of embeddings and {heard.alignment.shape[-1]} of the alignment, "
                "expected the same: both are of one clip"
            )
        with torch.autocast(semantic.device.type, enabled=False):
            # rows of A sum to 1, so that projecting the L sums is projecting the F frames
            spoken = self.projection(heard.alignment @ semantic.float().transpose(1, 2))  # [B, L, width]
            cosine = F.cosine_similarity(spoken, heard.states, dim=-1)
        tokens = heard.mask.sum(dim=1)
        mean = torch.where(heard.mask, cosine, 0).sum(dim=1) / tokens.clamp(min=1)
        return torch.where(tokens > 0, 1 - mean, 0)
