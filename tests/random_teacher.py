"""A teacher for ASR distillation without Whisper: its transcripts are random, and take no time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import losses.asr.teacher
from losses.asr.distillation import DistillationTargets


class RandomTeacher:
    """Gives two tokens for every clip of a batch, and none for the last clip."""

    width = 12

    def numbered_languages(self, names: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(names), dtype=torch.long)

    def states(self, waveform: torch.Tensor) -> torch.Tensor:
        """The spectrum of each 20 ms: states that say something of the sound."""
        frames = -(-waveform.shape[-1] // 1920)
        padded = torch.nn.functional.pad(waveform, (0, frames * 1920 - waveform.shape[-1]))
        return padded.unflatten(-1, (4 * frames, 480))[..., :22].float() @ torch.ones(22, self.width).tril()

    def targets(self, waveform: torch.Tensor, languages: torch.Tensor | None = None) -> DistillationTargets:
        batch, frames = len(waveform), -(-waveform.shape[-1] // 1920)
        generator = torch.Generator().manual_seed(batch * frames)
        mask = torch.tensor([[True, True]] * (batch - 1) + [[False, False]])
        alignment = torch.rand(batch, 2, frames, generator=generator) * mask[..., None]
        alignment = alignment / alignment.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        states = torch.randn(batch, 2, self.width, generator=generator) * mask[..., None]
        return DistillationTargets(alignment, states, mask)


def use_random_teacher(patch: pytest.MonkeyPatch, teacher: RandomTeacher | None = None) -> None:
    """`Teacher.load` returns this teacher instead of Whisper."""
    patch.setattr(losses.asr.teacher.Teacher, "load", lambda *arguments, **options: teacher or RandomTeacher())
