"""The checkpoint's tensors by name and shape, as `params.json` gives them, and the hash that tells two codecs apart.

The modules of `codec/` carry the same names; the tests hold the two against each other. They are written down here as
well so that what only moves a release's bytes starts without torch, which takes longer than a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from codec.config import CodecConfig

CODEC_PREFIX = "audio_tokenizer."
ENCODER_PREFIXES = (CODEC_PREFIX + "input_proj.", CODEC_PREFIX + "encoder_blocks.")
QUANTIZER_PREFIX = CODEC_PREFIX + "quantizer."
LAST_PROJECTION = CODEC_PREFIX + "output_proj."
FINGERPRINTED = (QUANTIZER_PREFIX, LAST_PROJECTION)
EMBEDDING_NAME = "mm_audio_embeddings.audio_codebook_embeddings.embeddings.weight"

Shapes = dict[str, tuple[int, ...]]


def expected_encoder(config: CodecConfig) -> Shapes:
    """Checkpoint name -> shape of the encoder's tensors: 114 of them at the release's dimensions."""
    patch, kernel = config.pretransform_patch_size, config.patch_proj_kernel_size
    shapes = _conv("input_proj.", (config.dim, patch, kernel), config.conv_weight_norm)
    block, stages = 0, config.encoder_stages
    for i, stage in enumerate(stages):
        shapes |= _transformer(f"encoder_blocks.{block}.", config, stage.layers)
        block += 1
        last = i == len(stages) - 1
        if stage.resamples or last:
            out = config.latent_dim if last else config.dim
            shapes |= _conv(f"encoder_blocks.{block}.", (out, config.dim, stage.kernel))
            block += 1
    return {CODEC_PREFIX + name: shape for name, shape in shapes.items()}


def expected_codec(config: CodecConfig) -> Shapes:
    """Checkpoint name -> shape of what a release without encoder holds of the codec."""
    shapes: Shapes = {}
    block = 0
    for i, stage in enumerate(config.decoder_stages):
        if i == 0 or stage.resamples:
            channels = config.dim if i else config.latent_dim  # a transposed convolution has its input first, too
            shapes |= _conv(f"decoder_blocks.{block}.", (config.dim, channels, stage.kernel))
            block += 1
        shapes |= _transformer(f"decoder_blocks.{block}.", config, stage.layers)
        block += 1
    patch, kernel = config.pretransform_patch_size, config.patch_proj_kernel_size
    shapes |= _conv("output_proj.", (patch, config.dim, kernel), config.conv_weight_norm)
    shapes["quantizer.semantic_codebook.cluster_usage"] = (config.semantic_codebook_size,)
    shapes["quantizer.semantic_codebook.embedding_sum"] = (config.semantic_codebook_size, config.semantic_dim)
    table = {EMBEDDING_NAME: (config.embedding_rows, config.embedding_dim)}
    return {CODEC_PREFIX + name: shape for name, shape in shapes.items()} | table


def _conv(prefix: str, shape: tuple[int, int, int], normed: bool = True) -> Shapes:
    """A convolution's weight, or with weight norm its gain and direction."""
    if not normed:
        return {prefix + "conv.weight": shape}
    parts = prefix + "conv.parametrizations.weight.original"
    return {parts + "0": (shape[0], 1, 1), parts + "1": shape}


def _transformer(prefix: str, config: CodecConfig, layers: int) -> Shapes:
    dim, hidden, width = config.dim, config.hidden_dim, config.n_heads * config.head_dim
    layer: Shapes = {
        "attention_scale": (dim,),
        "ffn_scale": (dim,),
        "attention.wq.weight": (width, dim),
        "attention.wk.weight": (width, dim),
        "attention.wv.weight": (width, dim),
        "attention.wo.weight": (dim, width),
        "attention.q_norm.weight": (width,),
        "attention.k_norm.weight": (width,),
        "feed_forward.w1.weight": (hidden, dim),
        "feed_forward.w2.weight": (dim, hidden),
        "feed_forward.w3.weight": (hidden, dim),
        "attention_norm.weight": (dim,),
        "ffn_norm.weight": (dim,),
    }
    return {f"{prefix}layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def fingerprint(contents: Mapping[str, Iterable[bytes | memoryview]]) -> str:
    """A short hash of what an encoder is trained against: the quantizer and the decoder's last projection, given by
    checkpoint name as the bytes of their bf16 values, in pieces. Tells two codecs of the same dimensions apart."""
    digest = hashlib.sha256()
    for name in sorted(contents):
        if name.startswith(FINGERPRINTED):
            digest.update(name.encode())
            for piece in contents[name]:
                digest.update(piece)
    return digest.hexdigest()[:16]
