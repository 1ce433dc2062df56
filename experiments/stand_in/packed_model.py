"""The language model as training computes it: several sequences packed into a row, dropout, and the attention of single
heads, which can be taught.

The weights are those of `LanguageModel`. The layers are written out here, as functions of their weights, so that one
compiled function serves all layers, and because packing needs a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.voices import END_OF_AUDIO, until_end_of_audio
from language_model.generation import Speech, frame_noise, prompt_rows
from language_model.model import LanguageModel
from language_model.prompt import Prompt


class PackedModel:
    """Computes a `LanguageModel`. `compiled` is for a GPU and batches of one shape."""

    def __init__(self, model: LanguageModel, dropout: float = 0.0, compiled: bool = False):
        self.model, self.dropout = model, dropout
        self.layer = torch.compile(decoder_layer, dynamic=False) if compiled else decoder_layer
        if compiled:
            transformer = model.acoustic_transformer
            transformer.velocity = torch.compile(transformer.velocity, dynamic=False)  # type: ignore[method-assign]

    def states(self, rows: Tensor, positions: Tensor, document: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Input rows [R, T, dim] at positions [R, T] -> hidden states [R, T, dim], normed, and what went into each
        layer. A position sees what lies before it in its own `document` [R, T], or in the whole row."""
        backbone, config = self.model.backbone, self.model.config
        cos, sin = backbone.rotary_emb(rows, positions)
        mask = None if document is None else visible(document, rows.dtype)
        inputs = []
        for layer in backbone.layers:
            inputs.append(rows)
            dropout = self.dropout if self.model.training else 0.0
            rows = self.layer(rows, cos, sin, mask, dropout, config.norm_eps, config.head_dim, *layer_weights(layer))
        return rms_norm(rows, backbone.norm.weight, config.norm_eps), inputs

    def attention_scores(self, number: int, head: int, rows: Tensor, positions: Tensor, document: Tensor) -> Tensor:
        """The scores [R, T, T], before the softmax, of one head of layer `number` for that layer's input."""
        config = self.model.config
        layer: Any = self.model.backbone.layers[number]
        normed = rms_norm(rows, layer.input_layernorm.weight, config.norm_eps)
        shared = head // (config.n_heads // config.n_kv_heads)
        own, theirs = (slice(i * config.head_dim, (i + 1) * config.head_dim) for i in (head, shared))
        angles = self.model.backbone.rotary_emb(rows, positions)
        query = turned(normed @ layer.self_attn.q_proj.weight[own].T, *angles)
        key = turned(normed @ layer.self_attn.k_proj.weight[theirs].T, *angles)
        scores = (query @ key.transpose(-1, -2)).float() / config.head_dim**0.5
        return scores + visible(document, torch.float32)[:, 0]


def decoder_layer(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    dropout: float,
    eps: float,
    head_dim: int,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    w1: Tensor,
    w3: Tensor,
    w2: Tensor,
    attention_norm: Tensor,
    ffn_norm: Tensor,
) -> Tensor:
    normed = rms_norm(x, attention_norm, eps)
    query, key, value = (F.linear(normed, w).unflatten(-1, (-1, head_dim)).transpose(1, 2) for w in (wq, wk, wv))
    query, key = turned(query, cos[:, None], sin[:, None]), turned(key, cos[:, None], sin[:, None])
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
    x = x + F.dropout(F.linear(mixed.transpose(1, 2).flatten(2), wo), dropout)
    normed = rms_norm(x, ffn_norm, eps)
    return x + F.dropout(F.linear(F.silu(F.linear(normed, w1)) * F.linear(normed, w3), w2), dropout)


def layer_weights(layer: Any) -> list[Tensor]:
    """Of a `MistralDecoderLayer` of transformers, in the order that `decoder_layer` takes."""
    attention, mlp = layer.self_attn, layer.mlp
    linear = (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
    return [part.weight for part in (*linear, layer.input_layernorm, layer.post_attention_layernorm)]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves of a head turned together as in `transformers`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def visible(document: Tensor, dtype: torch.dtype) -> Tensor:
    """[R, T] -> [R, 1, T, T]: 0 where a position sees another, −inf elsewhere."""
    length = document.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    seen = (document[:, :, None] == document[:, None]) & past
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -math.inf)[:, None]


@torch.no_grad()
def say(packed: PackedModel, prompts: Sequence[Prompt], max_frames: int, seeds: Sequence[int]) -> list[Speech]:
    """Speaks all prompts at once, as `generate` does, but without a cache: whole sequences are computed again for each
    frame. For short speech on a GPU that is fast, and it is the training's own code. The model is in evaluation
    mode."""
    model = packed.model
    given = [prompt_rows(model, prompt) for prompt in prompts]
    lengths = torch.tensor([len(rows) for rows in given], device=model.device)
    longest, everyone = int(lengths.max()), torch.arange(len(given), device=model.device)
    rows = given[0].new_zeros(len(given), longest + max_frames, given[0].shape[1])
    for row, own in zip(rows, given, strict=True):
        row[: len(own)] = own
    noise = torch.stack([frame_noise(seed, max_frames, model) for seed in seeds])
    positions = torch.arange(longest + max_frames, device=model.device)[None]
    said, ended = [], torch.zeros(len(given), dtype=torch.bool, device=model.device)
    for frame in range(max_frames):
        used = longest + frame
        hidden, _ = packed.states(rows[:, :used], positions[:, :used])
        hidden = hidden[everyone, lengths + frame - 1]
        said.append(model.acoustic_transformer.next_frame(hidden, noise[:, frame].to(hidden)))
        ended |= said[-1][:, 0] == END_OF_AUDIO
        if ended.all():
            break
        rows[everyone, lengths + frame] = model.embed_frames(said[-1])
    return [Speech(*until_end_of_audio(frames)) for frames in torch.stack(said, dim=1).cpu()]
