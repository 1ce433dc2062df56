"""The device that a program computes on. Every program that may use a GPU gets it here."""

from __future__ import annotations

import torch


def open_device(name: str | torch.device = "") -> torch.device:
    """The device `name`; without a name a GPU where there is one. From then on float32 is float32: in a GPU's
    convolutions PyTorch would round to TF32, whose mantissa has 10 bits instead of 23, and that changes gradients and
    scores of speaker networks."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
