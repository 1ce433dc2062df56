"""The speaker distance: identities, its gradient, and the small trained network, which distinguishes speakers."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor, nn

from data import open_clips
from data.audio import decode
from experiments.stand_in import train_speaker
from losses.resampling import band_limited_resample
from losses.speaker import SpeakerDistance, SpeakerModelError, SpeakerNetwork
from tests.fuzzing import bounded
from training.distributed import start_ranks

ROOT = Path(__file__).parent.parent
TRAINED = ROOT / "data/demo/speaker"
RATE = 24000

pytestmark = pytest.mark.usefixtures("one_thread")

# all entries of the published model's file, with few channels
LAYOUT = """\
n_mels: 80
pretrained_path: {folder}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [32, 32, 32, 32, 96]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 16
    lin_neurons: 24
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 24
    out_neurons: 7
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
"""


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the published layout; weights and batch statistics are random."""
    folder = tmp_path_factory.mktemp("speaker")
    (folder / "hyperparams.yaml").write_text(LAYOUT.format(folder=folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SpeakerNetwork(folder / "hyperparams.yaml").train()
        for _ in range(3):
            network(torch.randn(4, 16000))
    torch.save(network.embedding.state_dict(), folder / "embedding_model.ckpt")
    return folder


@pytest.fixture(scope="module")
def distance() -> SpeakerDistance:
    return SpeakerDistance(str(TRAINED))


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """The first 3 s of 30 unseen speakers of the demo: [30, 1, 72000]."""
    unseen = open_clips([str(ROOT / "data/demo/unseen.parquet")])
    waveforms = [decode(unseen.read(i), RATE) for i in range(len(unseen))]
    return torch.stack([waveform[:, : 3 * RATE] for waveform in waveforms if waveform.shape[-1] >= 3 * RATE][:30])


def tone(hertz: float, seconds: float) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)).double() / RATE).float()


def test_embeddings_are_those_of_speechbrains_own_interface(random_folder: Path, tmp_path: Path) -> None:
    from speechbrain.inference.classifiers import EncoderClassifier

    theirs = EncoderClassifier.from_hparams(source=str(random_folder), savedir=str(tmp_path))
    ours = SpeakerDistance(str(random_folder), sample_rate=16000)
    waveform = 0.1 * torch.randn(3, 20000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ours.embed(waveform[:, None]), theirs.encode_batch(waveform)[:, 0], atol=1e-5)
    waveform[1, 12000:] = 0
    lengths = torch.tensor([20000, 12000, 20000])
    expected = theirs.encode_batch(waveform, lengths / 20000)[:, 0]
    assert torch.allclose(ours.embed(waveform[:, None], lengths), expected, atol=1e-5)


def test_importing_the_loss_imports_no_network_and_building_it_leaves_torchs_settings_alone() -> None:
    program = f"""
import sys, torch
import losses.speaker
assert not {{"speechbrain", "huggingface_hub"}} & set(sys.modules)
before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
losses.speaker.SpeakerDistance({str(TRAINED)!r})
assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
"""
    environment = {name: value for name, value in os.environ.items() if name != "SB_DISABLE_QUIRKS"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "speechbrain" not in ran.stdout + ran.stderr.lower()


def test_equal_waveforms_have_no_distance(distance: SpeakerDistance, clips: Tensor) -> None:
    for samples in (RATE // 10, 24123, 3 * RATE):
        assert distance(clips[:4, :, :samples], clips[:4, :, :samples]).abs() < 1e-6


def test_the_gradient_goes_to_the_reconstruction_alone(distance: SpeakerDistance, clips: Tensor) -> None:
    reconstruction, original = clips[:3].clone().requires_grad_(), clips[3:6].clone().requires_grad_()
    distance(reconstruction, original).backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.isfinite().all()
    assert (reconstruction.grad.flatten(1).norm(dim=1) > 0).all()
    assert original.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in distance.parameters())


def test_following_the_gradient_reduces_the_distance(distance: SpeakerDistance, clips: Tensor) -> None:
    reconstruction, original = clips[:2].clone().requires_grad_(), clips[2:4]
    optimizer = torch.optim.Adam([reconstruction], 1e-3)
    before = distance(reconstruction, original).item()
    for _ in range(10):
        optimizer.zero_grad()
        distance(reconstruction, original).backward()
        optimizer.step()
    assert distance(reconstruction, original).item() < 0.5 * before


def test_silence_has_a_finite_distance_and_gradient(distance: SpeakerDistance, clips: Tensor) -> None:
    silence = torch.zeros(1, 1, RATE, requires_grad=True)
    value = distance(silence, clips[:1, :, :RATE])
    value.backward()
    assert value.isfinite()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_the_level_of_a_clip_does_not_count(distance: SpeakerDistance, clips: Tensor) -> None:
    values = distance.per_clip(clips[:4], clips[4:8])
    assert torch.allclose(distance.per_clip(0.1 * clips[:4], clips[4:8]), values, atol=1e-3)
    assert values.min() > 0.1


def test_a_batch_gives_what_its_clips_give_alone(distance: SpeakerDistance, clips: Tensor) -> None:
    together = distance.per_clip(clips[:4], clips[4:8])
    alone = torch.cat([distance.per_clip(clips[i : i + 1], clips[i + 4 : i + 5]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(distance(clips[:4], clips[4:8]), together.mean())


def test_a_padded_clip_gives_nearly_what_it_gives_alone(distance: SpeakerDistance, clips: Tensor) -> None:
    """Only nearly, because convolutions see the padding next to the last frames. Without lengths the voice differs."""
    length, count = 2 * RATE, 8
    padded = nn.functional.pad(clips[:count, :, :length], (0, RATE))
    alone = distance.embed(clips[:count, :, :length])
    with_lengths = distance.embed(padded, torch.full((count,), length))
    near = 1 - nn.functional.cosine_similarity(with_lengths, alone)
    far = 1 - nn.functional.cosine_similarity(distance.embed(padded), alone)
    assert near.max() < 0.01
    assert far.min() > 0.05


def test_sound_above_the_networks_band_changes_nothing(distance: SpeakerDistance, clips: Tensor) -> None:
    """If the resampler folded 10 kHz back to 6 kHz, a tone at 10 kHz would change the distance."""

    def with_tone(hertz: float) -> Tensor:
        return clips[:4] + 0.01 * tone(hertz, 3)

    assert distance.per_clip(with_tone(10000), clips[:4]).max() < 1e-4
    assert distance.per_clip(with_tone(6000), clips[:4]).min() > 1e-2


def test_resampling_keeps_the_band_and_removes_what_would_fold_into_it() -> None:
    resample = band_limited_resample(RATE)

    def decibels(hertz: float) -> float:
        return 10 * math.log10(2 * resample(tone(hertz, 2))[2000:-2000].square().mean())

    assert all(abs(decibels(hertz)) < 0.1 for hertz in (100, 4000, 7500))
    assert all(decibels(hertz) < -80 for hertz in (9000, 10000, 11500))


def test_the_network_stays_in_evaluation_mode(distance: SpeakerDistance, clips: Tensor) -> None:
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    model = nn.ModuleDict({"speaker": distance}).train()
    model["speaker"](clips[:2], clips[2:4])
    assert not any(module.training for module in distance.modules())
    assert all(torch.equal(value, before[name]) for name, value in distance.state_dict().items())


def test_autocast_does_not_reach_it(distance: SpeakerDistance, clips: Tensor) -> None:
    expected = distance(clips[:2], clips[2:4])
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(clips[:2], clips[2:4])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: only there convolutions may use TF32")
def test_a_training_gpu_gives_the_gradient_that_a_cpu_gives(
    distance: SpeakerDistance, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("allow_tf32", "benchmark"):  # start_ranks sets both
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))

    def gradient(device: torch.device) -> Tensor:
        reconstruction = (clips + 0.02 * noise).to(device).requires_grad_()
        value = copy.deepcopy(distance).to(device)(reconstruction, clips.to(device))
        return torch.autograd.grad(value, reconstruction)[0].cpu()

    with start_ranks() as ranks:
        found = gradient(ranks.device)
    expected = gradient(torch.device("cpu"))
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    # TF32 makes the median 3 % (experiments/LOG.md). Single clips can be off without it, where rounding switches
    # rectifiers: on a CPU, inputs that differ by 1e-7 change one of these gradients by 5e-4.
    assert errors.median() < 1e-4


def test_a_clip_too_short_for_the_network_is_refused(distance: SpeakerDistance) -> None:
    with pytest.raises(ValueError, match="2399 samples are too few"):
        distance(torch.zeros(1, 1, 2399), torch.zeros(1, 1, 2399))


def test_the_trained_network_distinguishes_unseen_speakers(distance: SpeakerDistance, clips: Tensor) -> None:
    """One half of each clip against the other halves of all 30, some of real people. 1.5 s is short for this task."""
    halves = [distance.embed(half) for half in clips.split(3 * RATE // 2, dim=-1)]
    cosines = nn.functional.cosine_similarity(halves[0][:, None], halves[1][None], dim=-1)  # [30, 30]
    same = torch.eye(len(clips), dtype=torch.bool)
    assert cosines[same].mean() - cosines[~same].mean() > 0.3
    assert train_speaker.equal_error_rate(cosines[same], cosines[~same]) < 0.15


BROKEN = {
    "no description": ({"hyperparams.yaml": None}, "No such file"),
    "no weights": ({"embedding_model.ckpt": None}, "No such file"),
    "no YAML": ({"hyperparams.yaml": "a: [1"}, "is not valid YAML"),
    "a value that is none": ({"hyperparams.yaml": LAYOUT + "\nx: !!bool maybe\n"}, "maybe"),
    "an empty description": ({"hyperparams.yaml": ""}, "compute_features: None, expected !new:speechbrain"),
    "another class": (
        {"hyperparams.yaml": LAYOUT.replace("lobes.features.Fbank", "lobes.features.MFCC")},
        "compute_features: !new:speechbrain.lobes.features.MFCC",
    ),
    "an unknown argument": ({"hyperparams.yaml": LAYOUT.replace("lin_neurons", "neurons")}, "neurons"),
    "weights of another size": ({"hyperparams.yaml": LAYOUT.replace("neurons: 24", "neurons: 25")}, "state_dict"),
    "weights that are text": ({"embedding_model.ckpt": "version https://git-lfs.github.com"}, "cannot be loaded"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_network_that_cannot_be_loaded_is_named_with_the_key_and_how_to_train_without_it(
    what: str, random_folder: Path, tmp_path: Path
) -> None:
    changes, reason = BROKEN[what]
    for file in random_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, text in changes.items():
        (tmp_path / name).unlink()
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(SpeakerModelError) as caught:
        SpeakerDistance(str(tmp_path))
    message = str(caught.value)
    for part in (str(tmp_path), reason, "losses.speaker_model", "losses.speaker=0"):
        assert part in message


SHORT_AND_HUGE = "a: &a [x, x]\n" + "".join(
    f"{chr(b)}: &{chr(b)} [*{chr(b - 1)}, *{chr(b - 1)}]\n" for b in range(98, 123)
)
ENDLESS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "large": lambda path: path.write_text("# \n" * 100_000),
    "a short text of a huge value": lambda path: path.write_text(SHORT_AND_HUGE),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_description_that_does_not_end_is_refused_at_once(what: str, random_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "embedding_model.ckpt").write_bytes((random_folder / "embedding_model.ckpt").read_bytes())
    ENDLESS[what](tmp_path / "hyperparams.yaml")
    with bounded(), pytest.raises(SpeakerModelError, match=r"regular file|more than|has aliases"):
        SpeakerDistance(str(tmp_path))


def test_a_source_that_is_neither_a_folder_nor_a_hub_name_is_refused_without_asking_the_hub() -> None:
    with pytest.raises(SpeakerModelError, match=r"'no/such/folder' cannot be loaded.*losses\.speaker=0"):
        SpeakerDistance("no/such/folder")


def test_a_description_cannot_run_anything(random_folder: Path, tmp_path: Path) -> None:
    """speechbrain's own reader calls whatever a file names; ours only reads."""
    for file in random_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "hyperparams.yaml").open("a") as file:
        file.write(f"surprise: !apply:os.mkdir [{tmp_path / 'made'}]\n")
    SpeakerDistance(str(tmp_path))
    assert not (tmp_path / "made").exists()


def test_the_equal_error_rate_is_that_of_two_overlapping_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    same = 1 + torch.randn(20000, generator=generator)
    different = torch.randn(60000, generator=generator) - 1
    assert train_speaker.equal_error_rate(same, different) == pytest.approx(0.1587, abs=0.005)  # Φ(−1)
    assert train_speaker.equal_error_rate(same + 100, different) == 0


def test_training_on_a_folder_of_speakers_writes_a_network_that_the_loss_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    generator = torch.Generator().manual_seed(0)
    for speaker in ("a", "b"):
        (tmp_path / "speech" / speaker).mkdir(parents=True)
        for clip in range(3):
            noise = 0.1 * torch.randn(RATE, generator=generator)
            soundfile.write(tmp_path / "speech" / speaker / f"{clip}.wav", noise.numpy(), RATE)
    speech = str(tmp_path / "speech")
    arguments = f"{tmp_path / 'made'} --train {speech} --test {speech} --steps 3 --batch-size 4 --seconds 0.5"
    monkeypatch.setattr(sys, "argv", ["train_speaker", *arguments.split(), "--device", "cpu"])
    train_speaker.main()
    assert "(6 pairs)" in capsys.readouterr().out  # three of each speaker
    assert SpeakerDistance(str(tmp_path / "made")).embed(torch.randn(2, 1, RATE)).shape == (2, 96)
