"""The sequence that the language model reads: voice, text and speech, as mistral-common and the server lay it out.

    token   BOS  BEGIN_AUDIO  AUDIO × N    NEXT_AUDIO_TEXT  text ids  REPEAT_AUDIO_TEXT  BEGIN_AUDIO | AUDIO × F
    input   E    E            voice rows   E                E         E                  E           | frames' rows

N is the voice's frames and one row more, the end-of-audio frame. Each frame is predicted from the position before it;
after the last one, the end of audio is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from codec.config import SPECIAL_TOKENS, ReleaseError
from codec.files import MAX_TOKENIZER, shortened
from codec.voices import END_OF_AUDIO
from language_model.config import LanguageModelConfig
from system.untrusted import parse_json, read_file

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer


class Prompt(NamedTuple):
    """What the server is asked for."""

    voice: Tensor
    """Codes [37, N] int64 of the reference, or its rows [N + 1, dim], as a file in `voice_embedding/` has them."""
    text: Sequence[int]
    """Token ids of the text, without BOS and EOS: see `text_tokenizer`."""


class Example(NamedTuple):
    """Speech and what it is to be predicted from."""

    voice: Tensor
    """Codes [37, N] int64 of another clip of the speaker."""
    text: Sequence[int]
    speech: Tensor
    """Codes [37, F] int64 of `text` in the speaker's voice."""


class Batch(NamedTuple):
    """Sequences padded on the right to the same length T."""

    tokens: Tensor
    """[B, T] int64, 0 behind a sequence's end."""
    frames: Tensor
    """[B, T, 37] int64, coded; read where the token is AUDIO."""
    targets: Tensor
    """[B, T] bool: the speech's frames and its end of audio. The frame there is predicted at the position before."""

    def to(self, device: str | torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def text_tokenizer(folder: Path) -> Tekkenizer:
    """The release's tokenizer: `text_tokenizer(folder).encode(text, bos=False, eos=False)` are a prompt's ids. Raises
    ReleaseError if it cannot be read."""
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer  # all else here does without it

    path = folder / "tekken.json"
    if not path.is_file():
        raise ReleaseError(f"{folder} holds no tekken.json: it is not the folder of a Voxtral TTS release")
    try:
        parse_json(read_file(path, MAX_TOKENIZER))
        return Tekkenizer.from_file(path)
    except (OSError, MistralCommonException, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{path} is no tokenizer ({shortened(str(error))}): download it again") from error


def prompt_ids(text: Sequence[int], voice_rows: int, config: LanguageModelConfig) -> list[int]:
    """Token ids up to where speech begins."""
    return [
        config.bos_token_id,
        config.begin_audio_token_id,
        *[config.audio_token_id] * voice_rows,
        config.next_audio_text_token_id,
        *text,
        config.repeat_audio_text_token_id,
        config.begin_audio_token_id,
    ]


def coded_frames(codes: Tensor) -> Tensor:
    """Codes [37, N] -> coded frames [N + 1, 37], the end-of-audio frame last."""
    end = codes.new_zeros(1, len(codes))
    end[0, 0] = END_OF_AUDIO
    return torch.cat([codes.T + SPECIAL_TOKENS, end])


def collate(examples: Sequence[Example], config: LanguageModelConfig) -> Batch:
    """Raises ValueError for codes or token ids that the model does not have."""
    for example in examples:
        _check(example, config)
    prompts = [prompt_ids(example.text, example.voice.shape[1] + 1, config) for example in examples]
    speech = [coded_frames(example.speech) for example in examples]
    length = max(len(ids) + len(frames) for ids, frames in zip(prompts, speech, strict=True))
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    frames = torch.zeros(len(examples), length, config.num_codebooks, dtype=torch.long)
    targets = torch.zeros(len(examples), length, dtype=torch.bool)
    for i, example in enumerate(examples):
        start, end = len(prompts[i]), len(prompts[i]) + len(speech[i])
        voice = coded_frames(example.voice)
        tokens[i, :start] = torch.tensor(prompts[i])
        tokens[i, start:end] = config.audio_token_id
        frames[i, 2 : 2 + len(voice)] = voice  # behind BOS and BEGIN_AUDIO
        frames[i, start:end] = speech[i]
        targets[i, start:end] = True
    return Batch(tokens, frames, targets)


def _check(example: Example, config: LanguageModelConfig) -> None:
    sizes = torch.tensor(config.codebook_sizes) - SPECIAL_TOKENS
    for name, codes in (("voice", example.voice), ("speech", example.speech)):
        if codes.ndim != 2 or len(codes) != config.num_codebooks or codes.dtype != torch.long:
            given = f"{codes.dtype} {list(codes.shape)}"
            raise ValueError(f"{name} is {given}, expected int64 codes [{config.num_codebooks}, frames]")
        if codes.numel() and (codes.amin() < 0 or (codes.amax(dim=1) >= sizes).any()):
            raise ValueError(
                f"{name} has codes outside 0 to the codebook's size: they are counted without special tokens"
            )
    if len(example.text) and not (min(example.text) >= 0 and max(example.text) < config.vocab_size):
        raise ValueError(f"text has token ids outside 0 to {config.vocab_size - 1}, the model's vocabulary")
