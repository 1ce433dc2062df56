"""Releases with a tokenizer: mistral-common's vocabulary with a speech release's special tokens and audio section."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
import torch

from codec import Codec, load_release
from experiments.random_release import write_release

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


@cache
def _source() -> str:
    return (Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text(encoding="utf-8")


@cache
def _small() -> str:
    """The first 300 words of the source: this loads a hundred times faster."""
    source = json.loads(_source())
    return json.dumps(source | {"vocab": source["vocab"][:300]})


def tekken(counts: Mapping[str, int], whole: bool = False) -> dict[str, Any]:
    """tekken.json as in a release, but with a short vocabulary, unless `whole`."""
    made = json.loads(_source() if whole else _small())
    made.pop("image", None)
    specials = made["config"]["default_num_special_tokens"]
    made["config"]["version"] = "v7"
    if not whole:
        made["config"] |= {"num_vocab_tokens": 300, "default_vocab_size": 300 + specials}
    made["special_tokens"] = [
        {"rank": rank, "token_str": SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(specials)
    ]
    made["audio"] = {
        "sampling_rate": 24000,
        "frame_rate": 12.5,
        "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
        "voice_num_audio_tokens": dict(counts),
    }
    return made


def write_speaking_release(folder: Path, codec: Codec, with_encoder: bool = True, whole: bool = False) -> Path:
    """Writes a release with a tokenizer and one preset voice, which all three places name."""
    write_release(folder, codec, with_encoder)
    served = load_release(folder)
    voice = served.embed(torch.zeros(1, served.num_codebooks, 4, dtype=torch.long))[0]
    torch.save(voice.clone(), folder / "voice_embedding" / "casual_female.pt")
    text = json.dumps(tekken({"casual_female": len(voice)}, whole), indent=4)
    (folder / "tekken.json").write_text(text, encoding="utf-8")
    return folder
