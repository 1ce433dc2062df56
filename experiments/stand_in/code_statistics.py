"""Writes the codes of all speech, for a language model, and measures how predictable the semantic ones are.

    python -m experiments.stand_in.code_statistics SPEECH RUN OUT

SPEECH is a folder as labelled_speech.py describes it, RUN what train_codec.py wrote. Speech is encoded in bf16, in
batches. For each split, OUT gets

    SPLIT.npz     semantic [frames] int16, acoustic [frames, 36] uint8, lengths [clips]: the frames of each clip;
                  labels [units] uint8 and units [clips], the phonemes, as in SPEECH
    SPLIT.json    the rows of SPEECH: kind, speaker, text, phonemes, units

and `predictability.json`: bits a semantic code of the test split costs under models that count codes of the train
split. `unigram` knows how often a code comes, `bigram` the code before it, `phonemes` the two phonemes in the middle of
the frame, as a perfectly aligned text would give. `*_right` is how often such a model's first choice is right.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codec.checkpoint import load_release, with_encoder
from codec.codec import Codec
from experiments.stand_in.labelled_speech import UNIT, LabelledSpeech
from system.device import open_device

BATCH = 64
PRIOR = 30.0  # how many observations the unigram model counts for in the others
SPLITS = ("test", "dev", "train")


class Codes(NamedTuple):
    semantic: np.ndarray  # int16 [frames of all clips]
    acoustic: np.ndarray  # uint8 [frames, 36]
    lengths: np.ndarray  # [clips], in frames


def encode(codec: Codec, speech: LabelledSpeech) -> Codes:
    clips = [
        speech.waveform[start * UNIT : (start + units) * UNIT]
        for start, units in zip(speech.starts, speech.units, strict=True)
    ]
    rows = encode_clips(codec, clips)
    together = np.concatenate([row.numpy() for row in rows], axis=1)
    lengths = np.array([row.shape[1] for row in rows])
    return Codes(together[0].astype(np.int16), together[1:].T.astype(np.uint8), lengths)


def encode_clips(codec: Codec, clips: Sequence[Tensor]) -> list[Tensor]:
    """Waveforms [T] of int16 samples to codes [37, F] int64 on the CPU. Clips of similar length go together. The
    encoder is causal, so padding at the end changes nothing before it."""
    order = sorted(range(len(clips)), key=lambda clip: len(clips[clip]))
    found: dict[int, Tensor] = {}
    for first in range(0, len(order), BATCH):
        members = order[first : first + BATCH]
        samples = len(clips[members[-1]])
        batch = torch.stack([F.pad(clips[i], (0, samples - len(clips[i]))) for i in members])[:, None]
        codes = codec.quantizer.encode(codec.latent(batch.to(codec.device).float() / 32768)).cpu()
        for row, clip in zip(codes, members, strict=True):
            found[clip] = row[:, : codec.config.frames(len(clips[clip]))]
    return [found[clip] for clip in range(len(clips))]


def predictability(train: Codes, test: Codes, phonemes: dict[str, np.ndarray], entries: int) -> dict[str, float]:
    """`phonemes`: for "train" and "test", a number for each frame that says which two phonemes it holds."""
    counts = np.bincount(train.semantic, minlength=entries) + 0.5
    unigram = counts / counts.sum()
    target = test.semantic[followers(test.lengths)]
    bigram = conditional(
        train.semantic[followers(train.lengths) - 1], train.semantic[followers(train.lengths)], unigram, entries
    )
    before = test.semantic[followers(test.lengths) - 1].astype(int)
    # only pairs that occur get a row
    occurring, rows = np.unique(np.concatenate([phonemes["train"], phonemes["test"]]), return_inverse=True)
    rows_train, rows_test = np.split(rows, [len(train.semantic)])
    spoken = conditional(rows_train, train.semantic, unigram, len(occurring))
    return {
        "entries_used": int(np.count_nonzero(np.bincount(train.semantic, minlength=entries))),
        "unigram": bits(unigram[test.semantic]),
        "bigram": bits(bigram[before, target]),
        "bigram_right": float((bigram[before].argmax(axis=1) == target).mean()),
        "phonemes": bits(spoken[rows_test, test.semantic]),
        "phonemes_right": float((spoken[rows_test].argmax(axis=1) == test.semantic).mean()),
    }


def conditional(context: np.ndarray, code: np.ndarray, unigram: np.ndarray, contexts: int) -> np.ndarray:
    """Probabilities [contexts, entries] from counts, with the unigram model as a prior."""
    table = np.zeros((contexts, len(unigram)))
    np.add.at(table, (context.astype(int), code.astype(int)), 1)
    return (table + PRIOR * unigram) / (table.sum(axis=1, keepdims=True) + PRIOR)


def bits(probabilities: np.ndarray) -> float:
    return float(-np.log2(probabilities).mean())


def followers(lengths: np.ndarray) -> np.ndarray:
    """The indices of the frames that have one before them in their clip."""
    index = np.arange(int(lengths.sum()))
    return np.setdiff1d(index, np.cumsum(lengths) - lengths, assume_unique=True)


def phoneme_pairs(labels: np.ndarray, units: np.ndarray, lengths: np.ndarray, frame_size: int) -> np.ndarray:
    """The phonemes at 3/8 and 5/8 of every frame, as one number below 65536."""
    starts = np.cumsum(units) - units
    frame = np.concatenate([np.arange(length) for length in lengths])
    clip = np.repeat(np.arange(len(lengths)), lengths)
    first, second = (
        labels[starts[clip] + np.minimum(((frame + part) * frame_size / UNIT).astype(int), units[clip] - 1)]
        for part in (0.375, 0.625)
    )
    return 256 * first.astype(int) + second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("speech", "run", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    device = open_device()
    codec = load_release(arguments.run / "release", torch.bfloat16, device)
    codec = with_encoder(codec, arguments.run / "encoder.safetensors")
    arguments.out.mkdir(parents=True, exist_ok=True)
    codes: dict[str, Codes] = {}
    pairs: dict[str, np.ndarray] = {}
    for split in SPLITS:
        speech = LabelledSpeech(arguments.speech, split, device)
        codes[split] = encode(codec, speech)
        labels = np.fromfile(arguments.speech / f"{split}.lab", np.uint8)
        pairs[split] = phoneme_pairs(labels, speech.units, codes[split].lengths, codec.frame_size)
        np.savez_compressed(arguments.out / f"{split}.npz", **codes[split]._asdict(), labels=labels, units=speech.units)
        shutil.copyfile(arguments.speech / f"{split}.json", arguments.out / f"{split}.json")
        print(f"{split}: {len(codes[split].semantic)} frames of {len(speech.units)} clips", flush=True)
    found = predictability(codes["train"], codes["test"], pairs, codec.config.semantic_codebook_size)
    (arguments.out / "predictability.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
