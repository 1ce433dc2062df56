"""Finds codes of clips by gradient descent, without an encoder (latent_descent.py).

    python -m experiments.descent_codes OUT.safetensors SPEECH ... [--steps 300]

OUT has the codes [37, F] of each clip under the clip's name, int32. `experiments.cloning --codes` speaks with them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from codec import load_release
from evaluation.measure import show_progress
from evaluation.speech import read_speech
from experiments.latent_descent import STEPS, LatentDescent
from experiments.runs import DEMO, ExperimentError, experiment_status
from losses.speaker import SpeakerDistance
from system.device import open_device


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("speech", nargs="+")
    parser.add_argument("--model-dir", type=Path, default=DEMO / "release", help="default: the demo's release")
    parser.add_argument("--speaker-model", default=str(DEMO / "speaker"), help="default: the demo's")
    parser.add_argument("--clips", type=int, default=0, help="only so many clips (default: all)")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    options = parser.parse_args(argv)
    return experiment_status(lambda: find(options))


def find(options: argparse.Namespace) -> int:
    codec = load_release(options.model_dir, torch.float32).to(open_device())
    speech = read_speech(options.speech, limit=options.clips)[0]
    speaker = SpeakerDistance(options.speaker_model, codec.sample_rate)
    descent = LatentDescent(codec, speaker, options.steps)
    found, failed = descent.find([clip.waveform for clip in speech], show_progress)
    if failed:
        number, reason = next(iter(failed.items()))
        raise ExperimentError(f"{len(failed)} of {len(speech)} clips failed; {speech[number].name}: {reason}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({speech[number].name: codes.to(torch.int32) for number, codes in found.items()}, options.out)
    print(f"codes of {len(found)} clips: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
