"""What changes scores beside the encoder: versions of the libraries, and the machine."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

LIBRARIES = (
    "torch",
    "torchaudio",
    "numpy",
    "scipy",
    "soxr",
    "soundfile",
    "pesq",
    "pystoi",
    "openai-whisper",
    "jiwer",
    "resemblyzer",
    "librosa",
    "speechbrain",
    "transformers",
    "distillmos",
)


def versions() -> dict[str, str]:
    """Library -> version, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # names the build too
    return found


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
