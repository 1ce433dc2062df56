"""The device that a program computes on. Every program that may use a GPU gets it here."""

from __future__ import annotations

import torch

from system.command import UserError


def open_device(name: str | torch.device = "") -> torch.device:
    """The device `name`; without a name a GPU where there is one. From then on float32 is float32: in a GPU's
    convolutions PyTorch would round to TF32, whose mantissa has 10 bits instead of 23, and that changes gradients and
    scores of speaker networks. Raises UserError for a device that this machine has not."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"{name} is no device: expected cpu, cuda or cuda:N") from error
    if name and device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"{device} is not there: PyTorch finds {found or 'no'} GPU{'s' * (found != 1)} here")
    return device
