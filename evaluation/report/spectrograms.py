"""Audio, spectrogram and code raster of a clip, as data URLs."""

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

SEMANTIC_ROWS, GAP_ROWS = 4, 1  # in a code raster, measured in acoustic rows
GOLDEN = 0.618  # hue step of the golden ratio, so that neighbouring codes get clearly different colours


def audio_url(waveform: Tensor) -> str:
    """A waveform [T] at 24 kHz in [-1, 1] as 16-bit FLAC, which is lossless and which every current browser plays."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return _url("audio/flac", file.getvalue())


def log_mel(waveform: Tensor) -> Tensor:
    """The log-mel spectrogram [bands, frames] at the mel distance's middle resolution, natural logarithms."""
    spectrogram = MelDistance(SAMPLE_RATE).scales[1]
    padding = max(0, RESOLUTIONS[1][0] - waveform.shape[-1])
    return spectrogram(torch.nn.functional.pad(waveform, (0, padding))).clamp(min=FLOOR).log()


def spectrogram_url(logs: Tensor, low: float, high: float) -> str:
    """A spectrogram [bands, frames], with low bands at the bottom. The colours span `low` to `high`."""
    shares = ((logs.flip(0) - low) / max(high - low, 1e-9)).clamp(0, 1).numpy()
    return _picture(matplotlib.colormaps["magma"](shares))


def raster_url(codes: Tensor, levels: int) -> str:
    """Codes [37, F]. On top the semantic code, one colour for each codebook entry; below the acoustic codes, from dark
    (0) to bright."""
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
