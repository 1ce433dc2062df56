"""Causal convolutions and the windowed ALiBi transformer that encoder and decoder are built of.

Modules and parameters carry the checkpoint's names, so that a `state_dict` is the checkpoint's part. The order of
operations is the server's: in bf16 another order gives other codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from codec.config import CodecConfig


class CausalConv1d(nn.Module):
    """[B, C, T] -> [B, C', ceil(T / stride)]. The past is padded by `pad_mode`; on the right only what the last
    frame needs to be whole."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, pad_mode: str, normed: bool = True):
        super().__init__()
        conv = nn.Conv1d(channels, out_channels, kernel, stride, bias=False)
        self.conv = weight_norm(conv) if normed else conv
        self.kernel, self.stride, self.pad_mode = kernel, stride, pad_mode

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        left = self.kernel - self.stride
        right = math.ceil(length / self.stride) * self.stride - length
        missing = left - length + 1 if self.pad_mode == "reflect" else 0
        if missing > 0:  # reflection needs more than `left` samples: zeros stand in for those not there
            x = F.pad(x, (0, missing))
        x = F.pad(x, (left, right), mode=self.pad_mode)
        return self.conv(x[..., : left + length + right])


class CausalConvTranspose1d(nn.Module):
    """[B, C, T] -> [B, C', T * stride]; the kernel's overhang is cut on the right."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int):
        super().__init__()
        self.conv = weight_norm(nn.ConvTranspose1d(channels, out_channels, kernel, stride, bias=False))
        self.overhang = kernel - stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return out[..., : out.shape[-1] - self.overhang]


def attention_bias(length: int, window: int, n_heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """ALiBi bias [heads, query, key]: slope · (key − query) for a query's own key and the `window` before it, −inf
    elsewhere. Slopes are r^0 … r^(heads−1) with r = 2^(−8 / heads); the ALiBi paper (Press et al. 2022) starts at r."""
    position = torch.arange(length, device=device)
    distance = position[None, :] - position[:, None]
    # made on the device: numbers that come from the CPU would have to wait for it
    slopes = (2.0 ** (-8.0 / n_heads * torch.arange(n_heads, dtype=torch.float64, device=device))).float()
    bias = slopes.to(dtype)[:, None, None] * distance.to(dtype)
    return bias.masked_fill((distance > 0) | (distance < -window), float("-inf"))


class RMSNorm(nn.RMSNorm):
    """In the precision of its input: a float32 weight, as autocast leaves it, keeps torch from its fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention over [B, T, D] with a sliding window and normalised queries and keys."""

    def __init__(self, config: CodecConfig, window: int):
        super().__init__()
        width = config.n_heads * config.head_dim
        self.n_heads, self.window = config.n_heads, window
        self.wq = nn.Linear(config.dim, width, bias=False)
        self.wk = nn.Linear(config.dim, width, bias=False)
        self.wv = nn.Linear(config.dim, width, bias=False)
        self.wo = nn.Linear(width, config.dim, bias=False)
        # over the flattened width, before the split into heads
        self.q_norm = RMSNorm(width, eps=config.qk_norm_eps)
        self.k_norm = RMSNorm(width, eps=config.qk_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_norm(self.wq(x)), self.k_norm(self.wk(x)), self.wv(x)
        bias = attention_bias(x.shape[1], self.window, self.n_heads, q.dtype, q.device)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.wo(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward, each branch scaled per channel (LayerScale)."""

    def __init__(self, config: CodecConfig, window: int):
        super().__init__()
        self.attention = Attention(config, window)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention_scale = nn.Parameter(torch.full((config.dim,), config.layer_scale_init))
        self.ffn_scale = nn.Parameter(torch.full((config.dim,), config.layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_scale * self.attention(self.attention_norm(x))
        return x + self.ffn_scale * self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """A stage's layers over [B, D, T], the layout of the convolutions around it."""

    def __init__(self, config: CodecConfig, layers: int, window: int):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config, window) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2)
