"""Identities of the losses."""

from __future__ import annotations

import pytest
import torch

from losses import MelDistance, STFTDistance, commitment

RATE = 24000


def _waveform(seed: int, batch: int = 2, samples: int = 12000) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [MelDistance(RATE), STFTDistance()], ids=["mel", "stft"])
@pytest.mark.parametrize("samples", [2048, 5000, 12345])
def test_equal_waveforms_have_no_distance_and_different_ones_have(loss: torch.nn.Module, samples: int) -> None:
    a, b = _waveform(0, samples=samples), _waveform(1, samples=samples)
    assert loss(a, a) == 0
    assert loss(a, b) > 0
    assert torch.isclose(loss(a, b), loss(b, a))


def test_mel_distance_of_a_gain_is_its_logarithm() -> None:
    """Without padding and above the floor, every band differs by ln 2."""
    a = _waveform(0)
    assert MelDistance(RATE)(2 * a, a).item() == pytest.approx(0.6931, rel=0.02)


def test_mel_distance_is_the_mean_over_clips() -> None:
    a, b = _waveform(0), _waveform(1)
    mel = MelDistance(RATE)
    assert torch.allclose(mel.per_clip(a, b), torch.stack([mel(a[i : i + 1], b[i : i + 1]) for i in range(2)]))


@pytest.mark.parametrize("loss", [MelDistance(RATE, offset=0.01), STFTDistance()], ids=["mel", "stft"])
def test_padding_is_ignored(loss: MelDistance | STFTDistance) -> None:
    a, b = _waveform(0, 3), _waveform(1, 3)
    lengths = torch.tensor([2048, 12000, 7001])
    alone = [loss(a[i : i + 1, :, :length], b[i : i + 1, :, :length]) for i, length in enumerate(lengths)]
    assert torch.allclose(loss.per_clip(a, b, lengths), torch.stack(alone), rtol=1e-5)


def test_mel_distance_of_too_short_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="2048 or more"):
        MelDistance(RATE)(_waveform(0, samples=2047), _waveform(1, samples=2047))


def test_stft_distance_is_proportional_to_level() -> None:
    stft = STFTDistance()
    a, b = _waveform(0), _waveform(1)
    assert torch.isclose(stft(3 * a, 3 * b), 3 * stft(a, b))


def test_commitment_moves_latents_and_not_entries() -> None:
    latent = torch.randn(2, 4, 3, requires_grad=True)
    entry = torch.randn(2, 4, 3, requires_grad=True)
    value = commitment(latent, entry)
    value.backward()
    assert latent.grad is not None
    assert entry.grad is None
    assert torch.allclose(latent.grad, 2 * (latent - entry).detach() / latent.numel())
    assert commitment(latent, latent) == 0
