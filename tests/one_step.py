"""For tests of one training step: a single rank, a batch of noise, and settings with every loss."""

from __future__ import annotations

import torch

from training.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
EVERY_PART = (
    *("losses.asr=1", "losses.diversity=0.5", "losses.shaping=0.5", "losses.feature_matching=1"),
    *("discriminator.channels=2", "log_every=1", "batch_size=4"),
)
CROPS = 0.1 * torch.randn(4, 1, 5 * 1920, generator=torch.Generator().manual_seed(0))
