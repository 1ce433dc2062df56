"""The codec as others use it: waveform -> codes -> waveform, and codes -> voice embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codec.config import CodecConfig
from codec.decoder import Decoder
from codec.encoder import Encoder
from codec.inverse import start_as_inverse
from codec.quantizer import Quantizer
from codec.voices import dtype_name, embed_codes

LOUDEST = 100.0  # a sample may be a little above 1; in the range of int16, speech reaches thousands
ENCODED_AT_ONCE = 750  # frames (a minute): attention's memory grows with the square of the length
SERVER_CHUNK = 375  # frames (30 s): the server decodes longer sequences in independent pieces of this length


class Codec(nn.Module):
    """The Voxtral codec. The dtype of its parameters decides the arithmetic. In bfloat16 the results are bit-identical
    to the server's, for clips of up to a minute: one clip at a time, the encoder under bf16 autocast, distances and
    rounding in bf16. In float32 it computes a whole batch at once, in float32. Longer clips are encoded in pieces, in
    constant memory. `encoder` is None if the release has no encoder.
    """

    embedding_table: Tensor

    def __init__(self, config: CodecConfig, has_encoder: bool = True):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config) if has_encoder else None
        self.decoder = Decoder(config)
        self.quantizer = Quantizer(config)
        self.register_buffer("embedding_table", torch.zeros(config.embedding_rows, config.embedding_dim))

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.config.frame_rate

    @property
    def frame_size(self) -> int:
        """Samples a frame."""
        return self.config.frame_size

    @property
    def num_codebooks(self) -> int:
        return self.config.num_codebooks

    @property
    def has_encoder(self) -> bool:
        return self.encoder is not None

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.output_proj.conv.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.output_proj.conv.weight.device

    def with_new_encoder(self, start: str = "mirror") -> Codec:
        """Gives this codec an untrained encoder. It starts as the decoder's "inverse", as far as that is a formula; or
        its transformers "mirror" the decoder's; or all of it is "random". Returns the codec."""
        self.encoder = Encoder(self.config).to(self.device, self.dtype).eval()
        if start == "inverse":
            start_as_inverse(self.encoder, self.decoder)
        elif start == "mirror":
            self.encoder.mirror(self.decoder)
        return self

    @torch.no_grad()
    def latent(self, waveform: Tensor) -> Tensor:
        """What is quantized: [B, 1, T] in [-1, 1] -> [B, semantic + acoustic, F]. Raises ValueError without encoder and
        for a waveform of another shape, of integers, or with values that no waveform in [-1, 1] has."""
        _check_waveform(waveform)
        return self._latent(waveform)

    def _latent(self, waveform: Tensor) -> Tensor:
        """The latent in pieces, each computed with the frames before it that it depends on."""
        if self.encoder is None:
            raise ValueError("this release has no encoder: inject one with inject_encoder.py")
        pieces = []
        with torch.autocast(waveform.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            for begin in range(0, self.config.frames(waveform.shape[-1]), ENCODED_AT_ONCE):
                first = max(0, begin - self.encoder.context)
                samples = slice(first * self.frame_size, (begin + ENCODED_AT_ONCE) * self.frame_size)
                pieces.append(self.encoder(waveform[..., samples].to(self.dtype))[..., begin - first :])
        return torch.cat(pieces, dim=-1)

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 1, T] in [-1, 1] at 24 kHz to codes [B, 37, ceil(T / 1920)], int64. Raises ValueError as
        `latent` does."""
        _check_waveform(waveform)
        clips = waveform.split(1) if self.dtype == torch.bfloat16 else (waveform,)
        return torch.cat([self.quantizer.encode(self._latent(clip)) for clip in clips])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, 37, F] to the waveform [B, 1, F * 1920], float32. Raises ValueError for codes out of range."""
        self._check(codes)
        clips = codes.split(1) if self.dtype == torch.bfloat16 else (codes,)
        return torch.cat([torch.cat([self._decode(c) for c in clip.split(SERVER_CHUNK, -1)], -1) for clip in clips])

    def _decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes)).float()

    @torch.no_grad()
    def embed(self, codes: Tensor) -> Tensor:
        """Codes [B, 37, F] to a voice embedding [B, F + 1, dim]: what stands in the prompt for a reference voice, the
        end-of-audio row last."""
        self._check(codes)
        return embed_codes(codes, self.embedding_table, self.config.codebook_sizes)

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1] != self.num_codebooks:
            raise ValueError(f"codes have shape {list(codes.shape)}, expected [B, {self.num_codebooks}, F]")
        if codes.is_floating_point() or codes.is_complex():
            raise ValueError(f"codes are {dtype_name(codes)}, expected integers, such as int64")
        limits = (self.config.semantic_codebook_size, *[self.config.acoustic_codebook_size] * self.config.acoustic_dim)
        limit = torch.tensor(limits, device=codes.device)[:, None]
        if codes.numel() and bool(((codes < 0) | (codes >= limit)).any()):
            raise ValueError("codes out of range: give the quantizer's codes, without the offset of special tokens")


def _check_waveform(waveform: Tensor) -> None:
    if waveform.ndim != 3 or waveform.shape[1] != 1 or 0 in waveform.shape:
        raise ValueError(f"waveform has shape {list(waveform.shape)}, expected [B, 1, T] with B and T of 1 or more")
    if not waveform.is_floating_point():
        raise ValueError(f"waveform is {dtype_name(waveform)}, expected floats in [-1, 1]: divide int16 by 32768")
    largest = float(waveform.abs().max())
    if not largest <= LOUDEST:
        raise ValueError(f"waveform has the value {largest:g}, expected finite values in [-1, 1]: int16 is not scaled")
