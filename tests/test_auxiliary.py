"""The networks that learn beside the codec: what each loss moves, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from data.sources import Source
from experiments.random_release import TINY
from losses.discriminator import feature_matching, hinge_loss
from tests.random_teacher import use_random_teacher
from training.auxiliary import AuxiliaryNetwork, build_asr_projection, build_discriminator, load_teacher
from training.config import Config, Data, Discriminator
from training.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def config() -> Config:
    speech = (Source.parse("speech"),)
    return Config(model_dir="release", data=Data(speech, speech), discriminator=Discriminator(channels=4))


def _weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_matching_features_moves_the_reconstruction_and_learning_the_discriminator(config: Config) -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(config, ALONE)
    original, reconstruction = torch.randn(2, 2, 1, 4000) * 0.1
    reconstruction.requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in discriminator.network.named_parameters()}
    real_logits, real_features = discriminator.network(original)
    fake_logits, fake_features = discriminator.network(reconstruction)
    matched = feature_matching(real_features, fake_features)
    gradient = torch.autograd.grad(matched, reconstruction, retain_graph=True)[0]
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.network.parameters())
    discriminator.backward(hinge_loss(real_logits, fake_logits))
    assert reconstruction.grad is None, "the hinge loss is the discriminator's alone"
    discriminator.update()
    still = [name for name, now in discriminator.network.named_parameters() if torch.equal(now, before[name])]
    # within the margins originals pull the last biases up as far as reconstructions pull them down
    assert all(name.endswith("bias") for name in still)


def test_two_parts_of_a_step_learn_as_the_whole_of_it(config: Config) -> None:
    torch.manual_seed(0)
    inputs, start = torch.randn(8, 5), nn.Linear(5, 1).state_dict()

    def trained(parts: int) -> torch.Tensor:
        network = nn.Linear(5, 1)
        network.load_state_dict(start)
        auxiliary = AuxiliaryNetwork(network, 1e-2, replace(config, accumulate=parts), ALONE)
        for part in inputs.chunk(parts):
            auxiliary.backward(network(part).square().mean())
        auxiliary.update()
        assert auxiliary.updates == 1
        return network.weight.detach()

    assert torch.allclose(trained(1), trained(2), atol=1e-7)


def test_without_a_loss_nothing_is_learnt(config: Config) -> None:
    network = nn.Linear(2, 2)
    before = _weights(network)
    auxiliary = AuxiliaryNetwork(network, 1e-2, config, ALONE)
    assert auxiliary.update() is None
    assert auxiliary.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, _weights(network), strict=True))


def test_distilling_moves_the_latents_behind_the_quantizer_and_the_projection(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_random_teacher(monkeypatch)
    torch.manual_seed(0)
    teacher = load_teacher(config, ALONE)
    projection = build_asr_projection(config, ALONE, TINY.semantic_dim, teacher.width)
    latent = torch.randn(3, TINY.semantic_dim, 4, requires_grad=True)
    entries = latent + (torch.randn_like(latent) - latent).detach()
    targets = teacher.targets(torch.randn(3, 4 * 1920))
    loss = projection.network(targets, entries)
    gradient = torch.autograd.grad(loss, latent, retain_graph=True)[0]
    assert gradient[:2].abs().sum() > 0
    assert gradient[2].abs().sum() == 0, "the third clip has no speech"
    assert targets.clips_without_speech == 1
    before = _weights(projection.network)
    projection.backward(loss)
    projection.update()
    assert all(not torch.equal(a, b) for a, b in zip(before, _weights(projection.network), strict=True))
