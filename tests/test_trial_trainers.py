"""experiments/trial_trainers.py: pairs pass a bridge, or give way to the withheld encoder's codes of speech."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_encoder
from codec.checkpoint import save_encoder
from experiments.trial_trainers import AskedTrainer, Bridge, BridgedTrainer
from tests.one_step import ALONE
from tests.random_pairs import random_shards
from training.config import load_config
from training.step_inputs import noise_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainer(settings: Path, tiny_release: Path, tmp_path: Path) -> BridgedTrainer:
    return BridgedTrainer(load_config(settings, with_pairs(tiny_release, tmp_path)), ALONE)


def with_pairs(release: Path, folder: Path) -> list[str]:
    pairs = f"data.pairs={random_shards(release, folder / 'pairs')}"
    return [pairs, "losses.inversion=5", "losses.stft=1", "batch_size=4", "cuda_graph=false"]


def test_a_bridge_begins_as_the_identity_and_learns_in_every_step(trainer: BridgedTrainer) -> None:
    waveform, pairs = noise_for(trainer.config, trainer.codec)
    assert torch.equal(trainer.bridge(waveform), waveform)
    losses = [float(trainer.step(waveform, step, pairs)["bridge"]) for step in range(2)]
    assert losses[1] != losses[0] > 0
    assert not torch.equal(trainer.bridge(waveform), waveform)


def test_pairs_pass_the_bridge_and_keep_their_codes(trainer: BridgedTrainer) -> None:
    _, pairs = noise_for(trainer.config, trainer.codec)
    before = trainer.pair_decoder(pairs.codes, pairs.begins)
    torch.nn.init.constant_(trainer.bridge.last.bias, 0.25)  # type: ignore[arg-type]
    behind = trainer.pair_decoder(pairs.codes, pairs.begins)
    assert torch.allclose(behind.waveform, before.waveform + 0.25)
    assert torch.equal(behind.codes, before.codes)


def test_a_bridge_learns_what_the_decoder_leaves_out(trainer: BridgedTrainer) -> None:
    recording = 0.1 * torch.randn(4, 1, 9600, generator=torch.Generator().manual_seed(0))
    decoded = 0.5 * recording  # too quiet
    before = trainer.mel_distance(decoded, recording)
    for _ in range(30):
        trainer.learn(decoded, recording)
    assert trainer.mel_distance(trainer.bridge(decoded), recording) < 0.5 * before


def test_a_bridge_has_the_length_of_what_it_gets() -> None:
    assert Bridge(4)(torch.zeros(2, 1, 1001)).shape == (2, 1, 1001)


def test_the_withheld_encoder_is_asked_about_the_speech_itself(
    settings: Path, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that is the withheld one finds its codes, up to the file's rounding."""
    config = load_config(settings, with_pairs(tiny_release, tmp_path))
    monkeypatch.setattr(AskedTrainer, "withheld", tmp_path / "withheld.safetensors")
    save_encoder(AskedTrainer.withheld, train_encoder.Trainer(config, ALONE).codec, {})
    trainer = AskedTrainer(config, ALONE)
    waveform, pairs = noise_for(config, trainer.codec)
    metrics = trainer.step(waveform, 0, pairs)
    assert float(metrics["found/semantic"]) > 0.9
    assert float(metrics["found/acoustic"]) > 0.9
