"""What scores depend on besides the encoder: the files' contents, the versions of the libraries, and the machine."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from codec.files import served_files

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
    """Library -> version, of the installed ones."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # with the build, such as +cpu
    return found


def machine(device: torch.device) -> str:
    """Names the GPU, if there is one, and the processor, which judges always use too."""
    cpu = f"{processor()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}; {cpu}" if device.type == "cuda" else cpu


def processor() -> str:
    """The processor's model, if the system names it, and its architecture."""
    about = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", about.read_text(), re.MULTILINE) if about.exists() else None
    return f"{model[1]}, {platform.machine()}" if model else platform.machine()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(waveform: Tensor) -> str:
    """The SHA-256 of a waveform's samples [T], in hexadecimal digits."""
    return hashlib.sha256(waveform.contiguous().numpy().tobytes()).hexdigest()


def release_files(folder: Path) -> dict[str, int]:
    """The size in bytes of each file that the codec is read from. Not a hash: they hold gigabytes of language model."""
    return {path.name: path.stat().st_size for path in (folder / "params.json", *served_files(folder))}
