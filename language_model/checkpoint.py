"""A release's tensors of the language model and the acoustic transformer: their names, reading and writing them.

    mm_audio_embeddings.tok_embeddings.weight               backbone.embed_tokens.weight
    mm_audio_embeddings.audio_codebook_embeddings.…weight   audio_embeddings.weight
    layers.{i}.attention.{wq,wk,wv,wo}.weight               backbone.layers.{i}.self_attn.{q,k,v,o}_proj.weight
    layers.{i}.feed_forward.{w1,w3,w2}.weight               backbone.layers.{i}.mlp.{gate,up,down}_proj.weight
    layers.{i}.{attention_norm,ffn_norm}.weight             backbone.layers.{i}.{input,post_attention}_layernorm.weight
    norm.weight                                             backbone.norm.weight
    acoustic_transformer.*                                  acoustic_transformer.*

wq and wk change the order of their rows on the way: see `rotary.py`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from codec.checkpoint import read_expected, read_tensors, shapes_only, write_tensors
from codec.config import ReleaseError, read_params
from codec.files import listed, tensor_files
from codec.tensors import EMBEDDING_NAME, Shapes
from language_model.acoustic_transformer import AcousticTransformer
from language_model.config import LanguageModelConfig
from language_model.model import LanguageModel
from language_model.rotary import to_halves, to_interleaved

_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def load_language_model(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> LanguageModel:
    """The language model of the release in `folder`, in evaluation mode.

    In bfloat16 it computes as the server does. On the CPU in bfloat16 its weights are the file itself, mapped into
    memory (but for wq and wk, 5 % of a release's); on a GPU they are copied tensor by tensor. Raises ReleaseError where
    the folder is no release, a file is truncated, or tensors are missing or have other shapes than `params.json` says.
    """
    folder = Path(folder)
    config = LanguageModelConfig.from_params(read_params(folder))
    expected, files = expected_language_model(config), tensor_files(folder)
    tensors = read_expected(folder, files, expected, "the language model")
    with shapes_only():
        model = LanguageModel(config)
    model.load_state_dict(_own_state(tensors, config, device, dtype), assign=True)
    model.first_rows = torch.tensor(config.first_rows, device=device)
    return model.eval().requires_grad_(False)


def expected_language_model(config: LanguageModelConfig) -> Shapes:
    """Checkpoint name -> shape of everything in a release that is not the codec's: 270 tensors in the release, the
    audio embedding table among them."""
    with shapes_only():
        state = LanguageModel(config).state_dict()
    return {name: tuple(state[own].shape) for name, own in _own_names(config).items()}


def checkpoint_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The model's weights by their names in a release: bf16, on the CPU."""
    state, tensors = model.state_dict(), {}
    for name, own in _own_names(model.config).items():
        weight = state[own].detach().to("cpu", torch.bfloat16)
        tensors[name] = (to_interleaved(weight, model.config.head_dim) if _is_rotated(name) else weight).contiguous()
    return tensors


def load_tensors(model: LanguageModel, tensors: dict[str, Tensor]) -> LanguageModel:
    """Copies weights, by their names in a release, into a model: the inverse of `checkpoint_tensors`."""
    model.load_state_dict(_own_state(dict(tensors), model.config, model.device, model.dtype))
    return model


def save_language_model(folder: Path, model: LanguageModel) -> None:
    """Puts the model into the release in `folder`, which holds a codec of the same code sizes, and gives its codec the
    model's audio embedding table. The whole checkpoint is read and written again: this is for small releases. Raises
    ReleaseError where `params.json` describes another model, or the checkpoint is in several files."""
    stated = LanguageModelConfig.from_params(read_params(folder))
    if stated != model.config:
        differing = [f.name for f in fields(stated) if getattr(stated, f.name) != getattr(model.config, f.name)]
        raise ReleaseError(f"{folder}: params.json is of another model than the one to be saved: {listed(differing)}")
    files = tensor_files(folder)
    if len(set(files.values())) > 1:
        raise ReleaseError(f"{folder} has a checkpoint in several files: a model is saved into one of a single file")
    path = next(iter(files.values()))
    tensors = {name: tensor.clone() for name, tensor in read_tensors(files).items()}
    write_tensors(path, tensors | checkpoint_tensors(model), {"format": "pt"})


def _own_names(config: LanguageModelConfig) -> dict[str, str]:
    """Checkpoint name -> the model's own."""
    names = {
        "mm_audio_embeddings.tok_embeddings.weight": "backbone.embed_tokens.weight",
        EMBEDDING_NAME: "audio_embeddings.weight",
        "norm.weight": "backbone.norm.weight",
    }
    for i in range(config.n_layers):
        names |= {f"layers.{i}.{its}.weight": f"backbone.layers.{i}.{own}.weight" for its, own in _LAYER.items()}
    with shapes_only():
        acoustic = AcousticTransformer(config).state_dict()
    return names | {f"acoustic_transformer.{name}": f"acoustic_transformer.{name}" for name in acoustic}


def _own_state(
    tensors: dict[str, Tensor], config: LanguageModelConfig, device: str | torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The module's state. Each of `tensors` is taken out of it, so that no two copies of all are there at once."""
    state = {}
    for name, own in _own_names(config).items():
        weight = tensors.pop(name).to(device, dtype)
        state[own] = to_halves(weight, config.head_dim) if _is_rotated(name) else weight
    return state


def _is_rotated(name: str) -> bool:
    return name.startswith("layers.") and name.endswith((".attention.wq.weight", ".attention.wk.weight"))
