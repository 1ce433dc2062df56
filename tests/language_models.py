"""A tiny language model of random weights for tests, and sequences for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codec.checkpoint import save_encoder, save_release
from experiments.random_release import TINY, params_json, random_codec
from experiments.stand_in.language_model_release import write_language_model_release
from experiments.stand_in.letters import VOCABULARY as VOCABULARY_OF_LETTERS
from language_model import Example, LanguageModel, LanguageModelConfig

CODEC = replace(TINY, acoustic_codebook_size=5, acoustic_dim=6, embedding_dim=48)
VOCABULARY = 60


def tiny_params() -> dict[str, Any]:
    """`params.json` of a model with 7 codebooks. 4 query heads share 2 key heads and are together wider than dim."""
    params = params_json(CODEC) | {"head_dim": 16, "vocab_size": VOCABULARY, "rope_theta": 100.0}
    params["multimodal"]["audio_model_args"]["acoustic_transformer_args"]["head_dim"] = 16
    return params


def tiny_model(seed: int = 0) -> LanguageModel:
    """In evaluation mode. Every part matters to the result: norms are away from one, and logits differ widely."""
    torch.manual_seed(seed)
    model = LanguageModel(LanguageModelConfig.from_params(tiny_params())).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_(0.5 + torch.rand(parameter.shape))
        elif "embed" not in name:
            parameter.copy_(torch.randn(parameter.shape) * 2 / parameter.shape[1] ** 0.5)
    return model.eval()


def write_tiny_release(folder: Path) -> Path:
    """A release with letters as tokens and two presets, `anna` and `ben`, whose language model has random weights; and
    beside it a codec's release with its own encoder in `encoder.safetensors`."""
    params = tiny_params() | {"vocab_size": VOCABULARY_OF_LETTERS}
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    codec = random_codec(CODEC)
    save_release(folder / "codec", codec, folder / "params.json")
    save_encoder(folder / "encoder.safetensors", codec, {})
    model = LanguageModel(LanguageModelConfig.from_params(params))
    voices = {name: torch.full((7, 4), number) for number, name in enumerate(("anna", "ben"))}
    write_language_model_release(folder / "release", folder / "codec", model, params, voices)
    return folder / "release"


def example(seed: int, frames: int = 9, voice_frames: int = 5, text: int = 4) -> Example:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([CODEC.semantic_codebook_size] + [CODEC.acoustic_codebook_size] * CODEC.acoustic_dim)
    codes = (torch.rand(len(sizes), voice_frames + frames, generator=generator) * sizes[:, None]).long()
    ids = torch.randint(40, VOCABULARY, (text,), generator=generator).tolist()
    return Example(codes[:, :voice_frames], ids, codes[:, voice_frames:])
