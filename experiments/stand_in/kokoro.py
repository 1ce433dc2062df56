"""Kokoro-82M in plain PyTorch, batched: phonemes and a voice to speech, and the duration of every phoneme.

    model = Kokoro.load(Path("kokoro-q8.safetensors"), "cuda")
    waveforms, units = model(tokens, styles, speeds)      # lists in; 1-D waveforms at 24 kHz and durations out

`tokens` are phoneme ids (kokoro_phonemes.py), a style is a vector of 256. Sentences of any length share a
batch: every layer masks the padding, so a sentence sounds the same alone and in a batch, up to float rounding and the
noise of the source.

The architecture is StyleTTS 2 (Li et al. 2023) with an iSTFTNet decoder, as Kokoro has it (hexgrad, Apache-2.0).
Modules and weights carry Kokoro's names. This is for inference only, with weight norm folded in; kokoro_weights.py
writes the weights.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.stand_in.kokoro_layers import AdaINBlock, Lstm, Mask, SnakeBlock, mask_of, trim

SAMPLE_RATE, UNIT = 24000, 600  # a duration unit is 600 samples, 25 ms


class Albert(nn.Module):
    """ALBERT: one layer, used twelve times."""

    embeddings: Any  # nested module dictionaries, named as in the weights
    encoder: Any

    def __init__(self) -> None:
        super().__init__()
        tree = nn.ModuleDict
        self.embeddings = tree(
            {
                "word_embeddings": nn.Embedding(178, 128),
                "position_embeddings": nn.Embedding(512, 128),
                "token_type_embeddings": nn.Embedding(2, 128),
                "LayerNorm": nn.LayerNorm(128, 1e-12),
            }
        )
        attention = tree({k: nn.Linear(768, 768) for k in ("query", "key", "value", "dense")})
        attention["LayerNorm"] = nn.LayerNorm(768, 1e-12)
        layer = tree(
            {
                "attention": attention,
                "ffn": nn.Linear(768, 2048),
                "ffn_output": nn.Linear(2048, 768),
                "full_layer_layer_norm": nn.LayerNorm(768, 1e-12),
            }
        )
        self.encoder = tree(
            {
                "embedding_hidden_mapping_in": nn.Linear(128, 768),
                "albert_layer_groups": nn.ModuleList([tree({"albert_layers": nn.ModuleList([layer])})]),
            }
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        e = self.embeddings
        x = (
            e["word_embeddings"](ids)
            + e["position_embeddings"].weight[: ids.shape[1]]
            + e["token_type_embeddings"].weight[0]
        )
        x = self.encoder["embedding_hidden_mapping_in"](e["LayerNorm"](x))
        layer = self.encoder["albert_layer_groups"][0]["albert_layers"][0]
        a, keep = layer["attention"], mask.bool()[:, None, None]
        for _ in range(12):
            q, k, v = (a[n](x).unflatten(2, (12, 64)).transpose(1, 2) for n in ("query", "key", "value"))
            y = F.scaled_dot_product_attention(q, k, v, keep).transpose(1, 2).flatten(2)
            x = a["LayerNorm"](x + a["dense"](y))
            x = layer["full_layer_layer_norm"](x + layer["ffn_output"](F.gelu(layer["ffn"](x), approximate="tanh")))
        return x


class TextEncoder(nn.Module):
    """Phonemes to features, by three convolutions and an LSTM."""

    cnn: Any

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(178, 512), Lstm(512)
        self.cnn = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv1d(512, 512, 5, padding=2),
                    nn.ParameterDict({"gamma": torch.ones(512), "beta": torch.zeros(512)}),
                ]
            )
            for _ in range(3)
        )

    def forward(self, ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids) * mask[:, :, None]
        for conv, norm in self.cnn:
            x = F.layer_norm(conv(x.mT).mT, (512,), norm["gamma"], norm["beta"])
            x = F.leaky_relu(x, 0.2) * mask[:, :, None]
        return self.lstm(x, lengths)


class StyleNorm(nn.Module):
    """Layer norm over the features, with scale and shift from the style."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 1024)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        gamma, beta = self.fc(s)[:, None].chunk(2, 2)
        return (1 + gamma) * F.layer_norm(x, (512,)) + beta


class Predictor(nn.Module):
    """Durations from the text, then pitch (F0) and energy (N) from the stretched text."""

    text_encoder: Any
    duration_proj: Any

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = nn.ModuleDict(
            {"lstms": nn.ModuleList(Lstm(640) if i % 2 == 0 else StyleNorm() for i in range(6))}
        )
        self.lstm, self.shared = Lstm(640), Lstm(640)
        self.duration_proj = nn.ModuleDict({"linear_layer": nn.Linear(512, 50)})
        self.F0, self.N = (
            nn.ModuleList([AdaINBlock(512, 512), AdaINBlock(512, 256, True), AdaINBlock(256, 256)]) for _ in range(2)
        )
        self.F0_proj, self.N_proj = nn.Conv1d(256, 1, 1), nn.Conv1d(256, 1, 1)

    def durations(self, x: Tensor, s: Tensor, lengths: Tensor, mask: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        style, m = s[:, None].expand(-1, x.shape[1], -1), mask[:, :, None]
        x = torch.cat([x, style], 2) * m
        for layer in self.text_encoder["lstms"]:
            x = layer(x, lengths) if isinstance(layer, Lstm) else torch.cat([layer(x, s), style], 2) * m
        units = torch.sigmoid(self.duration_proj["linear_layer"](self.lstm(x, lengths))).sum(2) / speed[:, None]
        return x, units.round().clamp(min=1).long() * mask.long()

    def curves(self, x: Tensor, s: Tensor, lengths: Tensor, mask: Mask, wide: Mask) -> list[Tensor]:
        x = self.shared(x, lengths).mT
        out = []
        for blocks, proj in ((self.F0, self.F0_proj), (self.N, self.N_proj)):
            y = blocks[1](blocks[0](x, s, mask, mask), s, mask, wide)
            out.append(trim(proj(blocks[2](y, s, wide, wide)), wide))
        return out


class Decoder(nn.Module):
    """Stretched text, pitch, energy and timbre to the waveform, by way of a source of harmonics and an inverse STFT."""

    generator: Any
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encode = AdaINBlock(514, 1024)
        self.decode = nn.ModuleList(AdaINBlock(1090, 1024 if i < 3 else 512, i == 3) for i in range(4))
        self.F0_conv, self.N_conv = nn.Conv1d(1, 1, 3, 2, 1), nn.Conv1d(1, 1, 3, 2, 1)
        self.asr_res = nn.ModuleList([nn.Conv1d(512, 64, 1)])
        g = nn.ModuleDict({"m_source": nn.ModuleDict({"l_linear": nn.Linear(9, 1)})})
        g["ups"] = nn.ModuleList([nn.ConvTranspose1d(512, 256, 20, 10, 5), nn.ConvTranspose1d(256, 128, 12, 6, 3)])
        g["noise_convs"] = nn.ModuleList([nn.Conv1d(22, 256, 12, 6, 3), nn.Conv1d(22, 128, 1)])
        g["noise_res"] = nn.ModuleList([SnakeBlock(256, 7), SnakeBlock(128, 11)])
        g["resblocks"] = nn.ModuleList(SnakeBlock(c, k) for c in (256, 128) for k in (3, 7, 11))
        g["conv_post"] = nn.Conv1d(128, 22, 7, padding=3)
        self.generator = g
        self.register_buffer("window", torch.hann_window(20), persistent=False)

    def source(self, f0: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
        """Nine harmonics of the pitch and some noise, as a waveform [B, 300 * frames]."""
        voiced = (f0 > 10).float().repeat_interleave(300, 1)[:, None]
        cycles = f0.double()[:, None] * torch.arange(1, 10, device=f0.device)[:, None] / SAMPLE_RATE
        phase = torch.cumsum(cycles % 1, 2) * 300
        step = F.pad(phase.diff(dim=2), (1, 1)).float()  # between frame centres; flat at both ends
        start = (phase % 1).float()
        t = (torch.arange(300, device=f0.device) + 0.5) / 300 - 0.5
        rise = torch.where(t < 0, step[..., :-1, None] * t, step[..., 1:, None] * t)
        waves = 0.1 * torch.sin(2 * math.pi * (start[..., None] + rise)).flatten(2) * voiced
        if noise:
            level = noise * (voiced * 0.003 + (1 - voiced) * 0.1 / 3)
            waves = waves + level * torch.randn(waves.shape, device=f0.device, generator=generator)
        linear = self.generator["m_source"]["l_linear"]
        return torch.tanh(linear(waves.mT)).squeeze(2)

    def forward(
        self,
        text: Tensor,
        f0: Tensor,
        n: Tensor,
        s: Tensor,
        units: Tensor,
        mask: Mask,
        wide: Mask,
        noise: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        g = self.generator
        fine = mask_of(units * 120 + 1, f0.shape[2] * 60 + 1)[:, None], (units * 120 + 1)[:, None, None]
        coarse = mask_of(units * 20, f0.shape[2] * 10)[:, None], (units * 20)[:, None, None]
        with torch.autocast(text.device.type, enabled=False):
            wave = self.source(f0.squeeze(1).float(), noise, generator) * mask_of(units * UNIT, f0.shape[2] * 300)
            spec = torch.stft(wave, 20, 5, 20, self.window, return_complex=True)
            har = trim(torch.cat([spec.abs(), spec.angle()], 1), fine)
        f0, n = trim(self.F0_conv(f0), mask), trim(self.N_conv(n), mask)
        x = self.encode(torch.cat([text, f0, n], 1), s, mask, mask)
        res = trim(self.asr_res[0](text), mask)
        for block in self.decode:
            x = block(torch.cat([x, res, f0, n], 1), s, mask, wide if block.upsample else mask)
        for i, level in enumerate((coarse, fine)):
            x = g["ups"][i](F.leaky_relu(x, 0.1))
            x = torch.cat([x[..., 1:2], x], 2) if i else x
            x = trim(x + g["noise_res"][i](trim(g["noise_convs"][i](har), level), s, level), level)
            x = sum(block(x, s, level) for block in g["resblocks"][3 * i : 3 * i + 3]) / 3
        x = g["conv_post"](F.leaky_relu(x, 0.01)).float()
        with torch.autocast(text.device.type, enabled=False):
            spec = torch.polar(torch.exp(x[:, :11]) * fine[0], torch.sin(x[:, 11:]))
            return torch.istft(spec, 20, 5, 20, self.window)


class Kokoro(nn.Module):
    """The whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.bert, self.bert_encoder = Albert(), nn.Linear(768, 512)
        self.text_encoder, self.predictor, self.decoder = TextEncoder(), Predictor(), Decoder()

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Kokoro:
        """From a safetensors file, plain or .xz: float weights, or 8-bit ones with `.scale` and `.zero` beside them."""
        packed = path.read_bytes()
        state = safetensors.torch.load(lzma.decompress(packed) if path.suffix == ".xz" else packed)
        for name in [n for n in state if n + ".scale" in state]:
            state[name] = (state[name].float() - state.pop(name + ".zero").float()) * state.pop(name + ".scale")
        with torch.device("meta"):
            model = cls()
        model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
        model.decoder.window = torch.hann_window(20)
        model = model.eval().requires_grad_(False).to(device)
        for layer in model.modules():
            if isinstance(layer, nn.LSTM):
                layer.flatten_parameters()
        return model

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        styles: Sequence[Any],
        speeds: Sequence[float] | None = None,
        noise: float = 1.0,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Phoneme ids, style vectors [256] and speeds of B sentences to their waveforms at 24 kHz, and the durations of
        their phonemes in units of 600 samples, with the pause before and the one after: two more than ids.

        noise: scales the noise of the source; 1 is what the model was trained with. dtype: of the decoder's autocast;
        None runs it in float32.
        """
        device = self.bert_encoder.weight.device
        lengths = torch.tensor([len(t) + 2 for t in tokens])
        ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.long)
        for row, t in zip(ids, tokens, strict=True):
            row[1 : len(t) + 1] = torch.as_tensor(t)
        ids, style = ids.to(device), torch.stack([torch.as_tensor(s) for s in styles]).float().to(device)
        speed = torch.ones(len(tokens)) if speeds is None else torch.as_tensor(speeds, dtype=torch.float32)
        mask = mask_of(lengths.to(device), ids.shape[1])
        timbre, prosody = style.chunk(2, 1)
        x = self.bert_encoder(self.bert(ids, mask))
        x, units = self.predictor.durations(x, prosody, lengths, mask, speed.to(device))
        ends = units.cumsum(1)
        total = ends[:, -1].contiguous()
        totals = total.cpu()
        size = int(totals.max())
        index = torch.searchsorted(
            ends, torch.arange(size, device=device).expand(len(ends), -1).contiguous(), right=True
        )
        index = index.clamp(max=ids.shape[1] - 1)[:, :, None]
        narrow = mask_of(total, size)[:, None], total[:, None, None]
        wide = mask_of(total * 2, size * 2)[:, None], (total * 2)[:, None, None]

        def stretch(y: Tensor) -> Tensor:
            return y.gather(1, index.expand(-1, -1, y.shape[2])) * narrow[0].mT

        f0, n = self.predictor.curves(stretch(x), prosody, totals, narrow, wide)
        text = stretch(self.text_encoder(ids, lengths, mask)).mT
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            wave = self.decoder(text, f0, n, timbre, total, narrow, wide, noise, generator)
        return [w[: int(t) * UNIT] for w, t in zip(wave, totals, strict=True)], [
            u[:n] for u, n in zip(units.cpu(), lengths, strict=True)
        ]
