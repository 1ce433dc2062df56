"""What the discriminator computes between two convolutions, forward and back.

Both functions change a large tensor in place. The code here is the reference, and what a CPU runs. On a GPU each
function is one Triton kernel, which reads and writes the tensor once (`losses/discriminator_kernels.py`).
"""

from __future__ import annotations

import functools
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.discriminator import SLOPE

_fused = True


@contextmanager
def unfused() -> Iterator[None]:
    """Runs the code here on a GPU too."""
    global _fused
    _fused = False
    try:
        yield
    finally:
        _fused = True


def activate_and_compare(x: Tensor, bias: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Turns a convolution's output [2B · T, F, C] into features, in place: adds the bias, applies the leaky ReLU, and
    sets all behind the first `bins` of F to 0. Returns the sums of |fake − real| and |real| over the features of
    originals (real, the first half) and reconstructions (fake)."""
    if x.is_cuda and _fused and (kernels := fast_kernels()):
        return kernels.activate_and_compare(x, bias, bins)
    F.leaky_relu_(x.add_(bias), SLOPE)[:, bins:] = 0
    real, fake = x.chunk(2)
    return (fake - real).abs().sum(dtype=torch.float32), real.abs().sum(dtype=torch.float32)


def through_activation(gradient: Tensor, features: Tensor, coefficient: Tensor, bins: int) -> Tensor:
    """Takes gradients [3B · T, F, C] at features [2B · T, F, C] back to the convolution's output, in place: the hinge
    loss's at originals and at reconstructions, and feature matching's at reconstructions. `coefficient` times the sign
    of fake − real is the gradient of the layer's own distance. Returns the hinge loss's gradient of the bias [C]."""
    if gradient.is_cuda and _fused and (kernels := fast_kernels()):
        return kernels.through_activation(gradient, features, coefficient, bins)
    real, fake = features.chunk(2)
    slopes = torch.where(features > 0, 1.0, SLOPE)
    slopes[:, bins:] = 0
    hinge = gradient[: len(features)].float() * slopes
    matching = gradient[len(features) :].float() + coefficient * (fake - real).sign()
    gradient[: len(features)] = hinge
    gradient[len(features) :] = matching * slopes[len(real) :]
    return hinge.sum(dim=(0, 1))


@functools.cache
def fast_kernels() -> ModuleType | None:
    """The Triton kernels, or None with a warning where they cannot be built."""
    try:
        from losses import discriminator_kernels

        discriminator_kernels.prepare()
    except (ImportError, RuntimeError, subprocess.CalledProcessError) as error:  # no Triton, compiler or Python headers
        warnings.warn(
            f"a GPU needs Triton and a C compiler for the discriminator to be fast, so it is slower here: {error}",
            stacklevel=2,
        )
        return None
    return discriminator_kernels
