"""What a release's `params.json` says of its language model and acoustic transformer, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any

from codec.config import (
    MAX_CODEBOOKS,
    MAX_LAYERS,
    SPECIAL_TOKENS,
    TABLE_ROW_MULTIPLE,
    check_value,
    given_values,
    wrong_value,
)

_MODEL_ARGS = "multimodal.audio_model_args."
_ACOUSTIC_ARGS = _MODEL_ARGS + "acoustic_transformer_args."
_MAX_STEPS = 1000  # Euler steps a frame; the release takes 7
# with any of these vLLM would compute something that is not built here
_UNSUPPORTED = ("moe", "quantization", "sliding_window", "yarn")


@dataclass(frozen=True)
class AcousticConfig:
    """Dimensions of the acoustic transformer. Fields are the keys of `acoustic_transformer_args` that the server reads,
    with its values for a missing key (vllm-omni 0.30.0, `AcousticTransformerArgs`)."""

    input_dim: int
    dim: int = 768
    n_layers: int = 3
    head_dim: int = 128
    hidden_dim: int = 2048
    n_heads: int = 6
    n_kv_heads: int = 2
    use_biases: bool = False
    norm_eps: float = 1e-5
    sigma: float = 1e-5  # noise that is left at t = 1; only training uses it
    n_decoding_steps: int = 7  # Euler steps

    def __post_init__(self) -> None:
        _check(self, _ACOUSTIC_ARGS)
        _check_heads(self.n_heads, self.n_kv_heads, _ACOUSTIC_ARGS)
        if self.use_biases:
            raise wrong_value(_ACOUSTIC_ARGS + "use_biases", True, "false, the only value this model is built for")
        if self.dim % 2:
            raise wrong_value(_ACOUSTIC_ARGS + "dim", self.dim, "an even number, half of it cosines of the time")
        _check_layers(self.n_layers, _ACOUSTIC_ARGS)
        if self.n_decoding_steps > _MAX_STEPS:
            raise wrong_value(_ACOUSTIC_ARGS + "n_decoding_steps", self.n_decoding_steps, f"at most {_MAX_STEPS}")


@dataclass(frozen=True)
class LanguageModelConfig:
    """Dimensions of the language model, its codes and its special tokens. Fields are keys of `params.json`: the first
    ten at its top level, the others in `multimodal`."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    norm_eps: float
    vocab_size: int
    acoustic: AcousticConfig
    rope_theta: float = 10000.0
    max_position_embeddings: int = 128000

    semantic_codebook_size: int = 8192
    acoustic_codebook_size: int = 21
    n_acoustic_codebook: int = 36

    bos_token_id: int = 1
    audio_token_id: int = 24
    begin_audio_token_id: int = 25
    # by name in tekken.json, `[REPEAT_AUDIO_TEXT]` and `[NEXT_AUDIO_TEXT]`; params.json does not have them
    repeat_audio_text_token_id: int = field(default=35, metadata={"in_params": False})
    next_audio_text_token_id: int = field(default=36, metadata={"in_params": False})

    def __post_init__(self) -> None:
        for name in _CODES_AND_TOKENS:
            check_value(_MODEL_ARGS + name, getattr(self, name), "int")
        _check(self, "")
        _check_heads(self.n_heads, self.n_kv_heads, "")
        _check_layers(self.n_layers, "")
        if self.n_acoustic_codebook > MAX_CODEBOOKS:
            raise wrong_value(_MODEL_ARGS + "n_acoustic_codebook", self.n_acoustic_codebook, f"at most {MAX_CODEBOOKS}")
        if self.head_dim % 2:
            raise wrong_value("head_dim", self.head_dim, "an even number: rotary positions turn pairs")
        if self.acoustic_codebook_size < 2:
            raise wrong_value(_MODEL_ARGS + "acoustic_codebook_size", self.acoustic_codebook_size, "at least 2 levels")
        # the server applies the semantic head, declared with `dim` inputs, to the language model's hidden state
        for name in ("input_dim", "dim"):
            if getattr(self.acoustic, name) != self.dim:
                raise wrong_value(_ACOUSTIC_ARGS + name, getattr(self.acoustic, name), f"{self.dim}, the top-level dim")
        special = max(getattr(self, f.name) for f in fields(self) if f.name.endswith("_token_id"))
        if self.vocab_size <= special:
            raise wrong_value("vocab_size", self.vocab_size, f"more than {special}, the largest special token's id")

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> LanguageModelConfig:
        """Reads the parsed `params.json`. Raises ReleaseError with key, value and expectation."""
        for key in _UNSUPPORTED:
            if params.get(key):
                raise wrong_value(key, params[key], "none: this model is not built for it")
        multimodal = _object(params.get("multimodal"), "multimodal")
        model_args = _object(multimodal.get("audio_model_args"), _MODEL_ARGS[:-1])
        acoustic_args = _object(model_args.get("acoustic_transformer_args"), _ACOUSTIC_ARGS[:-1])
        if acoustic_args.get("input_dim") is None:
            raise wrong_value(_ACOUSTIC_ARGS + "input_dim", None, "the top-level dim")
        values: dict[str, Any] = {"acoustic": AcousticConfig(**_given(AcousticConfig, acoustic_args))}
        for key in ("semantic_codebook_size", "acoustic_codebook_size", "n_acoustic_codebook"):
            if model_args.get(key) is None:
                raise wrong_value(_MODEL_ARGS + key, None, "a positive whole number")
        values |= {key: value for key, value in _given(cls, model_args).items() if key in _CODES_AND_TOKENS}
        values |= {key: value for key, value in _given(cls, multimodal).items() if key == "bos_token_id"}
        values |= {key: value for key, value in _given(cls, params).items() if key not in _CODES_AND_TOKENS}
        for name, attribute in cls.__dataclass_fields__.items():
            if name not in values and name not in _DEFAULTS:
                raise wrong_value(name, None, f"a positive {'number' if attribute.type == 'float' else 'whole number'}")
        return cls(**values)

    @property
    def num_codebooks(self) -> int:
        return 1 + self.n_acoustic_codebook

    @property
    def codebook_sizes(self) -> list[int]:
        """Rows each codebook has in the audio embedding table, the special tokens included."""
        codes = [self.semantic_codebook_size] + [self.acoustic_codebook_size] * self.n_acoustic_codebook
        return [size + SPECIAL_TOKENS for size in codes]

    @property
    def first_rows(self) -> list[int]:
        """Where each codebook's rows start in the audio embedding table."""
        return list(accumulate([0, *self.codebook_sizes[:-1]]))

    @property
    def audio_rows(self) -> int:
        """Rows of the audio embedding table: 9088 in the release, of which 9022 are used."""
        return _padded(sum(self.codebook_sizes))

    @property
    def semantic_classes(self) -> int:
        """Classes of the semantic head that are used: 8194 in the release, the two special tokens included."""
        return self.semantic_codebook_size + SPECIAL_TOKENS

    @property
    def semantic_rows(self) -> int:
        """Rows of the semantic head: 8320 in the release."""
        return _padded(self.semantic_classes)


_CODES_AND_TOKENS = (
    "semantic_codebook_size",
    "acoustic_codebook_size",
    "n_acoustic_codebook",
    "bos_token_id",
    "audio_token_id",
    "begin_audio_token_id",
)
_DEFAULTS = {
    *_CODES_AND_TOKENS,
    "rope_theta",
    "max_position_embeddings",
    "repeat_audio_text_token_id",
    "next_audio_text_token_id",
}


def _padded(rows: int) -> int:
    return math.ceil(rows / TABLE_ROW_MULTIPLE) * TABLE_ROW_MULTIPLE


def _given(kind: type, args: dict[str, Any]) -> dict[str, Any]:
    """What of `args` are fields of the dataclass `kind` and not null."""
    kinds = {f.name: str(f.type) for f in fields(kind) if f.metadata.get("in_params", True)}
    return given_values(args, {name: its for name, its in kinds.items() if name != "acoustic"})


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_value(where, value, "an object: this is not a Voxtral TTS release")
    return value


def _check(config: AcousticConfig | LanguageModelConfig, prefix: str) -> None:
    for attribute in fields(config):
        if attribute.name not in _CODES_AND_TOKENS:
            check_value(prefix + attribute.name, getattr(config, attribute.name), str(attribute.type))


def _check_layers(layers: int, prefix: str) -> None:
    if layers > MAX_LAYERS:
        raise wrong_value(prefix + "n_layers", layers, f"at most {MAX_LAYERS}")


def _check_heads(heads: int, kv_heads: int, prefix: str) -> None:
    if heads % kv_heads:
        raise wrong_value(prefix + "n_kv_heads", kv_heads, f"a divisor of n_heads, {heads}")
