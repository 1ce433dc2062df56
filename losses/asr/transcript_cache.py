"""A cache of transcripts on disk, so that no clip is transcribed twice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from system.files import written_whole


class TranscriptCache:
    """Maps a clip to the tokens that a teacher generated for it. Each clip has one small file, and each teacher has its
    own folder.

    Only tokens are stored, not states and alignments. Generating tokens is the slow part. States and alignments take
    one more pass of the network, which cached and fresh transcripts both go through, so their targets are
    bit-identical. Tokens take 150 bytes; states would take 20 kB.

    The key is a hash of the clip's samples. Validation clips are the same every time. A training crop is drawn by
    (seed, epoch, index). It comes only once within a run, but runs with the same data and seed share all crops:
    ablations, repeated runs and resumed runs. So the cache is useful for those, but not for a single long run.
    """

    def __init__(self, folder: Path, teacher: str):
        self.folder = folder / teacher
        self.writing = True

    def get(self, clip: str) -> list[int] | None:
        """The tokens stored under a clip's key, or None. A damaged file is deleted with a warning that names it."""
        path = self._path(clip)
        try:
            return load_file(path)["tokens"].tolist()
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError) as error:
            warnings.warn(f"{path} is damaged ({error}): this clip is transcribed again", stacklevel=2)
            path.unlink(missing_ok=True)
            return None

    def put(self, clip: str, tokens: Sequence[int]) -> None:
        """Stores a clip's tokens. The file appears whole or not at all. If it cannot be written, this warns once and
        stores nothing more: the run continues without the cache."""
        path = self._path(clip)
        if not self.writing or path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # no fsync, which could take longer than transcribing; `get` deletes a file that a crash damaged
            with written_whole(path, shared=True, durable=False) as partial:
                save_file({"tokens": torch.tensor(list(tokens), dtype=torch.int32)}, partial)
        except (OSError, SafetensorError) as error:
            self.writing = False
            warnings.warn(f"{path} cannot be written ({error}): from now on transcripts are not cached", stacklevel=2)

    def _path(self, clip: str) -> Path:
        return self.folder / clip[:2] / f"{clip}.safetensors"
