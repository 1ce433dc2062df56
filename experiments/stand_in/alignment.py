"""Which letters of a text are spoken in a frame, from the phoneme of every 25 ms.

Words of the text and groups of phonemes between spaces are paired in order. Where the phonemizer joined words ("in the"
as one group) or split one, the pairing with the most plausible lengths is taken. Within a pair, letters and time run
evenly.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import NamedTuple

import numpy as np

from experiments.stand_in.labelled_speech import LAST_PAUSE, NO_CLASS, SPACE

FRAME_UNITS = 3.2  # 25 ms units in a frame of 80 ms
WORD_PHONEMES = 10  # of a word at most, when it is spelled
_STEPS = ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (4, 1), (1, 4))  # words to groups
_PUNCTUATION = b".,;:!?\"'()-"

Span = tuple[int, int]


class Alignment(NamedTuple):
    letters: np.ndarray
    """[F, 2] int16, the first and the last letter of each frame. The number of letters stands for what follows the
    text."""
    word_ends: np.ndarray
    """[W] int16, the index of the letter after each word (or joined words)."""
    words: np.ndarray
    """[W, WORD_PHONEMES] int16, classes of each word's phonemes, NO_CLASS behind its end."""


def align(text: bytes, labels: np.ndarray, frames: int, class_of: np.ndarray) -> Alignment:
    """`labels` [units] are phoneme ids without marks. Raises ValueError for a text without words."""
    words, groups = _words(text), _groups(labels)
    if not words or not groups:
        raise ValueError(f"{text!r}: {len(words)} words and {len(groups)} groups of phonemes cannot be aligned")
    letter = np.full(len(labels), -1)
    ends, spelled = [], []
    for (first, last), (begin, end) in _pairs(words, groups, labels):
        core = first + len(text[first:last].rstrip(_PUNCTUATION))
        core = core if core > first else last
        spoken = np.flatnonzero(labels[begin:end] > LAST_PAUSE) + begin
        if not len(spoken):
            continue
        begin, end = int(spoken[0]), int(spoken[-1]) + 1
        inside = (np.arange(end - begin) + 0.5) / (end - begin) * (core - first)
        letter[begin:end] = first + inside.astype(int)
        letter[end : end + 1] = core  # the pause behind it, up to the next word
        ends.append(core)
        spelled.append(_spelling(class_of[labels[begin:end]]))
    letter = np.maximum.accumulate(letter).clip(0, len(text))
    edges = (np.arange(frames + 1) * FRAME_UNITS).astype(int)
    first_unit = edges[:-1].clip(0, len(labels) - 1)
    last_unit = (np.ceil(np.arange(1, frames + 1) * FRAME_UNITS).astype(int) - 1).clip(0, len(labels) - 1)
    return Alignment(
        np.stack([letter[first_unit], letter[last_unit]], axis=1).astype(np.int16),
        np.array(ends, np.int16),
        np.array(spelled, np.int16).reshape(-1, WORD_PHONEMES),
    )


def _words(text: bytes) -> list[Span]:
    return [match.span() for match in re.finditer(rb"\S+", text)]


def _groups(labels: np.ndarray) -> list[Span]:
    """Runs of units between spaces that hold a phoneme."""
    inside = np.concatenate([[0], (labels != SPACE).astype(int), [0]])
    edges = np.flatnonzero(np.diff(inside))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return [(a, b) for a, b in runs if (labels[a:b] > LAST_PAUSE).any()]


def _pairs(words: list[Span], groups: list[Span], labels: np.ndarray) -> list[tuple[Span, Span]]:
    if len(words) == len(groups):
        return list(zip(words, groups, strict=True))
    changes = np.concatenate([[0], np.cumsum(labels[1:] != labels[:-1])]).tolist()
    letters = [end - begin for begin, end in words]
    phonemes = [changes[end - 1] - changes[begin] + 1 for begin, end in groups]
    return [
        ((words[i][0], words[i + m - 1][1]), (groups[j][0], groups[j + n - 1][1]))
        for i, j, m, n in _best_path(letters, phonemes)
    ]


def _best_path(letters: list[int], phonemes: list[int]) -> list[tuple[int, int, int, int]]:
    """Dynamic programming over (words, groups) used up, of which the letters and the phonemes are given. A step takes
    several words or several groups, (i, j, m, n): m words from i on and n groups from j on. It costs the squared
    difference of their lengths, relative to the whole, and a little for not being one to one."""
    word_ends, group_ends = _shares(letters), _shares(phonemes)
    cost = {(0, 0): 0.0}
    came: dict[Span, Span] = {}
    for i in range(len(letters)):
        for j in range(len(phonemes)):
            if (i, j) not in cost:
                continue
            for m, n in _STEPS:
                if i + m > len(letters) or j + n > len(phonemes):
                    continue
                a, b = word_ends[i + m] - word_ends[i], group_ends[j + n] - group_ends[j]
                total = cost[i, j] + (a - b) ** 2 / (a + b) + 0.002 * (m + n - 2)
                if total < cost.get((i + m, j + n), math.inf):
                    cost[i + m, j + n], came[i + m, j + n] = total, (m, n)
    here, path = (len(letters), len(phonemes)), []
    while here != (0, 0):
        if here not in came:  # more than four to one: as a whole
            return [(0, 0, len(letters), len(phonemes))]
        m, n = came[here]
        here = (here[0] - m, here[1] - n)
        path.append((*here, m, n))
    return path[::-1]


def _shares(lengths: list[int]) -> list[float]:
    """Which part of the whole is over behind each, after a first 0."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return [end / ends[-1] for end in ends]


def _spelling(classes: np.ndarray) -> list[int]:
    """Classes of a word's units -> its phonemes, padded."""
    spoken = classes[classes > 0]
    changed = spoken[np.concatenate([[True], spoken[1:] != spoken[:-1]])] if len(spoken) else spoken
    found = [int(phoneme) for phoneme in changed[:WORD_PHONEMES]]
    return found + [NO_CLASS] * (WORD_PHONEMES - len(found))
