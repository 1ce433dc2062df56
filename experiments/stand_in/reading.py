"""How well a language model reads, judged from the semantic codes it says, without a speech recognizer.

The stand-in's semantic codes were trained to tell phonemes. So each code stands for the phonemes it had most often in
the training speech, and what a model says is compared with what it was to say by edit distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class PhonemeReader:
    def __init__(self, semantic: np.ndarray, quarters: np.ndarray, entries: int):
        """Semantic codes [frames] and classes [frames, 4] of their quarters, 0 or less without a phoneme."""
        kinds, kind = np.unique(quarters.clip(0), axis=0, return_inverse=True)
        counts = np.zeros((entries, len(kinds)), np.int64)
        np.add.at(counts, (semantic.astype(int), kind.reshape(-1)), 1)
        self.of_code = kinds[counts.argmax(axis=1)]

    def read(self, semantic: np.ndarray) -> list[int]:
        """Phonemes of semantic codes [F]."""
        return phonemes(self.of_code[semantic.astype(int)])


def phonemes(quarters: np.ndarray) -> list[int]:
    """Classes [F, 4] -> the phonemes in order, each once, without pauses."""
    flat = quarters.reshape(-1)
    if not len(flat):
        return []
    changed = flat[np.concatenate([[True], flat[1:] != flat[:-1]])]
    return [int(phoneme) for phoneme in changed if phoneme > 0]


def edit_distance(said: Sequence[int], expected: Sequence[int]) -> int:
    """Levenshtein distance."""
    above = list(range(len(expected) + 1))
    for i, own in enumerate(said, start=1):
        row = [i]
        for j, other in enumerate(expected, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (own != other)))
        above = row
    return above[-1]


def error_rate(said: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    """Errors per expected phoneme, over all clips."""
    distance = sum(edit_distance(a, b) for a, b in zip(said, expected, strict=True))
    return distance / max(1, sum(len(sequence) for sequence in expected))
