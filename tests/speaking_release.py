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
from experiments.stand_in.letters import audio_section, control_tokens


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
    return made | {"special_tokens": control_tokens(specials), "audio": audio_section(counts)}


def write_speaking_release(folder: Path, codec: Codec, with_encoder: bool = True, whole: bool = False) -> Path:
    """Writes a release with a tokenizer and one preset voice, which all three places name."""
    write_release(folder, codec, with_encoder)
    served = load_release(folder)
    voice = served.embed(torch.zeros(1, served.num_codebooks, 4, dtype=torch.long))[0]
    torch.save(voice.clone(), folder / "voice_embedding" / "casual_female.pt")
    text = json.dumps(tekken({"casual_female": len(voice)}, whole), indent=4)
    (folder / "tekken.json").write_text(text, encoding="utf-8")
    return folder
