"""Inversion: the loss, and steps that train on pairs beside speech."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_encoder
from codec import Codec, load_release
from data.pairs import PairCrops, Pairs
from experiments.random_release import TINY
from losses import Inversion
from tests.one_step import ALONE
from tests.random_pairs import random_pair, random_shards
from training.config import ConfigError, load_config
from training.dataset import TrainingData
from training.monitoring import in_parts

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = torch.ones(1, 40, dtype=torch.bool)
WITH_PAIRS = ("losses.inversion=5", "batch_size=4", "log_every=1")


@pytest.fixture
def codec(tiny_release: Path) -> Codec:
    return load_release(tiny_release, torch.float32)


@pytest.fixture
def pairs(tiny_release: Path, tmp_path: Path) -> str:
    return f"data.pairs={random_shards(tiny_release, tmp_path / 'pairs')}"


def latent_of(codec: Codec, codes: torch.Tensor) -> torch.Tensor:
    """The latent that is exactly at these codes."""
    at_levels = codec.quantizer.decode(codes)
    acoustic = at_levels[:, TINY.semantic_dim :].clamp(-0.999, 0.999).atanh()
    return torch.cat([at_levels[:, : TINY.semantic_dim], acoustic], dim=1)


def test_at_the_codes_themselves_the_loss_is_smallest_and_all_codes_are_found(codec: Codec) -> None:
    inversion, codes = Inversion(codec.quantizer), random_pair(TINY, 40, 0).codes[None]
    latent = latent_of(codec, codes)
    least, found = inversion(latent, codes, EVERY)
    assert {name: float(value) for name, value in found.items()} == {
        "found/semantic": 1,
        "found/acoustic": 1,
        "found/acoustic_within_one": 1,
    }
    for size in (0.05, 0.5):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        moved, _ = inversion(latent + size * noise, codes, EVERY)
        assert moved > least
        least = moved


def test_a_code_a_level_off_is_not_found_but_near(codec: Codec) -> None:
    codes = random_pair(TINY, 40, 0).codes[None].clamp(max=19)
    wanted = codes.clone()
    wanted[:, 1:10] += 1
    _, found = Inversion(codec.quantizer)(latent_of(codec, codes), wanted, EVERY)
    assert float(found["found/acoustic"]) == pytest.approx(27 / 36)
    assert float(found["found/acoustic_within_one"]) == 1


def test_frames_that_do_not_count_get_no_gradient_and_are_not_in_the_shares(codec: Codec) -> None:
    codes = random_pair(TINY, 40, 0).codes[None]
    counted = torch.arange(40)[None] >= 30
    latent = latent_of(codec, codes)
    latent[..., :30] = 0.3
    latent.requires_grad_()
    loss, found = Inversion(codec.quantizer)(latent, codes, counted)
    loss.backward()
    assert float(found["found/semantic"]) == float(found["found/acoustic"]) == 1
    assert latent.grad is not None
    assert not latent.grad[..., :30].any()
    assert latent.grad[..., 30:].any()


def test_descending_the_loss_finds_the_codes(codec: Codec) -> None:
    inversion, codes = Inversion(codec.quantizer), random_pair(TINY, 12, 0).codes[None]
    latent = torch.zeros(1, TINY.latent_dim, 12, requires_grad=True)
    optimizer = torch.optim.Adam([latent], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        loss, found = inversion(latent, codes, EVERY[:, :12])
        loss.backward()
        optimizer.step()
    assert float(found["found/semantic"]) == 1
    assert float(found["found/acoustic"]) > 0.95


def test_a_part_of_the_batch_is_pairs_and_what_is_found_of_them_is_logged(settings: Path, pairs: str) -> None:
    others = ("losses.diversity=0.5", "losses.shaping=0.5", "losses.stft=0")
    config = load_config(settings, (*WITH_PAIRS, *others, pairs, "data.pairs_share=0.25", "accumulate=2"))
    assert (config.crops_a_batch, config.pairs_a_batch) == (3, 1)
    training = train_encoder.Trainer(config, ALONE)
    data = TrainingData(config, ALONE, training.codec)
    assert data.crops_a_rank == 6
    metrics = training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
    shares = ("reconstruction", "commitment", "diversity", "shaping", "inversion")
    assert sum(float(metrics[f"share_latent/{name}"]) for name in shares) == pytest.approx(1, abs=1e-4)
    assert {"inversion", "found/semantic", "found/acoustic", "found/acoustic_within_one"} <= set(metrics)
    assert training.state.clips_seen == 6
    assert training.monitor.found() is None


def gradient(settings: Path, *overrides: str) -> torch.Tensor:
    """The encoder's gradient of a first step, before anything is clipped or updated."""
    config = load_config(settings, (*overrides, "optimizer.clip_norm=1e9", "optimizer.lr=1e-12"))
    training = train_encoder.Trainer(config, ALONE)
    data = TrainingData(config, ALONE, training.codec)
    training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
    return torch.cat([p.grad.flatten() for p in training.trained.parameters() if p.grad is not None])


def test_a_steps_gradient_in_parts_is_that_of_the_whole_batch(settings: Path, pairs: str) -> None:
    """With fixed weights; balanced ones are balanced part by part. All crops are quantized, so that no draw differs."""
    common = (pairs, "losses.inversion=1", "losses.balanced=false", "stochastic=false", "losses.stft=0")
    whole = gradient(settings, *common, "batch_size=4")
    parts = gradient(settings, *common, "batch_size=2", "accumulate=2")
    assert (whole - parts).norm() < 1e-4 * whole.norm()


def test_the_size_of_the_pairs_part_does_not_change_the_loss_shares(settings: Path, pairs: str) -> None:
    shares = []
    for share in (0.25, 0.75):
        config = load_config(settings, (pairs, *WITH_PAIRS, "losses.stft=0", f"data.pairs_share={share}"))
        training = train_encoder.Trainer(config, ALONE)
        data = TrainingData(config, ALONE, training.codec)
        metrics = training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
        shares.append(float(metrics["share_latent/inversion"]))
    assert shares[0] == pytest.approx(5 / 9.6, rel=1e-3)  # 4.5 on the reconstruction, 0.1 commitment
    assert shares[1] == pytest.approx(5 / 9.6, rel=1e-3)


def test_a_pair_that_breaks_the_loss_is_named(settings: Path, pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(settings, (pairs, *WITH_PAIRS))
    training = train_encoder.Trainer(config, ALONE)
    data = TrainingData(config, ALONE, training.codec)
    gradients = train_encoder.gradients

    def broken(values: dict[str, torch.Tensor], at: torch.Tensor) -> dict[str, torch.Tensor]:
        found = gradients(values, at)
        if "inversion" in found:
            found["inversion"][3, 0, 1] = torch.nan
        return found

    monkeypatch.setattr(train_encoder, "gradients", broken)
    batch, crops = next(data.batches(0)), data.pairs(0)
    assert crops is not None
    training.monitor.note_clips(0, in_parts(batch.names, crops.names, 1))
    training.step(batch.waveform, 0, crops)
    assert training.monitor.found() == (1, ("inversion",), (crops.names[1],))


def test_names_are_in_the_order_of_the_parts() -> None:
    assert in_parts(["a", "b", "c", "d"], ["x", "y"], 2) == ["a", "b", "x", "c", "d", "y"]
    assert in_parts(["a", "b", "c"], [], 1) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("losses.inversion=1",), "data.pairs is empty, expected files that speak_pairs.py wrote"),
        (("data.pairs=somewhere",), "losses.inversion is 0"),
        (("data.pairs=[a, b]", "losses.inversion=1", "batch_size=1"), "batch_size is 1, expected 2 or more"),
        (("data.pairs=a", "losses.inversion=1", "data.pairs_share=1"), "expected more than 0 and less than 1"),
        (("data.pairs=a", "losses.inversion=1", "train=codec", "params=x"), "expected train=encoder"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(settings, overrides)


def test_crops_of_speech_are_those_of_a_run_without_pairs(settings: Path, pairs: str, codec: Codec) -> None:
    alone = TrainingData(load_config(settings, ("batch_size=2",)), ALONE, codec)
    beside = TrainingData(load_config(settings, (pairs, *WITH_PAIRS)), ALONE, codec)
    assert torch.equal(next(alone.batches(4)).waveform, next(beside.batches(4)).waveform)
    assert alone.pairs(0) is None
    assert isinstance(beside.pair_crops, PairCrops)
    assert isinstance(beside.pair_crops.pairs, Pairs)
