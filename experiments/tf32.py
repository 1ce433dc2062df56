"""How far TF32 takes the speaker loss's gradient from float32's, on a GPU.

    python -m experiments.tf32 SPEECH

Crops of 2 s of speech and what the demo's withheld encoder makes of them; the reference is the CPU. Then what float32
costs with a network of the published size, random weights, 24 x 3 s forward and backward.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from codec import load_release
from codec.checkpoint import with_encoder
from data import decode, open_clips
from losses.speaker import HYPERPARAMETERS, WEIGHTS, SpeakerDistance, SpeakerNetwork

DEMO = Path(__file__).parents[1] / "data" / "demo"
RATE, CROPS = 24000, 24
# the demo's network -> spkrec-ecapa-voxceleb's
PUBLISHED = {
    "[64, 64, 64, 64, 192]": "[1024, 1024, 1024, 1024, 3072]",
    "attention_channels: 64": "attention_channels: 128",
    "res2net_scale: 4": "res2net_scale: 8",
    "se_channels: 64": "se_channels: 128",
    "lin_neurons: 96": "lin_neurons: 192",
}


def main() -> None:
    clips, samples = open_clips([sys.argv[1]]), 2 * RATE
    waveforms = (decode(clips.read(i), RATE) for i in range(0, len(clips), max(1, len(clips) // (2 * CROPS))))
    originals = torch.stack([waveform[:, :samples] for waveform in waveforms if waveform.shape[-1] >= samples][:CROPS])
    codec = with_encoder(load_release(DEMO / "release", torch.float32), DEMO / "withheld_encoder.safetensors")
    with torch.no_grad():
        heard = torch.cat([codec.decode(codec.encode(each[None]))[..., :samples] for each in originals])

    expected = gradient(SpeakerDistance(str(DEMO / "speaker")), heard, originals)
    speaker = SpeakerDistance(str(DEMO / "speaker")).cuda()
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        found = gradient(speaker, heard.cuda(), originals.cuda()).cpu()
        error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).flatten()
        median, worst = float(error.median()), float(error.max())
        print(f"TF32 {allowed}: off by {median:.1e} in the median of {len(error)} crops, {worst:.1e} at most")

    torch.backends.cudnn.benchmark = True
    large, noise = published_size().cuda(), 0.1 * torch.randn(CROPS, 1, 3 * RATE, device="cuda")
    for allowed in (True, False, True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        taken = []
        for _ in range(13):  # the first three choose algorithms
            torch.cuda.synchronize()
            started = time.perf_counter()
            gradient(large, noise + 0.01 * torch.randn_like(noise), noise)
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - started))
        print(f"TF32 {allowed}: {statistics.median(taken[3:]):.1f} ms ({min(taken[3:]):.1f} to {max(taken[3:]):.1f})")


def gradient(distance: SpeakerDistance, heard: Tensor, originals: Tensor) -> Tensor:
    heard = heard.clone().requires_grad_()
    return torch.autograd.grad(distance.per_clip(heard, originals).sum(), heard)[0]


def published_size() -> SpeakerDistance:
    text = (DEMO / "speaker" / HYPERPARAMETERS).read_text(encoding="utf-8")
    for small, large in PUBLISHED.items():
        assert small in text, small
        text = text.replace(small, large)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / HYPERPARAMETERS).write_text(text, encoding="utf-8")
        network = SpeakerNetwork(Path(folder) / HYPERPARAMETERS)
        torch.save(network.embedding.state_dict(), Path(folder) / WEIGHTS)
        return SpeakerDistance(folder)


if __name__ == "__main__":
    main()
