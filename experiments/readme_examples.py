"""What does the codec do to speech? Makes the picture and the sounds of the README from two unseen clips of the demo.

    python -m experiments.readme_examples                # writes docs/images/codes.png and docs/audio/*.flac

The stand-in's withheld encoder turns each clip into codes, and the stand-in's decoder turns the codes back into sound,
as the server computes it. The picture shows the synthetic clip: original, codes, reconstruction.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from codec import load_release
from codec.checkpoint import with_encoder
from codec.config import CodecConfig
from data import decode, open_clips
from evaluation.report.spectrograms import log_mel
from experiments.runs import DEMO, ROOT, experiment_status

# position in data/demo/unseen.parquet; docs/audio/README.md gives their sources and licences
CLIPS = {"synthetic": 5, "person": 20}
WIDTH, HEIGHT, DPI = 9.0, 6.2, 90  # inches, and pixels an inch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    return experiment_status(make_examples, "repeat the command: some files may be missing")


def make_examples() -> int:
    codec = with_encoder(load_release(DEMO / "release"), DEMO / "withheld_encoder.safetensors")
    clips = open_clips([str(DEMO / "unseen.parquet")])
    sounds, picture = ROOT / "docs" / "audio", ROOT / "docs" / "images" / "codes.png"
    sounds.mkdir(parents=True, exist_ok=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    for name, index in CLIPS.items():
        original = decode(clips.read(index), codec.sample_rate)  # [1, T]
        codes = codec.encode(original[None])  # [1, 37, F]
        reconstruction = codec.decode(codes)[0, :, : original.shape[-1]].float().clamp(-1, 1)
        for kind, waveform in {"original": original, "reconstruction": reconstruction}.items():
            path = sounds / f"{name}_{kind}.flac"
            soundfile.write(path, waveform[0].numpy(), codec.sample_rate, subtype="PCM_16")
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")
        if name == "synthetic":
            draw(picture, original, codes[0], reconstruction, codec.config)
            print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size} bytes")
    return 0


def draw(path: Path, original: Tensor, codes: Tensor, reconstruction: Tensor, config: CodecConfig) -> None:
    """Two spectrograms of waveforms [1, T], and between them the codes [37, F], over the same seconds."""
    seconds = original.shape[-1] / config.sampling_rate
    end = codes.shape[-1] / config.frame_rate  # the last frame may reach beyond the clip
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=[5, 0.6, 4, 5])
    spectrograms = {axes[0]: log_mel(original[0]), axes[3]: log_mel(reconstruction[0])}
    high = float(spectrograms[axes[0]].max())  # both spectrograms have the original's colours
    for axis, logs in spectrograms.items():
        axis.imshow(
            logs, origin="lower", aspect="auto", cmap="magma", vmin=high - 10, vmax=high, extent=(0, seconds, 0, 1)
        )
        axis.set_ylabel("mel band")
    axes[0].set_title("Original", loc="left")
    axes[3].set_title("Reconstruction from the codes", loc="left")
    axes[3].set_xlabel("seconds")

    semantic, entries = codes[0].numpy(), config.semantic_codebook_size
    colours = np.random.default_rng(0).permutation(entries)[semantic]  # so that neighbouring entries look different
    axes[1].imshow(colours[None], aspect="auto", cmap="hsv", vmin=0, vmax=entries, extent=(0, end, 0, 1))
    axes[1].set_title(f"Semantic codes: 1 of {entries} entries a frame, {codes.shape[-1]} frames", loc="left")
    axes[2].imshow(codes[1:], aspect="auto", cmap="viridis", vmin=0, vmax=20, extent=(0, end, 0, 1))
    axes[2].set_title("Acoustic codes: 36 scalars of 21 levels a frame", loc="left")
    axes[2].set_ylabel("scalar")
    for axis in axes:
        axis.set_yticks([])
        axis.set_xlim(0, seconds)
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba())
    Image.fromarray(rgba).convert("RGB").quantize(192).save(path, optimize=True)  # a palette halves the file


if __name__ == "__main__":
    sys.exit(main())
