"""`losses/discriminator_passes.py` for a GPU, in Triton: each number is read once and written once.

A row is one bin of one frame with all its channels. A program takes a few rows of the originals and the same rows of
the reconstructions, which come `half` numbers later. The programs' sums are added up at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from losses.discriminator import SLOPE

NUMBERS = 2048  # of the originals, for one program: 32 rows of 64 channels
_SLOPE = tl.constexpr(SLOPE)


@triton.jit
def _places(
    rows: tl.tensor, width: tl.tensor, bins: tl.tensor, channels: tl.constexpr, block: tl.constexpr, some: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The places [some, block] of this program's numbers, whether there are such numbers, and whether they count: those
    behind the first `bins` of a frame's `width` bins do not."""
    row = tl.program_id(0) * some + tl.arange(0, some)[:, None]
    channel = tl.arange(0, block)[None, :]
    exist = (row < rows) & (channel < channels)
    return row.to(tl.int64) * channels + channel, exist, exist & (row % width < bins)


@triton.jit
def _activate(at: tl.tensor, bias: tl.tensor, exist: tl.tensor, count: tl.tensor) -> tl.tensor:
    value = tl.load(at, mask=count, other=0.0).to(tl.float32) + bias
    value = tl.where(count, tl.where(value > 0, value, _SLOPE * value), 0.0).to(at.dtype.element_ty)
    tl.store(at, value, mask=exist)
    return value.to(tl.float32)


@triton.jit(do_not_specialize=["rows", "width", "bins"])
def _activate_and_compare(
    x: tl.tensor,
    bias: tl.tensor,
    sums: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    bins: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
) -> None:
    place, exist, count = _places(rows, width, bins, channels, block, some)
    half = rows.to(tl.int64) * channels
    channel = tl.arange(0, block)[None, :]
    biases = tl.load(bias + channel, mask=channel < channels, other=0.0)
    real = _activate(x + place, biases, exist, count)
    fake = _activate(x + half + place, biases, exist, count)
    tl.store(sums + 2 * tl.program_id(0), tl.sum(tl.abs(fake - real)))
    tl.store(sums + 2 * tl.program_id(0) + 1, tl.sum(tl.abs(real)))


@triton.jit(do_not_specialize=["rows", "width", "bins"])
def _through_activation(
    gradient: tl.tensor,
    features: tl.tensor,
    coefficient: tl.tensor,
    sums: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    bins: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
    some: tl.constexpr,
) -> None:
    place, exist, count = _places(rows, width, bins, channels, block, some)
    half = rows.to(tl.int64) * channels
    # what does not count is loaded as 0, and its gradients stay 0
    real = tl.load(features + place, mask=count, other=0.0).to(tl.float32)
    fake = tl.load(features + half + place, mask=count, other=0.0).to(tl.float32)
    at_real = tl.load(gradient + place, mask=count, other=0.0).to(tl.float32)
    at_fake = tl.load(gradient + half + place, mask=count, other=0.0).to(tl.float32)
    matching = tl.load(gradient + 2 * half + place, mask=count, other=0.0).to(tl.float32)

    slope = tl.where(fake > 0, 1.0, _SLOPE)
    at_real *= tl.where(real > 0, 1.0, _SLOPE)
    at_fake *= slope
    matching = (matching + tl.load(coefficient) * tl.where(fake > real, 1.0, tl.where(fake < real, -1.0, 0.0))) * slope

    dtype = gradient.dtype.element_ty
    tl.store(gradient + place, at_real.to(dtype), mask=exist)
    tl.store(gradient + half + place, at_fake.to(dtype), mask=exist)
    tl.store(gradient + 2 * half + place, matching.to(dtype), mask=exist)
    channel = tl.arange(0, block)
    at_sums = sums + tl.program_id(0) * channels + channel
    tl.store(at_sums, tl.sum(at_real + at_fake, axis=0), mask=channel < channels)


def activate_and_compare(x: Tensor, bias: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    rows, width, channels, block, some = _sizes(x)
    sums = torch.empty(triton.cdiv(rows, some), 2, device=x.device)
    _activate_and_compare[(len(sums),)](x, bias, sums, rows, width, bins, channels, block, some)
    difference, size = sums.sum(dim=0)
    return difference, size


def through_activation(gradient: Tensor, features: Tensor, coefficient: Tensor, bins: int) -> Tensor:
    rows, width, channels, block, some = _sizes(features)
    sums = torch.empty(triton.cdiv(rows, some), channels, device=features.device)
    _through_activation[(len(sums),)](gradient, features, coefficient, sums, rows, width, bins, channels, block, some)
    return sums.sum(dim=0)


def _sizes(features: Tensor) -> tuple[int, int, int, int, int]:
    """Of features [2B · T, F, C]: rows of the originals, F, C, the power of two that C fits into, rows of a program."""
    frames, width, channels = features.shape
    block = triton.next_power_of_2(channels)
    return frames // 2 * width, width, channels, block, max(1, NUMBERS // block)


def prepare() -> None:
    """Raises what Triton raises where it cannot build kernels, such as RuntimeError without a C compiler."""
    triton.runtime.driver.active.get_current_device()
