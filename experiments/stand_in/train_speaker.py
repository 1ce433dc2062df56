"""Trains a small ECAPA-TDNN for the speaker loss, and measures how well it distinguishes unseen speakers.

    python -m experiments.stand_in.train_speaker FOLDER --train TRAIN ... --test DEV TEST REAL   # train, then measure
    python -m experiments.stand_in.train_speaker FOLDER --test TEST                              # only measure

Speech is in parquet files with LibriTTS-R's schema, or in folders of audio files with a subfolder for each speaker.
The program writes `hyperparams.yaml` and `embedding_model.ckpt` to FOLDER, which `losses.speaker_model` takes. All
audio is held in memory, at 16 kHz and 16 bits: 115 MB an hour.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from data import open_clips
from data.audio import read_audio
from experiments.runs import experiment_status
from experiments.stand_in.speaker_network import SMALL, write_hyperparameters
from losses.resampling import JUDGE_RATE, band_limited_resample
from losses.speaker import WEIGHTS, SpeakerNetwork, load_speaker_network
from system.device import open_device

MARGIN, SCALE = 0.2, 30.0  # additive angular margin, as the published network's
NOISE_DB = (10.0, 40.0)  # signal to added white noise: synthetic speech is cleaner than the reconstructions to judge
SPEEDS = (9, 10, 11)  # tenths: speech at another speed counts as another speaker (Yamamoto et al. 2019)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the network: written with --train, else read")
    parser.add_argument("--train", nargs="+", default=[], help="speech to train on (default: only measure)")
    parser.add_argument("--test", nargs="*", default=[], help="speech of other speakers; each argument is one test")
    parser.add_argument("--steps", type=int, default=2500, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="crops in a step (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a training crop (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--device", type=open_device, default=open_device(), help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return experiment_status(lambda: train_and_measure(options), "the network is written when its training ends")


def train_and_measure(options: argparse.Namespace) -> int:
    if options.train:
        train(options)
    network = load_speaker_network(str(options.folder)).eval().to(options.device)
    for path in options.test:
        same, different = scores(network, speech(path))
        print(
            f"{path}: equal error rate {equal_error_rate(same, different):.1%}, mean cosine {same.mean():.2f} of one "
            f"speaker ({len(same)} pairs), {different.mean():.2f} of two ({len(different)} pairs)"
        )
    return 0


def train(options: argparse.Namespace) -> None:
    """Trains on crops by softmax with an additive angular margin (Deng et al. 2019), and saves the network."""
    hyperparameters = write_hyperparameters(options.folder, SMALL)
    torch.manual_seed(options.seed)
    network = SpeakerNetwork(hyperparameters)
    from speechbrain.lobes.models.ECAPA_TDNN import Classifier
    from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper

    started = time.monotonic()
    clips = [clip for path in options.train for clip in speech(path)]
    names = sorted({speaker for speaker, _ in clips})
    hours = sum(len(samples) for _, samples in clips) / JUDGE_RATE / 3600
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
    # Saved in half precision, at half the size. The measurement reads the saved file.
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.embedding.cpu().state_dict().items()
    }
    torch.save(state, options.folder / WEIGHTS)


def batch(
    clips: list[tuple[str, Tensor]], names: list[str], options: argparse.Namespace, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Crops [B, T] and their classes [B]. One speed is drawn for the batch, and half of the crops get noise.

    A class is a speaker at a speed: `names.index(speaker) + speed * len(names)`.
    """
    speed = int(torch.randint(len(SPEEDS), (), generator=generator))
    length = math.ceil(options.seconds * JUDGE_RATE * SPEEDS[speed] / 10)
    crops, speakers = [], []
    for index in torch.randint(len(clips), (options.batch_size,), generator=generator).tolist():
        speaker, samples = clips[index]
        start = int(torch.randint(max(1, len(samples) - length + 1), (), generator=generator))
        crop = samples[start : start + length].float() / 32768
        crops.append(crop.repeat(math.ceil(length / len(crop)))[:length])  # a clip that is too short repeats
        speakers.append(names.index(speaker) + speed * len(names))
    waveform = torchaudio.functional.resample(torch.stack(crops), SPEEDS[speed], 10)
    low, high = NOISE_DB
    decibels = low + (high - low) * torch.rand(len(crops), 1, generator=generator)
    level = waveform.square().mean(1, keepdim=True).sqrt() * 10 ** (-decibels / 20)
    noisy = torch.rand(len(crops), 1, generator=generator) < 0.5
    return waveform + noisy * level * torch.randn(waveform.shape, generator=generator), torch.tensor(speakers)


def speech(path: str) -> list[tuple[str, Tensor]]:
    """(speaker, samples [T] at 16 kHz and 16 bits) of every clip. Without a speaker in the data, it is the name of the
    file's first folder below `path`."""
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
    """Cosines of the embeddings of all pairs of whole clips: pairs of the same speaker, and pairs of two speakers."""
    device = next(network.parameters()).device
    embeddings = torch.cat([network(samples[None].float().to(device) / 32768) for _, samples in clips]).cpu()
    embeddings = nn.functional.normalize(embeddings, dim=1)
    numbers = {speaker: number for number, speaker in enumerate(sorted({speaker for speaker, _ in clips}))}
    speakers = torch.tensor([numbers[speaker] for speaker, _ in clips])
    first, second = torch.triu_indices(len(clips), len(clips), offset=1)
    cosines, same = (embeddings @ embeddings.T)[first, second], speakers[first] == speakers[second]
    return cosines[same], cosines[~same]


def equal_error_rate(same: Tensor, different: Tensor) -> float:
    """The error rate at the threshold where both errors are equally frequent: rejecting a pair of one speaker, and
    accepting a pair of two."""
    cosines = torch.cat([same, different])
    order = cosines.argsort(descending=True)
    of_one = torch.cat([torch.ones(len(same)), torch.zeros(len(different))])[order].double()
    refused = 1 - of_one.cumsum(0) / len(same)
    accepted = (1 - of_one).cumsum(0) / len(different)
    nearest = (refused - accepted).abs().argmin()
    return float((refused + accepted)[nearest] / 2)


if __name__ == "__main__":
    sys.exit(main())
