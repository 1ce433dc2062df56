"""A release with the stand-in's language model, which the server can serve: the codec without its encoder in
`consolidated.safetensors`, the language model in `consolidated_language_model.safetensors`, `params.json`,
`tekken.json` (letters), and preset voices."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.checkpoint import read_tensors, write_tensors
from codec.files import CHECKPOINT_NAME, tensor_files
from codec.tensors import CODEC_PREFIX, EMBEDDING_NAME
from codec.voices import embed_codes
from experiments.stand_in.letters import tekken
from language_model import LanguageModel
from language_model.checkpoint import checkpoint_tensors

LANGUAGE_MODEL_FILE = "consolidated_language_model.safetensors"


def write_language_model_release(
    folder: Path, codec: Path, model: LanguageModel, params: Mapping[str, Any], voices: Mapping[str, Tensor]
) -> None:
    """`codec` is a release of the codec, `params` what `params.json` says but for the voices, and `voices` the codes
    [37, F] of each preset voice. Raises ReleaseError if a file cannot be written."""
    (folder / "voice_embedding").mkdir(parents=True, exist_ok=True)
    write_codec(folder / CHECKPOINT_NAME, codec)
    learned = checkpoint_tensors(model)
    write_tensors(folder / LANGUAGE_MODEL_FILE, learned, {"format": "pt"})
    rows = {
        name: embed_codes(codes[None], learned[EMBEDDING_NAME], model.config.codebook_sizes)[0].clone()
        for name, codes in voices.items()
    }
    for name, embedding in rows.items():
        torch.save(embedding, folder / "voice_embedding" / f"{name}.pt")
    stated = copy.deepcopy(dict(params))
    stated["multimodal"]["audio_tokenizer_args"]["voice"] = {name: i for i, name in enumerate(voices)}
    (folder / "params.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(tekken({name: len(embedding) for name, embedding in rows.items()}), indent=1)
    (folder / "tekken.json").write_text(text, encoding="utf-8")


def write_codec(path: Path, codec: Path) -> None:
    """The tensors of a codec's release but for the audio embedding table, which is the language model's."""
    tensors = read_tensors(tensor_files(codec))
    own = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(CODEC_PREFIX)}
    write_tensors(path, own, {"format": "pt"})
