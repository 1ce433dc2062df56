"""From the language model's hidden state to a frame: the semantic head, and flow matching for the acoustic codes.

One frame is a sequence of three tokens, without positions and without a mask: the noisy codes x_t, the time t and the
hidden state. The output at the first token is the velocity that carries x from noise (t = 0) to codes (t = 1). The
model is the paper's (arXiv 2603.25551); where its text and the server differ, this computes what the server does
(vllm-omni 0.30.0, `FlowMatchingAudioTransformer`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import SPECIAL_TOKENS
from codec.voices import END_OF_AUDIO
from language_model.config import AcousticConfig, LanguageModelConfig

MAX_PERIOD = 10000.0  # of the time embedding
TOKENS = 3


class AcousticTransformer(nn.Module):
    """Parameters carry the checkpoint's names, after `acoustic_transformer.`."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        args = config.acoustic
        self.input_projection = _linear(config.n_acoustic_codebook, args.dim)
        self.time_projection = _linear(args.dim, args.dim)
        self.llm_projection = _linear(args.input_dim, args.dim)
        self.layers = nn.ModuleList(Block(args) for _ in range(args.n_layers))
        self.norm = nn.RMSNorm(args.dim, args.norm_eps)
        self.semantic_codebook_output = _linear(config.dim, config.semantic_rows)
        self.acoustic_codebook_output = _linear(args.dim, config.n_acoustic_codebook)

    def semantic_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., dim] -> logits [..., semantic_rows] in float32 over coded classes: 1 is the end of audio,
        2 the first code. Class 0 and the padding are −inf."""
        logits = self.semantic_codebook_output(hidden).float()
        classes = torch.arange(logits.shape[-1], device=logits.device)
        return logits.masked_fill((classes < END_OF_AUDIO) | (classes >= self.config.semantic_classes), -math.inf)

    def velocity(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Velocity [N, 36] of noisy codes x [N, 36] at projected times [N, dim] under projected hidden states
        [N, dim]: see `project_time` and `llm_projection`. A condition of zeros is the unconditional velocity."""
        tokens = torch.stack([self.input_projection(x), *torch.broadcast_tensors(time, condition)], dim=1)
        for layer in self.layers[:-1]:
            tokens = layer(tokens, TOKENS)
        tokens = self.layers[-1](tokens, 1)  # only the first is read
        return self.acoustic_codebook_output(self.norm(tokens[:, 0]))

    def project_time(self, time: Tensor) -> Tensor:
        """Times [N] in [0, 1] -> [N, dim]. The embedding is computed in float32 from the time as it is given."""
        half = self.config.acoustic.dim // 2
        frequency = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=time.device).float() / half)
        angles = time[:, None].float() * frequency
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.time_projection(embedding.to(self.time_projection.weight.dtype))

    @torch.no_grad()
    def decode(self, hidden: Tensor, noise: Tensor, cfg_alpha: float = 1.2, steps: int | None = None) -> Tensor:
        """Acoustic codes [B, 36], 0 to 20, int64, from hidden states [B, dim] and noise [B, 36] ~ N(0, 1).

        Euler steps with classifier-free guidance: v = α · v(hidden) + (1 − α) · v(0). `steps` is the release's
        `n_decoding_steps` unless given. Everything is in the dtype of `hidden`, every operation in the server's order.
        """
        steps = steps or self.config.acoustic.n_decoding_steps
        times = torch.linspace(0, 1, steps + 1, dtype=hidden.dtype, device=hidden.device)
        projected = self.project_time(times)
        alpha = torch.tensor(cfg_alpha, dtype=hidden.dtype, device=hidden.device)
        condition = self.llm_projection(torch.cat([hidden, torch.zeros_like(hidden)]))
        x = noise.to(hidden.dtype)
        for i, step in enumerate(times.diff()):
            with_condition, without = self.velocity(torch.cat([x, x]), projected[i], condition).chunk(2)
            x = x + (alpha * with_condition + (1 - alpha) * without) * step
        levels = (x.clamp(-1, 1) + 1) / 2 * (self.config.acoustic_codebook_size - 1)
        return levels.round().long()

    @torch.no_grad()
    def next_frame(self, hidden: Tensor, noise: Tensor, cfg_alpha: float = 1.2, steps: int | None = None) -> Tensor:
        """The frame [B, 37], coded, that the server says at hidden states [B, dim]: the semantic code with the greatest
        logit, and acoustic codes from this noise [B, 36]. The end of audio is 1 and then 2 throughout."""
        semantic = self.semantic_logits(hidden).argmax(dim=-1)
        acoustic = self.decode(hidden, noise, cfg_alpha, steps)
        acoustic[semantic == END_OF_AUDIO] = 0
        return torch.cat([semantic[:, None], acoustic + SPECIAL_TOKENS], dim=1)


class Block(nn.Module):
    """Pre-norm transformer layer over the three tokens of a frame: [N, 3, dim] to its first `count` tokens,
    [N, count, dim]."""

    def __init__(self, args: AcousticConfig) -> None:
        super().__init__()
        self.attention = Attention(args)
        self.feed_forward = FeedForward(args)
        self.attention_norm = nn.RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = nn.RMSNorm(args.dim, args.norm_eps)

    def forward(self, x: Tensor, count: int) -> Tensor:
        x = x[:, :count] + self.attention(self.attention_norm(x), count)
        return x + self.feed_forward(self.ffn_norm(x))


class Attention(nn.Module):
    """Every token attends to all three; groups of query heads share a key head."""

    def __init__(self, args: AcousticConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = args.n_heads, args.n_kv_heads, args.head_dim
        self.wq = _linear(args.dim, args.n_heads * args.head_dim)
        self.wk = _linear(args.dim, args.n_kv_heads * args.head_dim)
        self.wv = _linear(args.dim, args.n_kv_heads * args.head_dim)
        self.wo = _linear(args.n_heads * args.head_dim, args.dim)

    def forward(self, x: Tensor, count: int) -> Tensor:
        # [N, key heads, query heads of each, tokens, head_dim]: the group is a dimension, so that nothing is repeated
        groups = (self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        query = self.wq(x[:, :count]).unflatten(-1, groups).permute(0, 2, 3, 1, 4)
        key, value = (w(x).unflatten(-1, groups[::2]).transpose(1, 2)[:, :, None] for w in (self.wk, self.wv))
        attend = _attend_by_products if self.training else _attend_as_the_server
        return self.wo(attend(query, key, value).permute(0, 3, 1, 2, 4).flatten(2))


def _attend_as_the_server(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = (query * (1.0 / query.shape[-1] ** 0.5)) @ key.transpose(-2, -1)
    return scores.softmax(-1) @ value


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same for thousands of sequences of 3: elementwise products and sums instead of as many tiny matrix
    products, which a GPU does one by one."""
    scores = (query[..., None, :] * key[..., None, :, :]).sum(-1) / query.shape[-1] ** 0.5
    return (scores.softmax(-1)[..., None].to(value.dtype) * value[..., None, :, :]).sum(-2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, args: AcousticConfig) -> None:
        super().__init__()
        self.w1 = _linear(args.dim, args.hidden_dim)
        self.w2 = _linear(args.hidden_dim, args.dim)
        self.w3 = _linear(args.dim, args.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)
