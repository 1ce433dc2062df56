"""The discriminator's losses and gradients as a training step computes them, against autograd's."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.discriminator import Discriminator, feature_matching, hinge_loss
from losses.discriminator_gradients import (
    DiscriminatorGradients,
    GroupedConv,
    as_channels,
    as_frequencies,
    discriminator_gradients,
)

NAMES = [name for name, _ in Discriminator(channels=1).named_parameters()]


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(channels=4)


def _waveforms(samples: int = 2500) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    original, noise = 0.1 * torch.randn(2, 2, 1, samples, generator=generator)
    return original, 0.5 * original + noise


def _by_autograd(discriminator: Discriminator, original: Tensor, reconstruction: Tensor) -> DiscriminatorGradients:
    reconstruction = reconstruction.clone().requires_grad_()
    real_logits, real = discriminator(original)
    fake_logits, fake = discriminator(reconstruction)
    matching, hinge = feature_matching(real, fake), hinge_loss(real_logits, fake_logits)
    at_reconstruction = torch.autograd.grad(matching, reconstruction, retain_graph=True)[0]
    of_parameters = torch.autograd.grad(hinge, list(discriminator.parameters()))
    return DiscriminatorGradients(matching.detach(), at_reconstruction, hinge.detach(), list(of_parameters))


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected).norm() / expected.norm())


def test_losses_and_gradients_are_those_of_autograd(discriminator: Discriminator) -> None:
    original, reconstruction = _waveforms()
    expected = _by_autograd(discriminator, original, reconstruction)
    found = discriminator_gradients(discriminator, original, reconstruction)
    assert _error(found.matching, expected.matching) < 1e-6
    assert _error(found.hinge, expected.hinge) < 1e-6
    assert _error(found.at_reconstruction, expected.at_reconstruction) < 1e-5
    for name, one, other in zip(NAMES, found.of_parameters, expected.of_parameters, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7, name


def test_equal_waveforms_match_and_move_nothing(discriminator: Discriminator) -> None:
    original, _ = _waveforms()
    found = discriminator_gradients(discriminator, original, original)
    assert found.matching == 0
    assert found.at_reconstruction.abs().max() == 0


def test_too_short_waveforms_are_refused(discriminator: Discriminator) -> None:
    with pytest.raises(ValueError, match="2296 or more"):
        discriminator_gradients(discriminator, *_waveforms(2295))


@pytest.mark.parametrize(
    ("taps", "stride", "outputs", "dilation"), [(9, 2, 1, 4), (9, 1, 4, 1), (9, 2, 4, 2), (3, 1, 1, 1)]
)
def test_frequencies_as_channels_give_the_same_convolution_and_gradients(
    taps: int, stride: int, outputs: int, dilation: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, (3, taps), (1, stride), (dilation, taps // 2), (dilation, 1))
    x = torch.randn(2, 3, 7, 16, requires_grad=True)
    expected = F.conv2d(x, conv.weight, None, conv.stride, (dilation, taps // 2), conv.dilation)
    gradient = torch.randn(expected.shape)
    at_x, at_weight = torch.autograd.grad(expected, [x, conv.weight], gradient)

    grouped = GroupedConv(conv, outputs, torch.float32)
    x_last, gradient_last = (tensor.detach().permute(0, 2, 3, 1).contiguous() for tensor in (x, gradient))
    assert torch.allclose(grouped(x_last).permute(0, 3, 1, 2), expected, atol=1e-5)
    assert torch.allclose(grouped.input_gradient(gradient_last).permute(0, 3, 1, 2), at_x, atol=1e-5)
    found = torch.autograd.grad(grouped.graph, conv.weight, grouped.weight_gradient(gradient_last, x_last))[0]
    assert torch.allclose(found, at_weight, atol=1e-4)


def test_groups_of_frequencies_lie_in_the_same_memory() -> None:
    x = torch.randn(2, 3, 8, 5)
    grouped = as_channels(x, 4)
    assert grouped.shape == (2, 20, 3, 2)
    assert grouped.data_ptr() == x.data_ptr()
    back = as_frequencies(grouped, 4)
    assert back.data_ptr() == x.data_ptr()
    assert torch.equal(back, x)


@pytest.mark.parametrize(
    ("device", "half"),
    [
        ("cpu", True),
        pytest.param("cuda", False, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
        pytest.param("cuda", True, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_on_a_gpu_and_in_bf16_they_stay_near_autograds_in_float32(
    device: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    discriminator = Discriminator(channels=64 if device == "cuda" else 4)
    for scale in discriminator.scales:  # originals are beyond the margin; otherwise the two halves of the loss cancel
        scale.get_parameter("last.bias").data.fill_(2.0)
    original, reconstruction = _waveforms(12000 if device == "cuda" else 2500)
    expected = _by_autograd(discriminator, original, reconstruction)
    discriminator.to(device)
    with torch.autocast(device, torch.bfloat16) if half else nullcontext():
        found = discriminator_gradients(discriminator, original.to(device), reconstruction.to(device))
    limit = 1.0 if half else 1e-2
    errors = {
        "matching": (_error(found.matching, expected.matching), 1e-3),
        "at the reconstruction": (_error(found.at_reconstruction, expected.at_reconstruction), 3e-2),
        "hinge": (_error(found.hinge, expected.hinge), 1e-3),
        "of parameters": (
            _error(*(torch.cat([g.cpu().flatten() for g in one.of_parameters]) for one in (found, expected))),
            1e-2,
        ),
    }
    print(device, half, errors)
    assert {name for name, (error, most) in errors.items() if not error < limit * most} == set()
