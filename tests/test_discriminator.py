"""The discriminator's layout, and the gradients of its two losses."""

from __future__ import annotations

import pytest
import torch

from losses.discriminator import SIZES, Discriminator, feature_matching, hinge_loss


def _waveform(seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, 6000, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(channels=4)


def test_it_has_encodecs_layout_and_size_at_64_channels() -> None:
    full = Discriminator()
    assert sum(parameter.numel() for parameter in full.parameters()) == pytest.approx(3.0e6, rel=0.01)
    assert len(full.scales) == 8
    logits, features = full.scales[-1](torch.zeros(1, 1, 760))
    frames, bins = 1 + (760 - 76) // 19, 76 // 2 + 1
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (64, frames, bins),
        (64, frames, 20),
        (64, frames, 10),
        (64, frames, 5),
        (64, frames, 5),
    ]
    assert logits.shape == (1, 1, frames, 5)


def test_equal_waveforms_match_and_different_ones_do_not(discriminator: Discriminator) -> None:
    _, a = discriminator(_waveform(0))
    _, b = discriminator(_waveform(1))
    assert feature_matching(a, a) == 0
    assert feature_matching(a, b) > 0


def test_feature_matching_is_of_every_layer_of_every_resolution(discriminator: Discriminator) -> None:
    features = discriminator(_waveform(0))[1]
    layers = [(scale, layer) for scale, of_scale in enumerate(features) for layer in range(len(of_scale))]
    assert len(layers) == 8 * 5
    for scale, layer in layers:
        other = [list(of_scale) for of_scale in features]
        other[scale][layer] = other[scale][layer] + 0.1
        assert feature_matching(features, other) > 0, (scale, layer)


def test_feature_matching_moves_the_reconstruction_and_not_the_original(discriminator: Discriminator) -> None:
    original, reconstruction = _waveform(0).requires_grad_(), _waveform(1).requires_grad_()
    feature_matching(discriminator(original)[1], discriminator(reconstruction)[1]).backward()
    assert original.grad is None
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0


def test_the_hinge_loss_is_zero_beyond_the_margin_and_two_at_zero() -> None:
    one = [torch.ones(1, 1, 2, 2)] * 2
    assert hinge_loss([2 * x for x in one], [-2 * x for x in one]) == 0
    assert hinge_loss([0 * x for x in one], [0 * x for x in one]) == 2
    assert hinge_loss([-x for x in one], one) == 4


def test_a_batch_gives_what_its_clips_give_alone(discriminator: Discriminator) -> None:
    batch = _waveform(2)
    together, _ = discriminator(batch)
    alone = [torch.cat(pair) for pair in zip(*(discriminator(clip[None])[0] for clip in batch), strict=True)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True))


def test_too_short_clips_are_refused(discriminator: Discriminator) -> None:
    with pytest.raises(ValueError, match="2296 or more"):
        discriminator(torch.zeros(1, 1, SIZES[0] - 1))


def test_it_learns_to_distinguish_noise_from_tones() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(channels=4)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-2)
    time = torch.arange(4000) / 24000
    tones = 0.1 * torch.sin(2 * torch.pi * torch.tensor([[300.0], [800.0]]) * time)[:, None]
    values = []
    for step in range(12):
        noise = 0.07 * torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(step))
        loss = hinge_loss(discriminator(tones)[0], discriminator(noise)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]
