"""How many of the original encoder's semantic codes does the labeller find in speech that nobody trained on?

    python -m experiments.labeller --whisper base
    python -m experiments.labeller --whisper base --model-dir DIR --encoder FILE --pairs PAIRS --unseen SPEECH

Trains a labeller (losses/pseudo_labels.py) alone, on pairs. Measures it on speech, and on the decoder's sound of the
same clips. The right codes are the withheld encoder's, which nobody has for a real release. The defaults are the
demo's. Clips are cut at 30 s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.checkpoint import codec_fingerprint, load_release, with_encoder
from data import decode, open_clips
from data.pairs import Pairs
from experiments.runs import DEMO, experiment_status
from losses import PseudoLabels
from losses.asr.teacher import WINDOW_SECONDS, Teacher
from losses.pseudo_labels import STATES, Labeller
from system.device import open_device
from system.environment import from_environment
from training.config import Optimizer
from training.optimization import learning_rate

CROPS, FRAMES = 24, 37  # of a step: three seconds each
OPTIMIZER = Optimizer(lr=0.001, final_lr=0.0001, warmup_steps=50)


class Heard(NamedTuple):
    states: Tensor  # [4·F, width] of Whisper's encoder
    codes: Tensor  # [F]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", required=True, help="name or file of the teacher")
    parser.add_argument("--model-dir", type=Path, default=DEMO / "release")
    parser.add_argument("--encoder", type=Path, default=DEMO / "withheld_encoder.safetensors")
    parser.add_argument("--pairs", nargs="+", default=[str(DEMO / "pairs")])
    parser.add_argument("--unseen", nargs="+", default=[str(DEMO / "unseen.parquet")], help="speech to measure with")
    parser.add_argument("--steps", type=int, default=600, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return experiment_status(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    device, cache = open_device(), from_environment("HF_CACHE")
    codec = with_encoder(load_release(options.model_dir, torch.bfloat16, device), options.encoder)
    pairs = Pairs(options.pairs, codec.config, codec_fingerprint(codec))
    codec = codec.float()  # computes in float32 what the server computes in bf16: faster on a CPU
    teacher = Teacher.load(options.whisper, device, Path(cache) / "whisper" if cache else None)
    torch.manual_seed(options.seed)
    labeller = Labeller(teacher.width, codec.config.semantic_dim).to(device)
    loss = PseudoLabels(codec.quantizer).to(device)

    def hear(sound: Tensor, codes: Tensor) -> Heard:
        """Of a waveform [1, 1, T] and its codes [1, 37, F]."""
        frames = min(codes.shape[-1], int(WINDOW_SECONDS * codec.frame_rate))
        return Heard(teacher.states(sound[:, 0, : frames * codec.frame_size])[0], codes[0, 0, :frames])

    spoken = (pairs.codes(index)[None].long().to(device) for index in range(len(pairs)))
    train(labeller, loss, [hear(codec.decode(codes), codes) for codes in spoken], options)

    clips, speech, decoded = open_clips(options.unseen, cache), [], []
    for index in range(len(clips)):
        waveform = decode(clips.read(index), codec.sample_rate, resample=True)[None].to(device)
        codes = codec.encode(waveform)
        speech.append(hear(waveform, codes))
        decoded.append(hear(codec.decode(codes), codes))
    print(f"{len(pairs)} pairs, {pairs.hours:.2f} hours; {options.steps} steps of {CROPS} crops; {len(clips)} clips")
    for name, some in (("speech", speech), ("the decoder's sound of its codes", decoded)):
        found, cross_entropy = scores(labeller, loss, some)
        print(f"{name}: {100 * found:.1f} % of the codes found, cross entropy {cross_entropy:.2f}", flush=True)
    return 0


def train(labeller: Labeller, loss: PseudoLabels, heard: Sequence[Heard], options: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(options.seed)
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.Adam(labeller.parameters(), OPTIMIZER.lr, betas)
    long_enough = [each for each in heard if len(each.codes) >= FRAMES]
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, OPTIMIZER)
        states, codes = crops(long_enough, generator)
        draw = labeller.draw(CROPS, generator).to(states.device)
        optimizer.zero_grad()
        loss.labelling(labeller(states, draw), codes, torch.ones_like(codes, dtype=torch.bool)).backward()
        optimizer.step()


def crops(heard: Sequence[Heard], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CROPS crops of FRAMES frames: states [CROPS, 4·FRAMES, width] and codes [CROPS, FRAMES]."""
    states, codes = [], []
    for index in torch.randint(len(heard), (CROPS,), generator=generator).tolist():
        begin = int(torch.randint(len(heard[index].codes) - FRAMES + 1, (1,), generator=generator))
        states.append(heard[index].states[STATES * begin : STATES * (begin + FRAMES)])
        codes.append(heard[index].codes[begin : begin + FRAMES])
    return torch.stack(states), torch.stack(codes)


@torch.no_grad()
def scores(labeller: Labeller, loss: PseudoLabels, heard: Sequence[Heard]) -> tuple[float, float]:
    """The share of the codes that the labeller finds, and their cross entropy in nats."""
    found = cross_entropy = frames = 0.0
    for states, codes in heard:
        logits = loss.scored(labeller(states[None]))
        found += float((logits.argmax(dim=1) == codes).sum())
        cross_entropy += float(F.cross_entropy(logits, codes, reduction="sum"))
        frames += len(codes)
    return found / frames, cross_entropy / frames


if __name__ == "__main__":
    sys.exit(main())
