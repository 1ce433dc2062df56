"""Letters as tokens: the tokenizer of a release whose language model is small.

Each byte of the text, in UTF-8, is a token. So the text table has 1256 rows: a thousand control tokens, which
mistral-common puts first, and 256 bytes. The server reads `tekken.json` as it reads the release's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from codec.config import FRAME_SIZE, SAMPLE_RATE

CONTROL_TOKENS = 1000
VOCABULARY = CONTROL_TOKENS + 256
SPECIAL = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    32: "[STREAMING_PAD]",
    33: "[STREAMING_WORD]",
    34: "[TRANSCRIBE]",
    35: "[REPEAT_AUDIO_TEXT]",
    36: "[NEXT_AUDIO_TEXT]",
}


def letter_ids(text: str) -> list[int]:
    """What mistral-common makes of `text` with the tokenizer below."""
    return [CONTROL_TOKENS + byte for byte in text.encode()]


def text_of(ids: Iterable[int]) -> str:
    """The text of `letter_ids`."""
    return bytes(token - CONTROL_TOKENS for token in ids).decode()


def control_tokens(count: int) -> list[dict[str, Any]]:
    """The `special_tokens` of a release's `tekken.json`, `count` of them."""
    return [
        {"rank": rank, "token_str": SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(count)
    ]


def audio_section(voices: Mapping[str, int]) -> dict[str, Any]:
    """The `audio` section of a release's `tekken.json`. `voices` gives the number of rows of each preset voice, end of
    audio included."""
    return {
        "sampling_rate": SAMPLE_RATE,
        "frame_rate": SAMPLE_RATE / FRAME_SIZE,
        "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        "voice_num_audio_tokens": dict(voices),
    }


def tekken(voices: Mapping[str, int]) -> dict[str, Any]:
    """The content of `tekken.json`, with `voices` as in `audio_section`."""
    letters = [bytes([byte]) for byte in range(256)]
    return {
        "config": {
            "pattern": r"(?s:.)",  # every character by itself
            "num_vocab_tokens": 256,
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": CONTROL_TOKENS,
            "version": "v7",
        },
        "vocab": [
            {
                "rank": rank,
                "token_bytes": base64.b64encode(letter).decode(),
                "token_str": letter.decode() if letter.isascii() else None,
            }
            for rank, letter in enumerate(letters)
        ],
        "special_tokens": control_tokens(CONTROL_TOKENS),
        "audio": audio_section(voices),
    }
