"""One training step: what each loss is given, and what its gradient reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_encoder
from experiments.random_release import TINY
from losses.asr.distillation import ASRDistillation, DistillationTargets
from tests.one_step import ALONE, CROPS, EVERY_PART
from tests.random_teacher import use_random_teacher
from training.config import load_config


@pytest.fixture
def training(settings: Path, monkeypatch: pytest.MonkeyPatch) -> train_encoder.Trainer:
    use_random_teacher(monkeypatch)
    return train_encoder.Trainer(load_config(settings, EVERY_PART), ALONE)


def test_every_loss_its_share_and_the_codes_are_logged(training: train_encoder.Trainer) -> None:
    metrics = training.step(CROPS, 0)
    for place, names in (
        ("share", ("mel", "l1", "stft", "feature_matching")),
        ("share_latent", ("reconstruction", "commitment", "asr", "diversity", "shaping")),
    ):
        assert sum(float(metrics[f"{place}/{name}"]) for name in names) == pytest.approx(1, abs=1e-4)
        assert set(names) - {"reconstruction"} <= set(metrics)
    assert {
        "discriminator",
        "asr_silent_clips",
        "gradient_norm/encoder",
        "gradient_norm/discriminator",
        "acoustic_mean",
    } <= set(metrics)
    assert training.monitor.found() is None


def test_the_teacher_is_followed_behind_the_quantizer(
    training: train_encoder.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample's frames are entries of the codebook, also of those the decoder gets unquantized."""
    given = []
    distil = ASRDistillation.forward

    def record(self: ASRDistillation, targets: object, semantic: torch.Tensor) -> torch.Tensor:
        given.append(semantic.detach())
        return distil(self, targets, semantic)  # type: ignore[arg-type]

    monkeypatch.setattr(ASRDistillation, "forward", record)
    training.step(CROPS, 0)
    (semantic,) = given
    entries = training.quantizer.semantic_codebook.embedding
    frames = semantic.transpose(1, 2).reshape(-1, 1, TINY.semantic_dim)
    assert (frames - entries).square().sum(dim=-1).amin(dim=1).max() < 1e-9


def test_commitment_is_the_semantic_parts_alone(
    training: train_encoder.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    commitment = train_encoder.commitment

    def record(latent: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        given.append((latent.shape[1], entry.shape[1]))
        return commitment(latent, entry)

    monkeypatch.setattr(train_encoder, "commitment", record)
    training.step(CROPS, 0)
    assert given == [(TINY.semantic_dim, TINY.semantic_dim)]


def test_decoder_codebook_and_teacher_stay_while_encoder_discriminator_and_projection_move(
    training: train_encoder.Trainer,
) -> None:
    def weights() -> dict[str, torch.Tensor]:
        networks = {"codec": training.codec, **{name: one.network for name, one in training.auxiliary.items()}}
        return {f"{n}.{key}": t.clone() for n, network in networks.items() for key, t in network.state_dict().items()}

    before = weights()
    training.step(CROPS, 0)
    moved = {name for name, tensor in weights().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"codec", "discriminator", "asr projection"}
    encoder = {f"codec.encoder.{name}" for name in training.codec.get_submodule("encoder").state_dict()}
    assert {name for name in moved if name.startswith("codec.")} == encoder


def test_a_loss_of_every_third_step_keeps_its_last_value_in_between(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_random_teacher(monkeypatch)
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, "losses.asr_every=3")), ALONE)
    asr = [float(training.step(CROPS, step)["asr"]) for step in range(4)]
    assert asr[0] == asr[1] == asr[2] != asr[3]
    assert training.auxiliary["asr projection"].updates == 2


def test_the_discriminator_begins_at_its_step(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, "discriminator.start_step=2")), ALONE)
    assert ["feature_matching" in training.step(CROPS, step) for step in range(3)] == [False, False, True]
    assert training.auxiliary["discriminator"].updates == 1


def test_the_discriminator_can_learn_in_every_second_step(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, "discriminator.every=2")), ALONE)
    assert ["feature_matching" in training.losses_of(step) for step in range(4)] == [True, False, True, False]
    for step in range(3):
        training.step(CROPS, step)
    assert training.auxiliary["discriminator"].updates == 2


def test_the_discriminator_can_get_a_random_part_of_each_crop(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, "discriminator.crop_seconds=0.1")), ALONE)
    gradients: list[torch.Tensor] = []
    combine = training.waveform_balancer.combine

    def seen(at: dict[str, torch.Tensor], factors: dict[str, torch.Tensor]) -> torch.Tensor:
        gradients.append(at["feature_matching"])
        return combine(at, factors)

    monkeypatch.setattr(training.waveform_balancer, "combine", seen)
    training.step(CROPS, 0)
    begins = [int(clip[0].nonzero().min()) for clip in gradients[0]]
    lengths = [int(clip[0].nonzero().max()) + 1 - begin for clip, begin in zip(gradients[0], begins, strict=True)]
    assert len(set(begins)) > 1
    assert all(2300 < length <= 2400 for length in lengths), "the window of the longest transform begins and ends at 0"


def test_a_crop_that_breaks_a_loss_is_named(training: train_encoder.Trainer) -> None:
    crops = CROPS.clone()
    crops[2, 0, 4000] = torch.nan
    training.monitor.note_clips(0, ["a", "b", "broken.wav", "d"])
    training.step(crops, 0)
    broken = training.monitor.found()
    assert broken is not None
    assert broken.clips == ("broken.wav",)
    assert "mel" in broken.losses
    assert "reconstruction" not in broken.losses


def test_a_single_loss_that_breaks_is_named_with_its_clip(
    training: train_encoder.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = train_encoder.gradients

    def broken_stft(values: dict[str, torch.Tensor], at: torch.Tensor) -> dict[str, torch.Tensor]:
        found = gradients(values, at)
        if "stft" in found:
            found["stft"][1, 0, 7] = torch.nan
        return found

    monkeypatch.setattr(train_encoder, "gradients", broken_stft)
    training.monitor.note_clips(0, ["a", "b", "c", "d"])
    training.step(CROPS, 0)
    assert training.monitor.found() == (1, ("stft",), ("b",))


def test_shares_are_those_of_all_steps_since_they_were_asked_for(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_random_teacher(monkeypatch)
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, "losses.asr_every=2")), ALONE)
    with_speech = training.step(CROPS, 0)
    training.step(CROPS, 1)
    shares = training.metrics.mean_shares()
    assert float(shares["share_latent/asr"]) == pytest.approx(float(with_speech["share_latent/asr"]) / 2)
    assert sum(float(share) for name, share in shares.items() if name.startswith("share_latent/")) == pytest.approx(1)
    assert training.metrics.mean_shares() == {}


def test_clips_without_speech_add_up(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, "losses.asr_every=2")), ALONE)
    make = training.asr_teacher.targets

    def of_silence(waveform: torch.Tensor, languages: torch.Tensor) -> DistillationTargets:
        found = make(waveform)
        return found._replace(mask=found.mask & (torch.arange(4)[:, None] == 0))

    monkeypatch.setattr(training.asr_teacher, "targets", of_silence)
    assert [float(training.step(CROPS, step)["asr_silent_clips"]) for step in range(4)] == [3, 3, 6, 6]


def test_fading_weighs_the_losses_that_fade_in_a_step(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    shares = {}
    for fading in (1.0, 0.5):
        config = load_config(settings, (*EVERY_PART, f"losses.l1_stft_decay={fading}"))
        training = train_encoder.Trainer(config, ALONE)
        found = training.step(CROPS, 3)
        shares[fading] = {name: float(found[f"share/{name}"] / found["share/mel"]) for name in ("l1", "stft")}
    for name in ("l1", "stft"):
        assert shares[0.5][name] == pytest.approx(shares[1.0][name] / 8, rel=1e-3)


def test_the_decoder_hears_what_is_quantized_for_some_samples_only(
    training: train_encoder.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    quantizer = type(training.quantizer).forward

    def keep(self: torch.nn.Module, latent: torch.Tensor, draw: object = None) -> object:
        found = quantizer(self, latent, draw)
        drawn.append(bool(torch.equal(found.latent, quantizer(self, latent, None).latent)))
        return found

    monkeypatch.setattr(type(training.quantizer), "forward", keep)
    training.step(CROPS, 0)
    assert drawn == [False]
