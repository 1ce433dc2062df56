"""The second pass: speech learns the codes that the encoder finds in its reconstruction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_encoder
from losses import Inversion
from tests.one_step import ALONE
from tests.random_pairs import random_shards
from training.config import ConfigError, load_config
from training.dataset import TrainingData
from training.pairs import SETTLING

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = 6


@pytest.fixture
def trainer(settings: Path, tiny_release: Path, tmp_path: Path) -> train_encoder.Trainer:
    pairs = f"data.pairs={random_shards(tiny_release, tmp_path / 'pairs')}"
    weights = ("losses.inversion=5", "losses.second_pass=2", "losses.stft=0", "stochastic=false", "batch_size=4")
    return train_encoder.Trainer(load_config(settings, (pairs, *weights, f"data.crop_seconds={FRAMES * 0.08}")), ALONE)


def test_the_loss_is_that_of_the_codes_of_the_decoded_codes(trainer: train_encoder.Trainer) -> None:
    data, codec = TrainingData(trainer.config, ALONE, trainer.codec), trainer.codec
    waveform = next(data.batches(0)).waveform
    with torch.no_grad():
        latent = codec.get_submodule("encoder")(waveform)
        codes = codec.encode(waveform)
        again = codec.encode(codec.decode(codes))
        counted = (torch.arange(FRAMES) >= SETTLING).expand(len(waveform), -1)
        expected, _ = Inversion(codec.quantizer, trainer.config.losses.inversion_temperature)(latent, again, counted)
    metrics = trainer.step(waveform, 0, data.pairs(0))
    assert float(metrics["second_pass"]) == pytest.approx(float(expected), rel=1e-4)
    equal = (again == codes)[..., SETTLING:].float()
    assert float(metrics["steady/semantic"]) == pytest.approx(float(equal[:, 0].mean()))
    assert float(metrics["steady/acoustic"]) == pytest.approx(float(equal[:, 1:].mean()))
    assert 0 < metrics["steady/acoustic"] < 1
    shares = ("reconstruction", "commitment", "inversion", "second_pass")
    assert sum(float(metrics[f"share_latent/{name}"]) for name in shares) == pytest.approx(1, abs=1e-4)
    assert float(metrics["share_latent/second_pass"]) == pytest.approx(2 / (4.5 + 0.1 + 5 + 2), rel=1e-3)


def test_it_teaches_the_settled_frames_of_speech_and_nothing_of_the_pairs(
    trainer: train_encoder.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, torch.Tensor] = {}
    gradients = train_encoder.gradients

    def kept(values: dict[str, torch.Tensor], at: torch.Tensor) -> dict[str, torch.Tensor]:
        found.update(gradients(values, at))
        return gradients(values, at)

    monkeypatch.setattr(train_encoder, "gradients", kept)
    data = TrainingData(trainer.config, ALONE, trainer.codec)
    waveform = next(data.batches(0)).waveform
    trainer.step(waveform, 0, data.pairs(0))
    at_latent = found["second_pass"]
    assert at_latent[: len(waveform), :, SETTLING:].flatten(1).any(dim=1).all()
    assert not at_latent[: len(waveform), :, :SETTLING].any()
    assert not at_latent[len(waveform) :].any()


def test_it_needs_pairs(settings: Path) -> None:
    with pytest.raises(ConfigError, match=r"losses.second_pass is on, expected data.pairs and losses.inversion"):
        load_config(settings, ("losses.second_pass=1",))
