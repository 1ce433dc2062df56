"""A release that the server can serve: the demo's trained codec and voices, a language model with random weights."""

from __future__ import annotations

import json
import math
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import inject_encoder
import patch_tokenizer
from codec.voices import END_OF_AUDIO
from release.changes import STATE
from tests.speaking_release import tekken

DEMO = Path("data/demo")
WITHHELD_ENCODER = DEMO / "withheld_encoder.safetensors"
SEMANTIC_OUTPUT = "acoustic_transformer.semantic_codebook_output.weight"
VOCABULARY_MULTIPLE = 128  # the size of the semantic output is a multiple of it
END_OF_AUDIO_GAIN = 2  # end-of-audio is sometimes the largest of 8194 random logits, so speech ends


def write_served_release(folder: Path) -> Path:
    """Writes the demo's release (it has no encoder) with a language model, an acoustic transformer and a tokenizer."""
    shutil.copytree(DEMO / "release", folder)
    params = json.loads((folder / "params.json").read_text())
    spoken = load_file(folder / "consolidated.safetensors")
    save_file(language_model(params) | spoken, folder / "consolidated.safetensors", metadata={"format": "pt"})
    voices = params["multimodal"]["audio_tokenizer_args"]["voice"]
    rows = {name: len(torch.load(folder / "voice_embedding" / f"{name}.pt", weights_only=True)) for name in voices}
    (folder / "tekken.json").write_text(json.dumps(tekken(rows, whole=True)), encoding="utf-8")
    return folder


def language_model(params: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Name -> random weights, bf16, of everything in a release but the codec, with the sizes in `params`."""
    audio = params["multimodal"]["audio_model_args"]
    acoustic = audio["acoustic_transformer_args"]
    width, acoustic_codes = acoustic["dim"], audio["n_acoustic_codebook"]
    semantic_codes = audio["semantic_codebook_size"] + 2  # and the two special tokens
    shapes = {
        "norm.weight": (params["dim"],),
        "mm_audio_embeddings.tok_embeddings.weight": (params["vocab_size"], params["dim"]),
        "acoustic_transformer.norm.weight": (width,),
        "acoustic_transformer.input_projection.weight": (width, acoustic_codes),
        "acoustic_transformer.llm_projection.weight": (width, acoustic["input_dim"]),
        "acoustic_transformer.time_projection.weight": (width, width),
        "acoustic_transformer.acoustic_codebook_output.weight": (acoustic_codes, width),
        SEMANTIC_OUTPUT: (
            VOCABULARY_MULTIPLE * math.ceil(semantic_codes / VOCABULARY_MULTIPLE),
            width,
        ),
        **layers("layers.", params),
        **layers("acoustic_transformer.layers.", acoustic),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: weights(shape, generator) for name, shape in shapes.items()}
    tensors[SEMANTIC_OUTPUT][END_OF_AUDIO] *= END_OF_AUDIO_GAIN
    return tensors


def layers(prefix: str, sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights of a transformer's layers."""
    dim, hidden = sizes["dim"], sizes["hidden_dim"]
    queries, keys = sizes["n_heads"] * sizes["head_dim"], sizes["n_kv_heads"] * sizes["head_dim"]
    layer = {
        "attention.wq": (queries, dim),
        "attention.wk": (keys, dim),
        "attention.wv": (keys, dim),
        "attention.wo": (dim, queries),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim),
        "attention_norm": (dim,),
        "ffn_norm": (dim,),
    }
    return {f"{prefix}{i}.{name}.weight": shape for i in range(sizes["n_layers"]) for name, shape in layer.items()}


def weights(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random weights. Matrices keep the magnitude of their input; the weights of norms are ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(torch.bfloat16)


def fingerprints(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file of the release, without the state of patch_tokenizer.py."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items() if not name.startswith(STATE)}


def inject(folder: Path, *arguments: str) -> None:
    assert inject_encoder.main(["--model-dir", str(folder), "--encoder", str(WITHHELD_ENCODER), *arguments]) == 0


def patch(folder: Path, *arguments: str) -> int:
    return patch_tokenizer.main(["--model-dir", str(folder), *arguments])
