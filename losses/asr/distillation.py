"""ASR distillation (Voxtral TTS, arXiv 2603.25551, the codec's training): the semantic embeddings learn to predict the
hidden states of a speech recogniser.

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
    """The teacher cannot be loaded. The message names the teacher, the configuration key and what to do."""


class DistillationTargets(NamedTuple):
    """A teacher's targets for B clips, without gradient. Rows are text tokens without prompt and end, padded to L."""

    alignment: Tensor
    """[B, L, F]: weights of each token over the codec frames. Rows sum to 1; 0 in padding."""
    states: Tensor
    """[B, L, D]: the last decoder layer's state that predicted the token, after the final norm; 0 in padding."""
    mask: Tensor
    """[B, L]: True for tokens, False in padding."""

    @property
    def has_speech(self) -> Tensor:
        """[B]: True for clips in which the teacher found speech."""
        return self.mask.any(dim=1)

    @property
    def clips_without_speech(self) -> Tensor:
        """The number of clips without speech, which add nothing to the loss: a scalar on the device."""
        return (~self.has_speech).sum()


class ASRDistillation(nn.Module):
    """Takes the teacher's targets for the original clips and the semantic embeddings [B, semantic, F] after the
    quantizer. Returns a scalar in [0, 2]: the mean over the clips with speech, or 0 if no clip has speech. The
    embeddings and the projection get gradients. It is computed in float32.

    The projection to the teacher's width is trained together with the encoder.
    """

    def __init__(self, semantic_dim: int, width: int):
        super().__init__()
        self.projection = nn.Linear(semantic_dim, width)

    def forward(self, targets: DistillationTargets, semantic: Tensor) -> Tensor:
        return self.per_clip(targets, semantic).sum() / targets.has_speech.sum().clamp(min=1)

    def per_clip(self, targets: DistillationTargets, semantic: Tensor) -> Tensor:
        """The loss of each clip: [B], 0 for a clip without speech. Raises ValueError if frame counts differ."""
        if semantic.shape[-1] != targets.alignment.shape[-1]:
            raise ValueError(
                f"{semantic.shape[-1]} frames of embeddings and {targets.alignment.shape[-1]} of the alignment, "
                "expected the same number: both must come from the same clips"
            )
        with torch.autocast(semantic.device.type, enabled=False):
            # rows of A sum to 1, so we may project the L sums instead of the F frames
            spoken = self.projection(targets.alignment @ semantic.float().transpose(1, 2))  # [B, L, width]
            cosine = F.cosine_similarity(spoken, targets.states, dim=-1)
        tokens = targets.mask.sum(dim=1)
        mean = torch.where(targets.mask, cosine, 0).sum(dim=1) / tokens.clamp(min=1)
        return torch.where(tokens > 0, 1 - mean, 0)
