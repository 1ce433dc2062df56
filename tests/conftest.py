"""Releases and clips that many tests share. They are made once a session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from experiments.random_release import REAL, SMALL, TINY, random_codec, write_release
from experiments.random_speech import audio_bytes

# `make test` runs one worker a core; a test that runs alone has two threads
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the programs that tests start
    torch.set_num_threads(1)
else:
    torch.set_num_threads(2)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run as Python; it looks when it is imported


@pytest.fixture(scope="session")
def small_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("small"), random_codec(SMALL))


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("tiny"), random_codec(TINY))


@pytest.fixture(scope="session")
def real_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("real"), random_codec(REAL))


@pytest.fixture(scope="session")
def speech() -> Tensor:
    """A clip [1, 1, T] with the level and spectral slope of speech. T is not a multiple of the patch size."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 1, 48077, generator=generator).cumsum(-1)
    smooth = noise - torch.nn.functional.avg_pool1d(noise, 801, 1, 400, count_include_pad=False)
    return 0.1 * smooth / smooth.std()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small tensors, one thread is faster than several, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """A folder that other users can enter; they cannot enter pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB. Skips the test if it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root's rights")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # tensors read from it may still be mapped


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for i in range(12):
        (folder / f"{i}.wav").write_bytes(audio_bytes(0.5 + i / 50))
    (folder / "short.wav").write_bytes(audio_bytes(0.1))
    return folder


@pytest.fixture
def settings(tiny_release: Path, speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MODEL_DIR", "OUTPUT_DIR", "HF_CACHE"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "model_dir": str(tiny_release),
        "output_dir": str(tmp_path / "run"),
        "steps": 6,
        "batch_size": 2,
        "log_every": 1,
        "validate_every": 3,
        "save_every": 2,
        "data": {
            "train": str(speech_folder),
            "validation": str(speech_folder),
            "crop_seconds": 0.4,
            "validation_seconds": 0.4,
            "validation_clips": 3,
            "workers": 0,
        },
        "optimizer": {"warmup_steps": 2},
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
