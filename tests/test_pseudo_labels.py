"""Pseudo-labels: the labeller, the loss, and steps that train with both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_encoder
from codec import Codec, load_release
from experiments.random_release import TINY
from losses import Inversion, PseudoLabels
from losses.pseudo_labels import DROPPED, HIDDEN, STATES, Labeller, lose_channels
from tests.one_step import ALONE
from tests.random_pairs import random_shards
from tests.random_teacher import use_random_teacher
from training.config import ConfigError, load_config
from training.dataset import TrainingData

pytestmark = pytest.mark.usefixtures("one_thread")

Found = tuple[torch.Tensor, dict[str, torch.Tensor]]
LABELLED = ("losses.pseudo_labels=2", "losses.inversion=5", "losses.stft=0", "batch_size=4", "log_every=1")


@pytest.fixture
def codec(tiny_release: Path) -> Codec:
    return load_release(tiny_release, torch.float32)


@pytest.fixture
def pairs(tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    use_random_teacher(monkeypatch)
    return f"data.pairs={random_shards(tiny_release, tmp_path / 'pairs')}"


def test_the_labeller_learns_the_codes_of_frames_that_count_and_no_others(codec: Codec) -> None:
    loss, generator = PseudoLabels(codec.quantizer), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labeller = Labeller(8, TINY.semantic_dim)
    optimizer = torch.optim.Adam(labeller.parameters(), 1e-3)
    looks = torch.randn(6, 8, generator=generator)
    counted = torch.arange(20) >= 5

    def misleading_at(codes: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        return torch.where(counted, codes, (codes + 1) % 6)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.randint(6, (16, 20), generator=generator)
        return looks[codes].repeat_interleave(STATES, dim=1), codes

    for _ in range(150):
        states, codes = batch()
        misleading = misleading_at(codes, counted)
        optimizer.zero_grad()
        draw = labeller.draw(16, generator)
        loss.labelling(labeller(states, draw), misleading, counted.expand(16, -1)).backward()
        optimizer.step()
    states, codes = batch()
    every = torch.ones(16, 20, dtype=torch.bool)
    assert loss.found(labeller(states), codes, every) > 0.95 * codes.numel()
    wanted = torch.where(counted, (codes + 1) % 6, codes)  # right where none counts
    assert loss.found(labeller(states), wanted, counted.expand(16, -1)) == 0


def test_a_draw_drops_whole_channels_and_keeps_the_mean() -> None:
    labeller, generator = Labeller(8, 5), torch.Generator().manual_seed(0)
    draw = labeller.draw(4, generator)
    assert draw.shape == (4, 8 + 3 * HIDDEN)
    x, numbers = 1 + torch.rand(4, 7, HIDDEN, generator=generator), draw[:, 8 : 8 + HIDDEN]
    lost = lose_channels(x, numbers)
    gone = (lost == 0).all(dim=1)
    assert torch.equal(gone, numbers < DROPPED)
    assert torch.equal(lost.transpose(1, 2)[~gone], 2 * x.transpose(1, 2)[~gone])
    assert float(lost.mean()) == pytest.approx(float(x.mean()), rel=0.1)


def test_every_layer_of_the_labeller_loses_channels() -> None:
    labeller, states = Labeller(8, 5), torch.rand(1, 28, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(1, 8 + 3 * HIDDEN)
    found = [labeller(states, kept)]
    for layer in (slice(0, 8), slice(8, 8 + HIDDEN), slice(8 + HIDDEN, 8 + 2 * HIDDEN), slice(8 + 2 * HIDDEN, None)):
        lost = kept.clone()
        lost[:, layer] = 0
        found.append(labeller(states, lost))
    assert len({tuple(each.flatten().tolist()) for each in found}) == 5


def test_the_loss_is_smallest_at_the_labelled_entries_and_teaches_only_the_latents(codec: Codec) -> None:
    loss = PseudoLabels(codec.quantizer)
    codes = torch.randint(TINY.semantic_codebook_size, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = loss.entries[codes].transpose(1, 2).clone().requires_grad_()
    at_entries = loss.entries[codes].transpose(1, 2)
    least = float(loss(at_entries, labels))
    noise = torch.randn(at_entries.shape, generator=torch.Generator().manual_seed(1))
    for size in (0.5, 2.0):
        moved = (at_entries + size * loss.spacing.sqrt() * noise).requires_grad_()
        value = loss(moved, labels)
        assert value > least
        least = float(value.detach())
    value.backward()
    assert moved.grad is not None
    assert moved.grad.abs().sum() > 0
    assert labels.grad is None


def test_soft_labels_weigh_the_entries_by_their_probabilities(codec: Codec) -> None:
    loss = PseudoLabels(codec.quantizer, temperature=0.7)
    generator = torch.Generator().manual_seed(0)
    latent = loss.spacing.sqrt() * torch.randn(2, TINY.semantic_dim, 3, generator=generator)
    labels = loss.spacing.sqrt() * torch.randn(2, TINY.semantic_dim, 3, generator=generator)

    def logarithms(of: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(-(loss.entries - of).square().sum(dim=1) / (0.7 * loss.spacing), dim=0)

    expected = torch.zeros(())
    for clip in range(2):
        for frame in range(3):
            scores, wanted = logarithms(latent[clip, :, frame]), logarithms(labels[clip, :, frame])
            expected -= (wanted.exp() * scores).sum() / 6
    assert float(loss(latent, labels)) == pytest.approx(float(expected), rel=1e-4)


def test_a_step_labels_speech_and_learns_the_labels_from_pairs(settings: Path, pairs: str) -> None:
    training = train_encoder.Trainer(load_config(settings, (*LABELLED, pairs, "accumulate=2")), ALONE)
    data = TrainingData(training.config, ALONE, training.codec)
    before = [parameter.clone() for parameter in training.labeller.network.parameters()]
    metrics = training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
    shares = ("reconstruction", "commitment", "inversion", "pseudo_labels")
    assert sum(float(metrics[f"share_latent/{name}"]) for name in shares) == pytest.approx(1, abs=1e-4)
    assert {"pseudo_labels", "found/labeller"} <= set(metrics)
    assert training.labeller.updates == 1
    after = training.labeller.network.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert training.monitor.found() is None


@pytest.mark.parametrize(
    ("labeller", "encoder", "factor"),
    [(0, 0, 0), (5, 5, 0.25), (20, 5, 1), (5, 20, 0.25 * 0.25), (10, 16, 0.5 * 0.625)],
)
def test_the_labels_weigh_as_much_as_the_labeller_knows_and_less_beside_a_better_encoder(
    settings: Path, pairs: str, monkeypatch: pytest.MonkeyPatch, labeller: int, encoder: int, factor: float
) -> None:
    def shares(self: Inversion, latent: torch.Tensor, codes: torch.Tensor, counted: torch.Tensor) -> Found:
        loss, found = inversion(self, latent, codes, counted)
        return loss, found | {"found/semantic": torch.tensor(encoder / 20)}

    def found(self: PseudoLabels, labels: torch.Tensor, codes: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        return labeller / 20 * counted.sum()

    inversion = Inversion.forward
    monkeypatch.setattr(Inversion, "forward", shares)
    monkeypatch.setattr(PseudoLabels, "found", found)
    training = train_encoder.Trainer(load_config(settings, (*LABELLED, pairs)), ALONE)
    data = TrainingData(training.config, ALONE, training.codec)
    metrics = training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
    assert float(metrics["found/labeller"]) == labeller / 20
    share = float(metrics["share_latent/pseudo_labels"] / metrics["share_latent/inversion"])
    assert share == pytest.approx(factor * 2 / 5, abs=1e-4)


def test_the_labels_gradient_is_at_the_speech_and_the_labeller_learns_the_same_in_parts(
    settings: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_latent: list[torch.Tensor] = []
    gradients = train_encoder.gradients

    def noted(values: dict[str, torch.Tensor], at: torch.Tensor) -> dict[str, torch.Tensor]:
        found = gradients(values, at)
        if "pseudo_labels" in found:
            at_latent.append(found["pseudo_labels"])
        return found

    monkeypatch.setattr(train_encoder, "gradients", noted)
    learned = []
    for parts in (("batch_size=4",), ("batch_size=2", "accumulate=2")):
        config = load_config(settings, (*LABELLED, pairs, *parts, "optimizer.lr=1e-12"))
        training = train_encoder.Trainer(config, ALONE)
        data = TrainingData(config, ALONE, training.codec)
        training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
        learned.append(torch.cat([p.grad.flatten() for p in training.labeller.parameters if p.grad is not None]))
    assert (learned[0] - learned[1]).norm() < 1e-4 * learned[0].norm()
    speech, of_pairs = at_latent[0].split(2)
    assert speech[:, : TINY.semantic_dim].abs().sum() > 0
    assert speech[:, TINY.semantic_dim :].abs().sum() == of_pairs.abs().sum() == 0


def test_pseudo_labels_need_pairs_and_crops_that_whisper_hears_at_once(settings: Path) -> None:
    with pytest.raises(ConfigError, match=r"pseudo_labels is on, expected data.pairs and losses.inversion"):
        load_config(settings, ("losses.pseudo_labels=1",))
    with pytest.raises(ConfigError, match=r"crop_seconds is 31.0, expected at most 30 with losses.pseudo_labels"):
        load_config(settings, ("losses.pseudo_labels=1", "losses.inversion=1", "data.pairs=a", "data.crop_seconds=31"))
