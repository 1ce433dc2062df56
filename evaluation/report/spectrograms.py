"""What a clip looks and sounds like in a page: audio, spectrogram and code raster as data URLs."""

from __future__ import annotations

import base64
import colorsys
import io

import matplotlib
import numpy as np
import soundfile
import torch
from matplotlib.image import imsave
from torch import Tensor

from data.reference import SAMPLE_RATE
from losses.mel import FLOOR, RESOLUTIONS, MelDistance

SEMANTIC_ROWS, GAP_ROWS = 4, 1  # of a code raster, in heights of an acoustic row
GOLDEN = 0.618  # hues a golden section apart tell neighbouring codes apart


def audio_url(waveform: Tensor) -> str:
    """[T] at 24 kHz, in [-1, 1], as FLAC of 16 bits, which every browser of the day plays and nothing is lost in."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return _url("audio/flac", file.getvalue())


def log_mel(waveform: Tensor) -> Tensor:
    """The mel distance's middle resolution: [bands, frames], natural logarithms."""
    spectrogram = MelDistance(SAMPLE_RATE).scales[1]
    padding = max(0, RESOLUTIONS[1][0] - waveform.shape[-1])
    return spectrogram(torch.nn.functional.pad(waveform, (0, padding))).clamp(min=FLOOR).log()


def spectrogram_url(logs: Tensor, low: float, high: float) -> str:
    """A spectrogram [bands, frames], low bands below; the colours span `low` to `high`."""
    shares = ((logs.flip(0) - low) / max(high - low, 1e-9)).clamp(0, 1).numpy()
    return _picture(matplotlib.colormaps["magma"](shares))


def raster_url(codes: Tensor, levels: int) -> str:
    """Codes [37, F]: the semantic one on top, its colour standing for the entry; the acoustic ones below, dark to
    bright."""
    semantic = [colorsys.hsv_to_rgb(int(code) * GOLDEN % 1, 0.65, 0.95) for code in codes[0]]
    top = np.ones((SEMANTIC_ROWS, len(semantic), 4))
    top[..., :3] = np.array(semantic)
    gap = np.zeros((GAP_ROWS, len(semantic), 4))
    acoustic = matplotlib.colormaps["viridis"](codes[1:].numpy() / (levels - 1))
    return _picture(np.concatenate([top, gap, acoustic]))


def _picture(rgba: np.ndarray) -> str:
    file = io.BytesIO()
    imsave(file, rgba, format="png")
    return _url("image/png", file.getvalue())


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
