"""Trains a small ECAPA-TDNN for the speaker loss, and measures how well one tells unseen speakers apart.

    python -m experiments.stand_in.train_speaker FOLDER --train TRAIN ... --test DEV TEST REAL   # trains, then measures
    python -m experiments.stand_in.train_speaker FOLDER --test TEST                              # only measures

The data are parquet files in LibriTTS-R's schema, or folders of audio files with one folder a speaker. FOLDER gets
`hyperparams.yaml` and `embedding_model.ckpt`, as `losses.speaker_model` takes them. All audio is held in memory, at
16 kHz and 16 bits: 115 MB an hour.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from data import open_clips
from data.clips import read_audio
from losses.resampling import JUDGES_RATE, band_limited_resample
from losses.speaker import (
    HYPERPARAMETERS,
    WEIGHTS,
    SpeakerNetwork,
    load_speaker_network,
)

# The published network's description (80 mels, sentence mean) with a sixteenth of its channels.
DESCRIPTION = """\
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 80
    channels: [64, 64, 64, 64, 192]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 64
    res2net_scale: 4
    se_channels: 64
    lin_neurons: 96
"""
MARGIN, SCALE = 0.2, 30.0  # additive angular margin, as the published network's
NOISE_DB = (10.0, 40.0)  # signal over added white noise: synthetic speech is cleaner than what the loss will hear
SPEEDS = (9, 10, 11)  # tenths: speech played slower or faster is another speaker (Yamamoto et al. 2019)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", nargs="+", default=[], help="speech to train on; nothing: only measure")
    parser.add_argument("--test", nargs="*", default=[], help="speech of other speakers, each argument measured alone")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a training crop")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak of the learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.train:
        train(options)
    network = load_speaker_network(str(options.folder)).eval().to(options.device)
    for path in options.test:
        same, different = scores(network, speech(path))
        print(
            f"{path}: equal error rate {equal_error_rate(same, different):.1%}, mean cosine {same.mean():.2f} of one "
            f"speaker ({len(same)} pairs), {different.mean():.2f} of two ({len(different)} pairs)"
        )


def train(options: argparse.Namespace) -> None:
    """Trains on crops by softmax with an additive angular margin (Deng et al. 2019), and saves the network."""
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / HYPERPARAMETERS).write_text(DESCRIPTION, encoding="utf-8")
    torch.manual_seed(options.seed)
    network = SpeakerNetwork(options.folder / HYPERPARAMETERS)
    from speechbrain.lobes.models.ECAPA_TDNN import Classifier
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    started = time.monotonic()
    clips = [clip for path in options.train for clip in speech(path)]
    names = sorted({speaker for speaker, _ in clips})
    hours = sum(len(samples) for _, samples in clips) / JUDGES_RATE / 3600
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{hours:.1f} h of {len(names)} speakers, {parameters} parameters, {time.monotonic() - started:.0f} s to read"
    )

    width = network.embedding.fc.conv.out_channels
    classifier = Classifier(input_size=width, out_neurons=len(names) * len(SPEEDS))
    objective = LogSoftmaxWrapper(AdditiveAngularMargin(MARGIN, SCALE))
    both = nn.ModuleList([network, classifier]).to(options.device).train()
    optimizer = torch.optim.AdamW(both.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps, pct_start=0.1)

    generator = torch.Generator().manual_seed(options.seed)
    total, right = 0.0, 0
    for step in range(1, options.steps + 1):
        waveform, speakers = batch(clips, names, options, generator)
        cosines = classifier(network(waveform.to(options.device))[:, None])
        targets = speakers.to(options.device)
        loss = objective(cosines, targets[:, None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total, right = total + loss.item(), right + int((cosines[:, 0].argmax(1) == targets).sum())
        if step % 100 == 0:
            accuracy = right / (100 * options.batch_size)
            print(
                f"step {step}: loss {total / 100:.2f}, {accuracy:.1%} right, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            total, right = 0.0, 0
    # in half precision, half the size; what is measured afterwards is what was saved
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.embedding.cpu().state_dict().items()
    }
    torch.save(state, options.folder / WEIGHTS)


def batch(
    clips: list[tuple[str, Tensor]], names: list[str], options: argparse.Namespace, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Crops [B, T] at one drawn speed, half of them with noise, and their speakers [B], another number a speed."""
    speed = int(torch.randint(len(SPEEDS), (), generator=generator))
    length = math.ceil(options.seconds * JUDGES_RATE * SPEEDS[speed] / 10)
    crops, speakers = [], []
    for index in torch.randint(len(clips), (options.batch_size,), generator=generator).tolist():
        speaker, samples = clips[index]
        start = int(torch.randint(max(1, len(samples) - length + 1), (), generator=generator))
        crop = samples[start : start + length].float() / 32768
        crops.append(crop.repeat(math.ceil(length / len(crop)))[:length])  # a clip too short is played again
        speakers.append(names.index(speaker) + speed * len(names))
    waveform = torchaudio.functional.resample(torch.stack(crops), SPEEDS[speed], 10)
    low, high = NOISE_DB
    decibels = low + (high - low) * torch.rand(len(crops), 1, generator=generator)
    level = waveform.square().mean(1, keepdim=True).sqrt() * 10 ** (-decibels / 20)
    noisy = torch.rand(len(crops), 1, generator=generator) < 0.5
    return waveform + noisy * level * torch.randn(waveform.shape, generator=generator), torch.tensor(speakers)


def speech(path: str) -> list[tuple[str, Tensor]]:
    """(speaker, samples [T] at 16 kHz and 16 bits) of all clips; a file's speaker is its first folder in `path`."""
    clips = open_clips([path])
    found = []
    for index in range(len(clips)):
        clip = clips.read(index)
        channels, rate = read_audio(clip)
        waveform = resampler(rate)(torch.from_numpy(channels).mean(dim=1))
        speaker = clip.speaker or Path(clip.name).relative_to(path).parts[0]
        found.append((speaker, (waveform * 32768).round().clamp(-32768, 32767).short()))
    return found


resampler = functools.cache(band_limited_resample)


@torch.no_grad()
def scores(network: SpeakerNetwork, clips: list[tuple[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs of whole clips: those of one speaker, and those of two."""
    device = next(network.parameters()).device
    embeddings = torch.cat([network(samples[None].float().to(device) / 32768) for _, samples in clips]).cpu()
    embeddings = nn.functional.normalize(embeddings, dim=1)
    numbers = {speaker: number for number, speaker in enumerate(sorted({speaker for speaker, _ in clips}))}
    speakers = torch.tensor([numbers[speaker] for speaker, _ in clips])
    first, second = torch.triu_indices(len(clips), len(clips), offset=1)
    cosines, same = (embeddings @ embeddings.T)[first, second], speakers[first] == speakers[second]
    return cosines[same], cosines[~same]


def equal_error_rate(same: Tensor, different: Tensor) -> float:
    """The share of wrong answers at the threshold where pairs of one speaker are refused as often as pairs of two are
    accepted."""
    cosines = torch.cat([same, different])
    order = cosines.argsort(descending=True)
    of_one = torch.cat([torch.ones(len(same)), torch.zeros(len(different))])[order].double()
    refused = 1 - of_one.cumsum(0) / len(same)
    accepted = (1 - of_one).cumsum(0) / len(different)
    nearest = (refused - accepted).abs().argmin()
    return float((refused + accepted)[nearest] / 2)


if __name__ == "__main__":
    main()
