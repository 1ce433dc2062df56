"""Releases with random weights, for tests and measurements: the real layout and tensor names, at any size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codec.checkpoint import checkpoint_tensors
from codec.codec import Codec
from codec.config import CodecConfig
from codec.tensors import ENCODER_PREFIXES

SMALL = CodecConfig(dim=64, hidden_dim=128, head_dim=32, n_heads=2, n_kv_heads=2, semantic_dim=32, embedding_dim=128)
TINY = replace(SMALL, semantic_codebook_size=64, dim=16, hidden_dim=32, head_dim=8, semantic_dim=8, embedding_dim=256)
REAL = CodecConfig(layer_scale_init=0.01)


def random_codec(config: CodecConfig, seed: int = 0) -> Codec:
    """A codec in which every tensor affects the result: norms and scales differ from 1, and the codebook's entries are
    spread like the latents."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    codec = Codec(config)
    for name, parameter in codec.named_parameters():
        if parameter.ndim == 1:  # norm weights and layer scales
            parameter.data = 0.8 + 0.4 * torch.rand(parameter.shape, generator=generator)
        elif "original0" in name:
            parameter.data *= 1 + 0.2 * torch.rand(parameter.shape, generator=generator)
    codebook = codec.quantizer.semantic_codebook
    codebook.cluster_usage = 0.5 + 4 * torch.rand(codebook.cluster_usage.shape, generator=generator)
    entries = 0.3 * torch.randn(codebook.embedding_sum.shape, generator=generator)
    codebook.embedding_sum = entries * codebook.cluster_usage[:, None]
    codec.embedding_table = 0.3 * torch.randn(config.embedding_rows, config.embedding_dim, generator=generator)
    return codec.eval().requires_grad_(False)


def params_json(config: CodecConfig, voices: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of params.json: all keys of the released file, this codec's values, and a small language model."""
    return {
        "dim": config.embedding_dim,
        "n_layers": 2,
        "head_dim": 32,
        "hidden_dim": 2 * config.embedding_dim,
        "n_heads": 4,
        "n_kv_heads": 2,
        "use_biases": False,
        "causal": True,
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
        "vocab_size": 131072,
        "max_seq_len": 65536,
        "max_position_embeddings": 128000,
        "model_type": "voxtral_tts",
        "tied_embeddings": True,
        "multimodal": {
            "bos_token_id": 1,
            "audio_model_args": {
                "semantic_codebook_size": config.semantic_codebook_size,
                "acoustic_codebook_size": config.acoustic_codebook_size,
                "n_acoustic_codebook": config.acoustic_dim,
                "audio_encoding_args": {
                    "codebook_pattern": "parallel",
                    "num_codebooks": config.num_codebooks,
                    "sampling_rate": config.sampling_rate,
                    "frame_rate": config.frame_rate,
                },
                "audio_token_id": 24,
                "begin_audio_token_id": 25,
                "input_embedding_concat_type": "sum",
                "acoustic_transformer_args": {
                    "input_dim": config.embedding_dim,
                    "dim": config.embedding_dim,
                    "n_layers": 2,
                    "head_dim": 32,
                    "hidden_dim": 2 * config.embedding_dim,
                    "n_heads": 4,
                    "n_kv_heads": 2,
                    "use_biases": False,
                    "rope_theta": 10000.0,
                    "sigma": 1e-5,
                    "sigma_max": 1.0,
                },
            },
            "audio_tokenizer_args": config.to_args() | {"voice": {name: i for i, name in enumerate(voices)}},
        },
    }


def language_model(config: CodecConfig, megabytes: float = 0.5) -> dict[str, Tensor]:
    """Some tensors that do not belong to the codec, in BF16, of about this size in all."""
    rows = max(1, int(megabytes * 1e6 / 2 / 4 / config.embedding_dim))
    generator = torch.Generator().manual_seed(5)
    weights = {
        f"layers.{i}.attention.wq.weight": torch.randn(rows, config.embedding_dim, generator=generator)
        for i in range(4)
    }
    weights["norm.weight"] = torch.ones(config.embedding_dim)
    return {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}


def write_release(
    folder: Path, codec: Codec, with_encoder: bool = True, shards: int = 1, megabytes: float = 0.5
) -> Path:
    """Writes a release of this codec with one preset voice, and returns the folder. With several `shards`, the tensors
    are spread over so many files, and an index file lists them."""
    (folder / "voice_embedding").mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params_json(codec.config, ("casual_female",)), indent=2))
    tensors = language_model(codec.config, megabytes) | checkpoint_tensors(codec)
    if not with_encoder:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER_PREFIXES)}
    voice = codec.embed(codec.quantizer.encode(torch.zeros(1, codec.config.latent_dim, 4)))[0]
    torch.save(voice.to(torch.bfloat16), folder / "voice_embedding" / "casual_female.pt")
    metadata = {"format": "pt", "source": "random"}
    if shards == 1:
        save_file(tensors, folder / "consolidated.safetensors", metadata=metadata)
        return folder
    names = sorted(tensors)
    files = {name: f"consolidated-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file, metadata=metadata)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def linked_copy(folder: Path, target: Path) -> Path:
    """Copies a release with hard links: fast, and a change made inside a file shows in `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(folder)).hardlink_to(path)
    return target
