"""A teacher of the ASR distillation without Whisper: it hears what a seed says, at once."""

from __future__ import annotations

import pytest
import torch

import losses.asr.teacher
from losses.asr.distillation import Heard


class RandomTeacher:
    """Hears two tokens in every clip but the last, in which it hears nothing."""

    width = 12

    def listen(self, waveform: torch.Tensor) -> Heard:
        batch, frames = len(waveform), -(-waveform.shape[-1] // 1920)
        generator = torch.Generator().manual_seed(batch * frames)
        mask = torch.tensor([[True, True]] * (batch - 1) + [[False, False]])
        alignment = torch.rand(batch, 2, frames, generator=generator) * mask[..., None]
        alignment = alignment / alignment.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        states = torch.randn(batch, 2, self.width, generator=generator) * mask[..., None]
        return Heard(alignment, states, mask)


def use_random_teacher(patch: pytest.MonkeyPatch) -> None:
    """Whoever loads a Whisper gets this one."""
    patch.setattr(losses.asr.teacher.Teacher, "load", lambda *arguments, **options: RandomTeacher())
