"""Transcripts on disk, so that no clip is transcribed twice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from system.files import written_whole


class TranscriptCache:
    """Clip -> the tokens that a teacher generated, one small file a clip, in a folder of the teacher's own.

    What is kept are the tokens, not the states and alignments that follow from them: generating is what is slow, the
    rest is one pass of the network that a cached and a fresh transcript both go through, so they agree to the bit;
    and tokens take 150 bytes where states would take 20 kB.

    Clips are found by their samples. Validation clips are the same every time. A training crop is drawn by (seed,
    epoch, index): within a run it comes once, but runs that share data and seed (ablations, a run made again or gone
    on with) share all of their crops. So a cache is worth its files for those, and not for a single long run.
    """

    def __init__(self, folder: Path, teacher: str):
        self.folder = folder / teacher
        self.writing = True

    def get(self, clip: str) -> list[int] | None:
        """The tokens kept for a clip's key, None if there are none. A damaged file is named, and made again."""
        path = self._path(clip)
        try:
            return load_file(path)["tokens"].tolist()
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError) as error:
            warnings.warn(f"{path} is damaged ({error}): this transcript is made again", stacklevel=2)
            path.unlink(missing_ok=True)
            return None

    def put(self, clip: str, tokens: Sequence[int]) -> None:
        """Keeps a clip's tokens; the file appears whole or not at all. On a disk that cannot be written it warns and
        stops keeping: the run needs no cache."""
        path = self._path(clip)
        if not self.writing or path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # not forced to the disk, which could take longer than the transcript did: `get` makes a damaged one again
            with written_whole(path, shared=True, durable=False) as partial:
                save_file({"tokens": torch.tensor(list(tokens), dtype=torch.int32)}, partial)
        except (OSError, SafetensorError) as error:
            self.writing = False
            warnings.warn(f"{path} cannot be written ({error}): transcripts are cached no more", stacklevel=2)

    def _path(self, clip: str) -> Path:
        return self.folder / clip[:2] / f"{clip}.safetensors"
