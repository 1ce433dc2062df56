"""Codes of speech with their text, in memory, and training batches of them for a language model.

A folder is what code_statistics.py writes. Clips are sorted by speaker, so that all speech of a speaker lies end to
end: a voice prompt is a window of it, of one clip or across two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from experiments.stand_in.alignment import FRAME_UNITS, WORD_PHONEMES, Alignment, align
from experiments.stand_in.labelled_speech import NO_CLASS, classes, without_marks
from experiments.stand_in.letters import CONTROL_TOKENS
from language_model.config import LanguageModelConfig

QUARTERS = 4  # of a frame, whose phonemes are known
IN_ONE_PROCESS = 3000  # clips
BESIDES = 6  # positions of a sequence that are neither voice, text nor speech, the voice's end of audio among them


class SpokenCodes:
    """One split of one or several folders."""

    def __init__(self, folders: Sequence[Path], split: str, class_of: np.ndarray | None = None, clips: int = 0):
        """`class_of` are the phoneme classes of the train split, `clips` how many to keep (0: all)."""
        parts = [dict(np.load(folder / f"{split}.npz")) for folder in folders]
        rows = [row for folder in folders for row in json.loads((folder / f"{split}.json").read_text("utf-8"))]
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        phonemes = without_marks(together["labels"])
        self.class_of = classes(phonemes) if class_of is None else class_of
        speakers = np.array([row[1] for row in rows])
        order = np.argsort(speakers, kind="stable")
        order = order[:clips] if clips else order

        self.kinds = [rows[i][0] for i in order]
        self.speakers = [rows[i][1] for i in order]
        self.texts = [rows[i][2] for i in order]
        self.letters = [np.frombuffer(text.encode(), np.uint8) for text in self.texts]
        self.lengths = together["lengths"][order].astype(int)
        self.starts = np.cumsum(self.lengths) - self.lengths
        _, number, counts = np.unique(speakers[order], return_inverse=True, return_counts=True)
        first_clip = np.cumsum(counts) - counts
        frames_of = np.bincount(number, self.lengths).astype(int)
        self.region_start, self.region_frames = self.starts[first_clip][number], frames_of[number]

        units = together["units"].astype(int)
        unit_start, frame_start = np.cumsum(units) - units, np.cumsum(together["lengths"]) - together["lengths"]
        frames = np.concatenate([np.arange(frame_start[i], frame_start[i] + together["lengths"][i]) for i in order])
        self.semantic, self.acoustic = together["semantic"][frames], together["acoustic"][frames]
        own_labels = [phonemes[unit_start[i] : unit_start[i] + units[i]] for i in order]
        self.quarters = np.concatenate(
            [self.class_of[_quarters(labels, length)] for labels, length in zip(own_labels, self.lengths, strict=True)]
        )
        texts = [text.encode() for text in self.texts]
        aligned = list(_aligned(texts, own_labels, self.lengths.tolist(), self.class_of))
        self.windows = np.concatenate([alignment.letters for alignment in aligned])
        self.word_ends = [alignment.word_ends for alignment in aligned]
        self.words = [alignment.words for alignment in aligned]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def hours(self) -> float:
        return float(self.lengths.sum() * 0.08 / 3600)

    @property
    def number_of_classes(self) -> int:
        return int(self.class_of.max()) + 1

    def codes(self, frames: np.ndarray) -> Tensor:
        """Codes [37, F] int64 of the frames with these numbers."""
        both = np.concatenate([self.semantic[frames, None], self.acoustic[frames]], axis=1)
        return torch.from_numpy(both.astype(np.int64).T.copy())

    def speech(self, clip: int) -> np.ndarray:
        return np.arange(self.starts[clip], self.starts[clip] + self.lengths[clip])

    def voice(self, clip: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        """The numbers of `frames` frames of the clip's speaker, which are not in the clip if there are others. Half of
        the windows begin where a clip does."""
        start, size = int(self.region_start[clip]), int(self.region_frames[clip])
        others = size - int(self.lengths[clip])
        if others < frames:
            return start + np.arange(min(frames, size))
        after = int(self.starts[clip] + self.lengths[clip]) - start
        shift = int(rng.integers(others - frames + 1))
        if rng.random() < 0.5:
            here = start + (after + shift) % size
            beginning = int(self.starts[np.searchsorted(self.starts, here, side="right") - 1])
            shift = (beginning - start - after) % size
            shift = shift if shift <= others - frames else 0
        return start + (after + shift + np.arange(frames)) % size


def _quarters(labels: np.ndarray, frames: int) -> np.ndarray:
    """Phoneme ids [frames, QUARTERS] in the middle of each quarter."""
    middles = (np.arange(frames * QUARTERS) + 0.5) * (FRAME_UNITS / QUARTERS)
    return labels[middles.astype(int).clip(0, len(labels) - 1)].reshape(frames, QUARTERS)


def _aligned(
    texts: list[bytes], labels: list[np.ndarray], lengths: list[int], class_of: np.ndarray
) -> Iterator[Alignment]:
    tables = [class_of] * len(texts)
    if len(texts) < IN_ONE_PROCESS:
        yield from map(align, texts, labels, lengths, tables)
        return
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(align, texts, labels, lengths, tables, chunksize=500)


class Inputs(NamedTuple):
    """Sequences of examples packed into R rows of T positions. A frame's number is its row in the table of all codes;
    the last row of that table is the end of audio. There are N places for predictions, of which some stay empty."""

    tokens: Tensor
    """[R, T] int64; 0 is padding."""
    frames: Tensor
    """[R, T] int64, the number of the frame at an AUDIO token."""
    document: Tensor
    """[R, T] int64, which example of the row; −1 is padding."""
    positions: Tensor
    """[R, T] int64, counted from each example's start."""
    corruption: Tensor
    """[R, T] float32 in [0, 1], how much of the frames there is made wrong."""
    at: Tensor
    """[N] int64, where a frame is predicted from: row · T + position."""
    targets: Tensor
    """[N] int64, the frame to predict."""
    valid: Tensor
    """[N] float32, 0 for an empty place."""
    next_letters: Tensor
    """[N, 2] int64, the first and last position in the row of the letters that are spoken in the frame to predict;
    −1 where there are none."""
    last_letters: Tensor
    """[N, 2] int64, the same of the frame before it."""
    word_at: Tensor
    """[W] int64, the position behind a word: row · T + position."""
    words: Tensor
    """[W, WORD_PHONEMES] int64, classes of that word's phonemes."""

    def to(self, device: torch.device) -> Inputs:
        return Inputs(*(tensor.to(device, non_blocking=True) for tensor in self))


class Packer:
    """Deals clips like cards and packs each with a voice prompt and its text."""

    def __init__(
        self,
        speech: SpokenCodes,
        config: LanguageModelConfig,
        rows: int,
        length: int,
        seed: int,
        voice_frames: tuple[int, int] = (20, 70),
        corruption: float = 0.0,
        varied: bool = False,
        texts: Sequence[int] | None = None,
    ):
        """`corruption` is the most that an example's frames get, `varied` texts lose capitals or the last mark now and
        then. `texts` gives for each clip the clip whose text it is shown, to measure what the text is good for."""
        self.speech, self.config, self.rows, self.length = speech, config, rows, length
        self.rng = np.random.default_rng(seed)
        self.voice_frames, self.corruption, self.varied = voice_frames, corruption, varied
        self.places = max(64, rows * length * 3 // 8 // 64 * 64)
        self.word_places = rows * length // 12
        self.deck: list[int] = []
        self.letters = [speech.letters[clip] for clip in (range(len(speech)) if texts is None else texts)]
        size = np.array([len(letters) for letters in self.letters]) + speech.lengths
        self.fitting = np.flatnonzero(size + BESIDES + voice_frames[0] <= length)

    def deal(self) -> int:
        if not self.deck:
            self.deck = self.rng.permutation(self.fitting).tolist()
        return self.deck.pop()

    def batch(self) -> Inputs:
        shape = (self.rows, self.length)
        tokens, frames = np.zeros(shape, np.int64), np.full(shape, len(self.speech.semantic), np.int64)
        document, positions = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
        corruption = np.zeros(shape, np.float32)
        at, targets = np.zeros(self.places, np.int64), np.zeros(self.places, np.int64)
        valid = np.zeros(self.places, np.float32)
        windows = np.full((2, self.places, 2), -1, np.int64)
        word_at = np.zeros(self.word_places, np.int64)
        words = np.full((self.word_places, WORD_PHONEMES), NO_CLASS, np.int64)
        place = word_place = 0
        waiting: list[int] = []
        for row in range(self.rows):
            begin = number = 0
            while True:
                chosen = self._fitting_clip(self.length - begin, waiting)
                if chosen is None:
                    break
                text = self._text(chosen)
                speech = self.speech.speech(chosen)
                room = self.length - begin - BESIDES - len(text) - len(speech)
                low, high = self.voice_frames
                voice = self.speech.voice(chosen, int(self.rng.integers(low, min(high, room) + 1)), self.rng)
                text_start = 2 + len(voice) + 1 + 1
                start = text_start + len(text) + 2
                end = start + len(speech)
                if place + len(speech) + 1 > self.places:
                    waiting.append(chosen)
                    break
                cells = slice(begin, begin + end)
                own = tokens[row, cells]
                own[:] = self.config.audio_token_id
                own[0], own[1] = self.config.bos_token_id, self.config.begin_audio_token_id
                own[text_start - 1] = self.config.next_audio_text_token_id
                own[text_start : start - 2] = text.astype(np.int64) + CONTROL_TOKENS
                own[start - 2], own[start - 1] = (
                    self.config.repeat_audio_text_token_id,
                    self.config.begin_audio_token_id,
                )
                frames[row, begin + 2 : begin + 2 + len(voice)] = voice
                frames[row, begin + start : begin + end] = speech
                document[row, cells], positions[row, cells] = number, np.arange(end)
                corruption[row, begin + 2 : begin + 2 + len(voice)] = self.rng.random() * self.corruption / 3
                corruption[row, begin + start : begin + end] = self.rng.random() * self.corruption
                some = slice(place, place + len(speech) + 1)
                at[some] = row * self.length + begin + np.arange(start - 1, end)
                targets[some] = np.append(speech, len(self.speech.semantic))
                valid[some] = 1
                # a text that lost its last mark has REPEAT_AUDIO_TEXT there
                letters = self.speech.windows[speech].astype(np.int64).clip(0, len(text)) + begin + text_start
                windows[0, some][:-1] = letters
                windows[1, some][1:] = letters
                place += len(speech) + 1
                ends = self.speech.word_ends[chosen]
                fit = max(0, min(len(ends), self.word_places - word_place))
                behind = ends[:fit].astype(np.int64).clip(0, len(text)) + begin + text_start
                word_at[word_place : word_place + fit] = row * self.length + behind
                words[word_place : word_place + fit] = self.speech.words[chosen][:fit]
                word_place += fit
                begin, number = begin + end, number + 1
        self.deck += waiting
        arrays = (tokens, frames, document, positions, corruption, at, targets, valid, *windows, word_at, words)
        return Inputs(*(torch.from_numpy(array) for array in arrays))

    def _fitting_clip(self, room: int, waiting: list[int]) -> int | None:
        """A clip with its shortest voice that fits into `room`. What does not fit waits for the next row."""

        def fits(clip: int) -> bool:
            size = len(self.letters[clip]) + int(self.speech.lengths[clip])
            return size + BESIDES + self.voice_frames[0] <= room

        for i, clip in enumerate(waiting):
            if fits(clip):
                return waiting.pop(i)
        for _ in range(6):
            clip = self.deal()
            if fits(clip):
                return clip
            waiting.append(clip)
            if len(waiting) > 40 or len(waiting) >= len(self.fitting):
                break
        return None

    def _text(self, clip: int) -> np.ndarray:
        """Bytes, as a client may type them."""
        letters = self.letters[clip]
        if not self.varied:
            return letters
        if self.rng.random() < 0.1:
            capital = (letters >= 65) & (letters <= 90)
            letters = np.where(capital, letters + 32, letters)
        if self.rng.random() < 0.1 and letters[-1] in b".!?":
            letters = letters[:-1]
        return letters


class Batches(IterableDataset):
    """Endless batches. Each worker process deals from a deck of its own."""

    def __init__(self, speech: SpokenCodes, config: LanguageModelConfig, seed: int, **options: Any):
        self.speech, self.config, self.seed, self.options = speech, config, seed, options

    def __iter__(self) -> Iterator[Inputs]:
        worker = torch.utils.data.get_worker_info()
        packer = Packer(self.speech, self.config, seed=1000 * self.seed + (worker.id if worker else 0), **self.options)
        while True:
            yield packer.batch()


def endless_batches(batches: Batches, workers: int, pinned: bool) -> Iterator[Inputs]:
    """The batches of `workers` processes, or of this one where there are none."""
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pinned,
        multiprocessing_context="fork" if workers else None,  # the codes are in memory once
    )
    return iter(loader)
