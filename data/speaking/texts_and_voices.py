"""The texts that are spoken, and the voices that speak them: a release's own, or those of clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from codec.config import ReleaseError, read_params
from data.clips import BadClipError, Clips, DataError
from data.reference import BEST_SECONDS, Reference, prepare
from data.seeds import derive_seed
from data.sources import open_clips
from data.speaking.plan import CLIP
from data.tables import TABLES, shown
from system.environment import expand_home

ATTEMPTS = 50  # clips tried as a prompt before the source is called unusable


def read_texts(source: str, cache: str = "") -> tuple[str, ...]:
    """The texts of a file, one a line, or the transcripts of a source of speech, such as a table. Raises DataError if
    there is none."""
    path = Path(expand_home(source))
    if path.is_file() and path.suffix.lower() not in TABLES:
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8 ({error}): convert it") from error
    else:
        texts = open_clips([source], cache).texts()
    found = tuple(text.strip() for text in texts if text.strip())
    if not found:
        raise DataError(
            f"{shown(source)} has no texts: expected a text file, a text a line, or speech with transcripts; a table's "
            "column of texts is named as in {path: train.tsv, text: sentence}"
        )
    return found


def choose_voices(release: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """The voices that a release names in params.json: those that are wanted, or all. Raises DataError for a name that
    it has not, and ReleaseError if it has none."""
    known: Any = read_params(release)
    for part in ("multimodal", "audio_tokenizer_args", "voice"):
        known = known.get(part) if isinstance(known, dict) else None
    if not known or not isinstance(known, dict):
        raise ReleaseError(f"{release} has no voices: add one with patch_tokenizer.py, or give --prompts")
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DataError(f"{release} has no voice {missing[0]!r}; it has {', '.join(sorted(known))}")
    return tuple(wanted or sorted(known))


def prompt_of(clips: Clips, index: int, seed: int) -> tuple[Reference, str]:
    """A clip as a reference, and its speaker. A clip that cannot be used, or that is too short or too long, is replaced
    by another one. Raises DataError if no clip can be used."""
    generator, last = torch.Generator().manual_seed(derive_seed(seed, index, CLIP)), ""
    for _ in range(ATTEMPTS):
        try:
            clip = clips.read(index)
            reference = prepare([clip])
            if BEST_SECONDS[0] <= reference.seconds <= BEST_SECONDS[1]:
                return reference, clip.speaker
            last = f"{clip.name} has {reference.seconds:.1f} s, expected {BEST_SECONDS[0]:g} to {BEST_SECONDS[1]:g}"
        except BadClipError as error:
            last = str(error)
        index = int(torch.randint(len(clips), (), generator=generator))
    raise DataError(f"--prompts: none of {ATTEMPTS} clips can be a prompt; the last one: {last}")
