"""For the tests of inject_encoder.py: a release and encoders for it, running the command, comparing folders."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

import inject_encoder
from codec.checkpoint import read_tensors, save_encoder
from codec.codec import Codec
from codec.config import CodecConfig
from codec.files import INDEX_NAME, open_tensors, tensor_files
from codec.tensors import ENCODER_PREFIXES
from experiments.random_release import TINY, random_codec, write_release
from tests import forked_commands

OWN = "consolidated_encoder.safetensors"
INDEX = INDEX_NAME


def read_encoder(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """An encoder file's tensors and metadata."""
    with open_tensors(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@dataclass(frozen=True)
class Case:
    """A release without encoder, and two encoders trained against its codec."""

    release: Path
    encoder: Path
    other: Path
    codec: Codec  # with the encoder that is in the file `encoder`


def make_case(folder: Path, shards: int = 1, config: CodecConfig = TINY, megabytes: float = 0.5) -> Case:
    """A fresh copy in `folder`."""
    made, codec = _made(shards, config, megabytes)
    shutil.copytree(made.name, folder, dirs_exist_ok=True)
    return Case(folder / "release", folder / "encoder_1.safetensors", folder / "encoder_2.safetensors", deepcopy(codec))


@cache
def _made(shards: int, config: CodecConfig, megabytes: float) -> tuple[TemporaryDirectory[str], Codec]:
    made = TemporaryDirectory()
    folder, codec = Path(made.name), random_codec(config)
    write_release(folder / "release", codec, with_encoder=False, shards=shards, megabytes=megabytes)
    for seed in (2, 1):
        codec.encoder = random_codec(config, seed).encoder
        save_encoder(folder / f"encoder_{seed}.safetensors", codec, {"step": 7})
    return made, codec


def inject(folder: Path, *arguments: str | Path) -> int:
    """Runs the command on `folder`. Returns its exit status."""
    return inject_encoder.main(["--model-dir", str(folder), *map(str, arguments)])


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> permissions and content, of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): (stat.S_IMODE(p.stat().st_mode), p.read_bytes()) for p in files}


def served(folder: Path) -> dict[str, Tensor]:
    """Every tensor as the server loads it: from the files that the index lists, the last file first."""
    return read_tensors(tensor_files(folder))


def served_encoder(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in served(folder).items() if name.startswith(ENCODER_PREFIXES)}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def encoder_with(path: Path, like: Path, changes: Mapping[str, Tensor | None], **metadata: str) -> Path:
    """Writes the encoder `like` with tensors changed or added, and without those for which `changes` has None."""
    tensors, stated = read_encoder(like)
    tensors |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    kept = {name: tensor for name, tensor in tensors.items() if changes.get(name, tensor) is not None}
    save_file(kept, path, metadata={key: value for key, value in (stated | metadata).items() if value})
    return path


def forked(folder: Path, *arguments: str | Path, first: Callable[[], object] = lambda: None) -> int:
    """Starts the command in a child process that calls `first` before it. Returns the child's process id."""
    return forked_commands.forked(lambda: inject(folder, *arguments), first)
