"""What the stand-in's language model is measured by while it is trained: its losses on the dev split, and how well it
speaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.stand_in.language_model_losses import Losses, Student
from experiments.stand_in.language_model_settings import Settings
from experiments.stand_in.letters import letter_ids, text_of
from experiments.stand_in.packed_model import PackedModel, say
from experiments.stand_in.reading import PhonemeReader, error_rate, phonemes
from experiments.stand_in.spoken_codes import Inputs, Packer, SpokenCodes
from language_model import LanguageModelConfig, Prompt

SPOKEN_FRAMES = 60  # frames that a spoken sentence may take beyond the original's
VOICE_FRAMES = 50  # of the prompts that are spoken, and of the preset voices


@dataclass(frozen=True)
class Held:
    """What a trained model is measured by: batches of the dev split with their own texts and with others, and sentences
    to speak."""

    right: list[Inputs]
    wrong: list[Inputs]
    prompts: list[Prompt]
    expected: list[list[int]]  # phonemes
    semantic: list[np.ndarray]  # codes of the original speech

    @property
    def frames(self) -> list[int]:
        return [len(codes) for codes in self.semantic]


def hold(speech: SpokenCodes, config: LanguageModelConfig, settings: Settings) -> Held:
    """What there is to measure on the dev split `speech`."""
    by_length = np.argsort([len(letters) for letters in speech.letters], kind="stable")
    others = np.empty(len(speech), int)
    others[by_length] = np.roll(by_length, 1)
    rows = min(24, settings.rows)
    right, wrong = (
        [Packer(speech, config, rows, settings.length, seed, texts=texts).batch() for seed in (1, 2)]
        for texts in (None, others.tolist())
    )
    rng = np.random.default_rng(3)
    closed = [i for i in range(len(speech)) if speech.kinds[i] == "closed"] or list(range(len(speech)))
    chosen = rng.permutation(closed)[: settings.sentences].tolist()
    return Held(
        right,
        wrong,
        prompts=[Prompt(speech.codes(speech.voice(i, VOICE_FRAMES, rng)), letter_ids(speech.texts[i])) for i in chosen],
        expected=[phonemes(speech.quarters[speech.speech(i)]) for i in chosen],
        semantic=[speech.semantic[speech.speech(i)] for i in chosen],
    )


@torch.no_grad()
def validate(
    student: Student,
    packed: PackedModel,
    losses: Losses,
    held: Held,
    tables: tuple[Tensor, Tensor],
) -> dict[str, float]:
    """Losses on the dev split. `*_wrong_text` are of the same speech with another text."""
    found: dict[str, float] = {}
    for suffix, batches in (("", held.right), ("_wrong_text", held.wrong)):
        scores = [losses(student, packed, batch.to(tables[0].device), *tables, noisy=False) for batch in batches]
        names = scores[0] if not suffix else ("semantic", "semantic_right", "acoustic")
        found |= {name + suffix: float(np.mean([float(score[name]) for score in scores])) for name in names}
    return found


@torch.no_grad()
def speak(packed: PackedModel, held: Held, reader: PhonemeReader, path: Path) -> dict[str, float]:
    """Speaks the sentences, and writes the codes to `path`."""
    most = max(held.frames) + SPOKEN_FRAMES
    said = say(packed, held.prompts, most, list(range(len(held.prompts))))
    codes = [speech.codes.numpy().astype(np.int16) for speech in said]
    np.savez_compressed(
        path,
        codes=np.concatenate(codes, axis=1),
        lengths=[part.shape[1] for part in codes],
        texts=[text_of(prompt.text) for prompt in held.prompts],
    )
    lengths = np.array([part.shape[1] for part in codes]) / np.array(held.frames)
    return {
        "phoneme_errors": error_rate([reader.read(part[0]) for part in codes], held.expected),
        "ended": float(np.mean([speech.ended for speech in said])),
        "length": float(np.median(lengths)),
        "length_off": float(np.mean(np.abs(lengths - 1))),
    }
