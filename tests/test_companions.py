"""The networks that learn beside the codec: what each loss moves, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from data.sources import Source
from experiments.random_release import TINY
from tests.teachers import use_random_teacher
from training.adversary import Adversary
from training.companion import Companion
from training.config import Config, Data, Discriminator
from training.distributed import Ranks
from training.listener import Listener

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def config() -> Config:
    speech = (Source.parse("speech"),)
    return Config(model_dir="release", data=Data(speech, speech), discriminator=Discriminator(channels=4))


def _weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_matching_features_moves_the_reconstruction_and_learning_the_discriminator(config: Config) -> None:
    torch.manual_seed(0)
    adversary = Adversary(config, ALONE, lambda: torch.autocast("cpu", enabled=False))
    original, reconstruction = torch.randn(2, 2, 1, 4000) * 0.1
    reconstruction.requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in adversary.network.named_parameters()}
    matched = adversary.match(reconstruction, original)
    gradient = torch.autograd.grad(matched, reconstruction, retain_graph=True)[0]
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in adversary.network.parameters())
    adversary.learn()
    assert reconstruction.grad is None, "the hinge loss is the discriminator's alone"
    adversary.update()
    still = [name for name, now in adversary.network.named_parameters() if torch.equal(now, before[name])]
    # within the margins originals pull the last biases up as far as reconstructions pull them down
    assert all(name.endswith("bias") for name in still)
    assert adversary.metrics["discriminator"] > 0


def test_two_parts_of_a_step_learn_as_the_whole_of_it() -> None:
    torch.manual_seed(0)
    inputs, start = torch.randn(8, 5), nn.Linear(5, 1).state_dict()

    def trained(parts: int) -> torch.Tensor:
        network = nn.Linear(5, 1)
        network.load_state_dict(start)
        companion = Companion(network, ALONE, 1e-2, (0.5, 0.9), parts)
        for part in inputs.chunk(parts):
            companion.loss = network(part).square().mean()
            companion.learn()
        companion.update()
        assert companion.updates == 1
        return network.weight.detach()

    assert torch.allclose(trained(1), trained(2), atol=1e-7)


def test_without_a_loss_nothing_is_learnt() -> None:
    network = nn.Linear(2, 2)
    before = _weights(network)
    companion = Companion(network, ALONE, 1e-2, (0.5, 0.9), 1)
    companion.learn()
    companion.update()
    assert companion.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(network), strict=True))


def test_distilling_moves_the_latents_behind_the_quantizer_and_the_projection(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_random_teacher(monkeypatch)
    torch.manual_seed(0)
    listener = Listener(config, ALONE, TINY.semantic_dim)
    latent = torch.randn(3, TINY.semantic_dim, 4, requires_grad=True)
    entries = latent + (torch.randn_like(latent) - latent).detach()
    loss = listener.distil(torch.randn(3, 1, 4 * 1920), entries)
    gradient = torch.autograd.grad(loss, latent, retain_graph=True)[0]
    assert gradient[:2].abs().sum() > 0
    assert gradient[2].abs().sum() == 0, "nothing was heard in the third clip"
    assert listener.metrics["asr_silent_clips"] == 1
    before = _weights(listener.network)
    listener.learn()
    listener.update()
    assert all(not torch.equal(a, b) for a, b in zip(before, _weights(listener.network), strict=True))
