"""For the tests of patch_tokenizer.py: releases, clips, running the command, what the server makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from mistral_common.protocol.speech.request import SpeechRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

import patch_tokenizer
from experiments.random_release import TINY, linked_copy, random_codec
from release.changes import STATE
from tests import forked_commands
from tests.speaking_release import write_speaking_release

PRESET = "casual_female"


@cache
def _made(with_encoder: bool) -> TemporaryDirectory[str]:
    made = TemporaryDirectory()
    write_speaking_release(Path(made.name), random_codec(TINY), with_encoder)
    return made


def make_release(folder: Path, with_encoder: bool = True) -> Path:
    """A new release with one preset voice. Its files are hard links, so that writing in place would be noticed."""
    return linked_copy(Path(_made(with_encoder).name), folder)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> permissions and content of the release's files, without the checkpoint, which is never written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".safetensors"]
    names = {str(path.relative_to(folder)): path for path in files}
    return {n: (p.stat().st_mode, p.read_bytes()) for n, p in names.items() if not n.startswith(STATE)}


def noise(seconds: float, rate: int = 24000, seed: int = 0) -> np.ndarray:
    """Sound [T] with energy at all frequencies, at the level of speech."""
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)


def clip(path: Path, seconds: float = 4, rate: int = 24000, channels: int = 1, seed: int = 0) -> Path:
    """Writes noise to a file of the format that the suffix names."""
    soundfile.write(path, np.stack([noise(seconds, rate, seed + i) for i in range(channels)], 1), rate)
    return path


def patch(folder: Path, *arguments: str | Path) -> int:
    """Runs the command on `folder`. Returns its exit status."""
    return patch_tokenizer.main(["--model-dir", str(folder), *map(str, arguments)])


def prompt(folder: Path, **request: str | bytes) -> list[int]:
    """The prompt that mistral-common makes for a request to say "a"."""
    tokenizer = MistralTokenizer.from_file(folder / "tekken.json").instruct_tokenizer
    return tokenizer.encode_speech_request(SpeechRequest(input="a", **request)).tokens  # type: ignore[arg-type]


def named(folder: Path) -> dict[str, int]:
    return json.loads((folder / "params.json").read_text())["multimodal"]["audio_tokenizer_args"]["voice"]


def counts(folder: Path) -> dict[str, int]:
    return json.loads((folder / "tekken.json").read_text())["audio"]["voice_num_audio_tokens"]


def rows(folder: Path, name: str) -> torch.Tensor:
    return torch.load(folder / "voice_embedding" / f"{name}.pt", weights_only=True)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Changes a JSON file's content. Writes a new file, because the old one is a hard link."""
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content, indent=2))


def save(path: Path, content: object) -> None:
    path.unlink(missing_ok=True)
    torch.save(content, path)


def served_voices(folder: Path) -> set[str]:
    """The voices that a request can name. Asserts that the three places agree on each."""
    voices = set(named(folder))
    for name in voices:
        embedding = rows(folder, name)
        assert embedding.dtype == torch.bfloat16
        assert embedding.shape == (counts(folder)[name], TINY.embedding_dim)
    return voices


def forked(folder: Path, *arguments: str | Path, first: Callable[[], object] = lambda: None) -> int:
    """Starts the command in a child process that calls `first` before it. Returns the child's process id."""
    return forked_commands.forked(lambda: patch(folder, *arguments), first)
