"""Identities of the losses and of the balancer."""

from __future__ import annotations

import pytest
import torch

from losses import Balancer, MelDistance, STFTDistance, commitment

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
    """No padding, no floor in play: every band differs by ln 2."""
    a = _waveform(0)
    assert MelDistance(RATE)(2 * a, a).item() == pytest.approx(0.6931, rel=0.02)


def test_mel_distance_weighs_clips_alike() -> None:
    a, b = _waveform(0), _waveform(1)
    mel = MelDistance(RATE)
    assert torch.allclose(mel.per_clip(a, b), torch.stack([mel(a[i : i + 1], b[i : i + 1]) for i in range(2)]))


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


def test_shares_are_the_weights_whatever_the_scales() -> None:
    balancer = Balancer({"a": 3.0, "b": 1.0})
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gradients = {
            "a": 1e-4 * torch.randn(4, 1, 99, generator=generator),
            "b": 1e5 * torch.randn(4, 1, 99, generator=generator),
        }
        balancer.combine(gradients)
    assert balancer.shares["a"].item() == pytest.approx(0.75, abs=0.05)
    assert balancer.shares["b"].item() == pytest.approx(0.25, abs=0.05)


def test_one_loss_has_the_total_norm_per_item() -> None:
    gradient = torch.randn(5, 1, 100, generator=torch.Generator().manual_seed(0))
    balanced = Balancer({"a": 0.3}, total_norm=2.0).combine({"a": gradient})
    assert balanced.flatten(1).norm(dim=1).mean().item() == pytest.approx(2.0, rel=1e-5)


def test_the_first_steps_average_is_not_biased_toward_zero() -> None:
    gradient = torch.ones(1, 1, 4)
    for decay in (0.0, 0.9, 0.999):
        balancer = Balancer({"a": 1.0}, decay=decay)
        assert torch.allclose(balancer.combine({"a": gradient}), gradient / 2)


def test_the_average_follows_encodecs_formula() -> None:
    """Norms 1 then 3 with decay 0.9: (0.9 · 1 + 3) / (0.9 + 1)."""
    balancer = Balancer({"a": 1.0}, decay=0.9)
    balancer.combine({"a": torch.tensor([[[1.0]]])})
    balanced = balancer.combine({"a": torch.tensor([[[3.0]]])})
    assert balanced.item() == pytest.approx(3 / ((0.9 + 3) / 1.9))


def test_an_absent_loss_does_not_change_the_others() -> None:
    weights = {"a": 1.0, "b": 1.0}
    gradient = torch.randn(2, 1, 10, generator=torch.Generator().manual_seed(0))
    alone = Balancer(weights).combine({"a": gradient})
    both = Balancer(weights).combine({"a": gradient, "b": torch.zeros_like(gradient)})
    assert torch.allclose(alone, both)


def test_a_factor_fades_one_loss_and_leaves_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = {"a": torch.randn(2, 1, 10, generator=generator), "b": torch.randn(2, 1, 10, generator=generator)}
    parts = {name: Balancer({"a": 1.0, "b": 1.0}).combine({name: gradients[name]}) for name in gradients}
    faded = Balancer({"a": 1.0, "b": 1.0}).combine(gradients, {"b": 0.25})
    assert torch.allclose(faded, parts["a"] + 0.25 * parts["b"])


def test_an_unknown_loss_and_a_weight_of_zero_are_refused() -> None:
    with pytest.raises(KeyError, match="unknown"):
        Balancer({"a": 1.0}).combine({"unknown": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="positive"):
        Balancer({"a": 0.0})


def test_a_restored_balancer_goes_on_as_it_would_have() -> None:
    first, second = Balancer({"a": 1.0}), Balancer({"a": 1.0})
    gradients = [torch.full((1, 1, 4), float(i + 1)) for i in range(3)]
    for gradient in gradients[:2]:
        first.combine({"a": gradient})
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    assert torch.equal(first.combine({"a": gradients[2]}), second.combine({"a": gradients[2]}))
