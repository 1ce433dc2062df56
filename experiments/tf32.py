"""How wrong does TF32 make the speaker loss's gradient on a GPU, and what does float32 cost?

    python -m experiments.tf32 SPEECH

First the error: 24 crops of 2 s, and their reconstructions by the demo's withheld encoder; the reference gradient is
computed on the CPU. Then the time of a forward and backward pass of 24 x 3 s through a network of the published size
with random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from codec import load_release
from codec.checkpoint import with_encoder
from data import decode, open_clips
from experiments.runs import DEMO, ExperimentError, experiment_status, require_gpu, spread
from experiments.stand_in.speaker_network import PUBLISHED, write_random_network
from losses.speaker import SpeakerDistance

CROPS = 24
SECONDS_COMPARED, SECONDS_TIMED = 2, 3  # of a crop
WARM_UP, TIMED = 3, 10  # passes; cuDNN chooses its algorithms in the first ones


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", help="files, a folder or a hub name, as `data.train` takes it")
    options = parser.parse_args()

    def measure() -> int:
        require_gpu()
        compare(options.speech)
        with tempfile.TemporaryDirectory() as folder:
            network = write_random_network(Path(folder), PUBLISHED)
            measure_time(SpeakerDistance(str(network)).cuda())
        return 0

    return experiment_status(measure)


def compare(speech: str) -> None:
    """Prints the relative error of the gradient, with TF32 and without."""
    codec = with_encoder(load_release(DEMO / "release", torch.float32), DEMO / "withheld_encoder.safetensors")
    originals = crops(speech, codec.sample_rate)
    with torch.no_grad():
        samples = originals.shape[-1]
        decoded = torch.cat([codec.decode(codec.encode(each[None]))[..., :samples] for each in originals])

    expected = gradient(SpeakerDistance(str(DEMO / "speaker")), decoded, originals)
    distance = SpeakerDistance(str(DEMO / "speaker")).cuda()
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        found = gradient(distance, decoded.cuda(), originals.cuda()).cpu()
        error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).flatten()
        median, worst = float(error.median()), float(error.max())
        print(f"TF32 {allowed}: relative error {median:.1e} (median of {len(error)} crops), {worst:.1e} at most")


def crops(speech: str, sample_rate: int) -> Tensor:
    """The beginnings of CROPS clips, spread over all of them: [CROPS, 1, T]."""
    clips, samples = open_clips([speech]), SECONDS_COMPARED * sample_rate
    waveforms = (decode(clips.read(i), sample_rate) for i in range(0, len(clips), max(1, len(clips) // (2 * CROPS))))
    found = [waveform[:, :samples] for waveform in waveforms if waveform.shape[-1] >= samples][:CROPS]
    if not found:
        raise ExperimentError(f"{speech} has no clip of {SECONDS_COMPARED} s or more among those that were read")
    return torch.stack(found)


def measure_time(distance: SpeakerDistance) -> None:
    """Prints the time of a forward and backward pass, with TF32 and without, twice each."""
    samples = SECONDS_TIMED * distance.resample.orig_freq
    noise = 0.1 * torch.randn(CROPS, 1, samples, device="cuda")
    torch.backends.cudnn.benchmark = True
    for allowed in (True, False, True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        taken = []
        for _ in range(WARM_UP + TIMED):
            torch.cuda.synchronize()
            started = time.perf_counter()
            gradient(distance, noise + 0.01 * torch.randn_like(noise), noise)
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - started))
        print(f"TF32 {allowed}: {spread(taken[WARM_UP:], 'ms', 1)}")


def gradient(distance: SpeakerDistance, decoded: Tensor, originals: Tensor) -> Tensor:
    """Of the sum of the clips' distances, with respect to `decoded` [B, 1, T]."""
    decoded = decoded.clone().requires_grad_()
    return torch.autograd.grad(distance.per_clip(decoded, originals).sum(), decoded)[0]


if __name__ == "__main__":
    sys.exit(main())
