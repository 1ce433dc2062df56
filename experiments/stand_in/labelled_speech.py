"""Speech whose phonemes are known, as the stand-in's codec is trained on: in memory, with a label for every 25 ms.

A folder holds three files for each split (train, dev, test):

    train.bin    the samples of all clips, one after the other: int16, 24 kHz, mono. A clip is a whole number of units
                 of 600 samples (25 ms).
    train.lab    the phoneme of each unit, uint8: an id of Kokoro's vocabulary
    train.json   a row for each clip: [kind of text, speaker, text, phonemes, number of units]
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

UNIT = 600  # samples that share a label
UNITS_A_SECOND = 40
SPACE, STRESS, LENGTH = 16, (156, 157), 158  # ids of Kokoro's vocabulary
LAST_PAUSE = 16  # ids up to this one are punctuation and spaces
NO_CLASS = -100  # what cross entropy leaves out


class LabelledSpeech:
    """One split on a device.

    waveform: int16 [samples of all clips]. classes: int16 [units of all clips], `NO_CLASS` between words.
    starts, units: for each clip, its first unit and its number of units.
    """

    def __init__(self, folder: Path, split: str, device: torch.device | str, class_of: np.ndarray | None = None):
        rows = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        self.kinds, self.speakers, self.texts = ([row[i] for row in rows] for i in range(3))
        self.units = np.array([row[-1] for row in rows])
        self.starts = np.concatenate([[0], np.cumsum(self.units)[:-1]])
        total = int(self.units.sum())
        samples = np.fromfile(folder / f"{split}.bin", "<i2")
        ids = np.fromfile(folder / f"{split}.lab", np.uint8)
        if len(samples) != total * UNIT or len(ids) != total:
            raise ValueError(
                f"{folder}/{split}: {len(samples)} samples and {len(ids)} labels, "
                f"expected {total * UNIT} and {total}, as {split}.json says"
            )
        phonemes = without_marks(ids)
        self.class_of = classes(phonemes) if class_of is None else class_of
        self.waveform = torch.from_numpy(samples).to(device)
        self.classes = torch.from_numpy(self.class_of[phonemes].astype(np.int16)).to(device)

    @property
    def hours(self) -> float:
        return float(self.units.sum() / UNITS_A_SECOND / 3600)

    @property
    def number_of_classes(self) -> int:
        return int(self.class_of.max()) + 1

    def longer_than(self, samples: int) -> np.ndarray:
        """The indices of the clips with `samples` samples or more."""
        return np.flatnonzero(self.units * UNIT >= samples)

    def crops(self, starts: Tensor, samples: int) -> Tensor:
        """[B] first samples to waveforms [B, 1, samples] in [-1, 1]."""
        index = starts[:, None] + torch.arange(samples, device=starts.device)
        return (self.waveform[index].float() / 32768)[:, None]

    def labels(self, starts: Tensor, offsets: Tensor) -> Tensor:
        """[B] first samples and [N] offsets in samples to classes [B, N]."""
        return self.classes[(starts[:, None] + offsets) // UNIT].long()


def without_marks(ids: np.ndarray) -> np.ndarray:
    """Phoneme ids [units] in which a stress mark is the phoneme after it, and a length mark the one before it."""
    index = np.arange(len(ids))
    following = np.where(np.isin(ids, STRESS), len(ids) - 1, index)
    ids = ids[np.minimum.accumulate(following[::-1])[::-1]]
    preceding = np.where(ids == LENGTH, 0, index)
    return ids[np.maximum.accumulate(preceding)]


def classes(phonemes: np.ndarray) -> np.ndarray:
    """A table [256] from a phoneme's id to its class: 0 for punctuation and silence, 1, 2, ... for the phonemes that
    occur, `NO_CLASS` for the space between words, which may be silent or not."""
    table = np.zeros(256, np.int64)
    occurring = [phoneme for phoneme in np.unique(phonemes) if phoneme > LAST_PAUSE]
    table[occurring] = np.arange(1, len(occurring) + 1)
    table[SPACE] = NO_CLASS
    return table
