"""What a release's `params.json` says of its codec, checked, with the server's defaults for what it leaves out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from system.command import UserError

SAMPLE_RATE = 24000  # Hz, of every Voxtral TTS release
FRAME_SIZE = 1920  # samples of one codec frame: 12.5 frames per second
SPECIAL_TOKENS = 2  # rows 0 (empty audio) and 1 (end of audio) stand before the codes of every codebook
TABLE_ROW_MULTIPLE = 128  # the audio embedding table's row count is rounded up to this


class ReleaseError(UserError):
    """A release, or a file meant for one, is not what it has to be. The message says what, where and what to do."""


@dataclass(frozen=True)
class Stage:
    """A transformer of `layers` layers with attention window `window`, and the convolution beside it, if any."""

    layers: int
    window: int
    kernel: int
    stride: int

    @property
    def resamples(self) -> bool:
        """The server leaves out a convolution of kernel 1 and stride 1 that changes nothing but values."""
        return self.kernel != 1 or self.stride != 1


@dataclass(frozen=True)
class CodecConfig:
    """The codec's dimensions. Fields are the keys of `multimodal.audio_tokenizer_args` in `params.json`, with the
    values the server takes for a missing key (vllm-omni 0.30.0, `AudioTokenizerArgs`), and `embedding_dim`, the
    width of the language model (`dim` at the top level)."""

    channels: int = 1
    sampling_rate: int = SAMPLE_RATE  # Hz
    pretransform_patch_size: int = 240  # samples
    patch_proj_kernel_size: int = 7
    semantic_codebook_size: int = 8192
    semantic_dim: int = 256
    acoustic_codebook_size: int = 21
    acoustic_dim: int = 36
    conv_weight_norm: bool = True
    causal: bool = True
    attn_sliding_window_size: int = 16
    half_attn_window_upon_downsampling: bool = True
    dim: int = 1024
    hidden_dim: int = 4096
    head_dim: int = 128
    n_heads: int = 8
    n_kv_heads: int = 8
    qk_norm_eps: float = 1e-6
    qk_norm: bool = True
    use_biases: bool = False
    norm_eps: float = 1e-2
    layer_scale: bool = True
    layer_scale_init: float = 0.1
    encoder_transformer_lengths_str: str = "2,2,2,2"
    encoder_convs_kernels_str: str = "4,4,4,3"
    encoder_convs_strides_str: str = "2,2,2,1"
    decoder_transformer_lengths_str: str = "2,2,2,2"
    decoder_convs_kernels_str: str = "3,4,4,4"
    decoder_convs_strides_str: str = "1,2,2,2"
    embedding_dim: int = 3072

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name))
        for name, required in _FIXED.items():
            if getattr(self, name) != required:
                raise _wrong(
                    name, getattr(self, name), f"{json.dumps(required)}, the only value this codec is built for"
                )
        if self.n_kv_heads != self.n_heads:
            raise _wrong("n_kv_heads", self.n_kv_heads, f"{self.n_heads}, the value of n_heads")
        if self.n_heads & (self.n_heads - 1):
            raise _wrong("n_heads", self.n_heads, "a power of two")
        if self.acoustic_codebook_size < 2:
            raise _wrong("acoustic_codebook_size", self.acoustic_codebook_size, "at least 2 levels")
        for side in ("encoder", "decoder"):
            lengths, kernels, strides = (self._numbers(f"{side}_{part}_str") for part in _STAGE_KEYS)
            if not len(lengths) == len(kernels) == len(strides):
                raise _wrong(
                    f"{side}_convs_strides_str", strides, f"{len(lengths)} numbers, as many as the other lists"
                )
            for kernel, stride in zip(kernels, strides, strict=True):
                if stride > kernel:
                    raise _wrong(f"{side}_convs_strides_str", strides, f"no stride above its kernel in {kernels}")
                if self.half_attn_window_upon_downsampling and stride > 2:
                    raise _wrong(f"{side}_convs_strides_str", strides, "strides of 1 or 2 where the window is halved")
        up, down = (math.prod(self._numbers(f"{side}_convs_strides_str")) for side in ("decoder", "encoder"))
        if up != down:
            raise _wrong(
                "decoder_convs_strides_str", self.decoder_convs_strides_str, f"strides whose product is {down}"
            )
        if self._numbers("decoder_convs_strides_str")[0] != 1:
            raise _wrong("decoder_convs_strides_str", self.decoder_convs_strides_str, "a first stride of 1")
        if min(stage.window for stage in self.encoder_stages) < 2:
            raise _wrong("attn_sliding_window_size", self.attn_sliding_window_size, "a window that stays at 2 or more")

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> CodecConfig:
        """Reads the parsed `params.json`. Raises ReleaseError with key, value and expectation."""
        args = _section(params, "multimodal", "audio_tokenizer_args")
        model_args = _section(params, "multimodal", "audio_model_args")
        known = {field.name for field in fields(cls)} - {"embedding_dim"}
        values = {key: value for key, value in args.items() if key in known and value is not None}
        config = cls(**values, embedding_dim=params.get("dim", "missing"))
        expected: dict[str, Any] = {
            "semantic_codebook_size": config.semantic_codebook_size,
            "acoustic_codebook_size": config.acoustic_codebook_size,
            "n_acoustic_codebook": config.acoustic_dim,
        }
        for key, value in expected.items():
            if model_args.get(key) != value:
                where = f"multimodal.audio_model_args.{key}"
                raise _wrong(where, model_args.get(key), f"{value}, as in audio_tokenizer_args", prefix="")
        frame_rate = (model_args.get("audio_encoding_args") or {}).get("frame_rate", config.frame_rate)
        if frame_rate != config.frame_rate:
            where = "multimodal.audio_model_args.audio_encoding_args.frame_rate"
            raise _wrong(where, frame_rate, f"{config.frame_rate} Hz, what the strides give", prefix="")
        return config

    def to_args(self) -> dict[str, Any]:
        """The same, as `multimodal.audio_tokenizer_args` holds it. Encoder keys are left out, as in the release."""
        return {k: v for k, v in asdict(self).items() if k != "embedding_dim" and not k.startswith("encoder_")}

    def _numbers(self, name: str) -> tuple[int, ...]:
        text = getattr(self, name)
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise _wrong(name, text, "whole numbers separated by commas") from None
        if min(numbers) < 1:
            raise _wrong(name, text, "numbers of 1 or more")
        return numbers

    def _stages(self, side: str) -> list[tuple[int, int, int]]:
        return list(zip(*(self._numbers(f"{side}_{part}_str") for part in _STAGE_KEYS), strict=True))

    @property
    def encoder_stages(self) -> list[Stage]:
        """Each a transformer and the convolution after it; the window halves with every stride of 2."""
        stages, window = [], self.attn_sliding_window_size
        for layers, kernel, stride in self._stages("encoder"):
            stages.append(Stage(layers, window, kernel, stride))
            if stride > 1 and self.half_attn_window_upon_downsampling:
                window //= stride
        return stages

    @property
    def decoder_stages(self) -> list[Stage]:
        """Each a convolution and the transformer after it; the first window is the one the encoder ends with."""
        last = self.encoder_stages[-1]
        window = last.window // (last.stride if self.half_attn_window_upon_downsampling else 1)
        stages = []
        for layers, kernel, stride in self._stages("decoder"):
            if stride > 1 and self.half_attn_window_upon_downsampling:
                window *= stride
            stages.append(Stage(layers, window, kernel, stride))
        return stages

    @property
    def latent_dim(self) -> int:
        return self.semantic_dim + self.acoustic_dim

    @property
    def num_codebooks(self) -> int:
        return 1 + self.acoustic_dim

    @property
    def frame_size(self) -> int:
        """Samples a frame: 1920 in the release."""
        return self.pretransform_patch_size * math.prod(self._numbers("encoder_convs_strides_str"))

    @property
    def frame_rate(self) -> float:
        """Frames a second: 12.5 Hz in the release."""
        return self.sampling_rate / self.frame_size

    def frames(self, samples: int) -> int:
        """Frames the encoder makes of so many samples."""
        return math.ceil(samples / self.frame_size)

    @property
    def codebook_sizes(self) -> list[int]:
        """Rows each codebook has in the embedding table, the special tokens included."""
        codes = [self.semantic_codebook_size] + [self.acoustic_codebook_size] * self.acoustic_dim
        return [size + SPECIAL_TOKENS for size in codes]

    @property
    def embedding_rows(self) -> int:
        return math.ceil(sum(self.codebook_sizes) / TABLE_ROW_MULTIPLE) * TABLE_ROW_MULTIPLE


_STAGE_KEYS = ("transformer_lengths", "convs_kernels", "convs_strides")
_FIXED = {"channels": 1, "causal": True, "qk_norm": True, "use_biases": False, "layer_scale": True}


def read_params(folder: Path) -> dict[str, Any]:
    """The parsed `params.json` of a release. Raises ReleaseError where there is none or it is no JSON object."""
    path = folder / "params.json"
    if not folder.is_dir():
        raise ReleaseError(f"{folder} is not a folder: give the release's folder (MODEL_DIR)")
    if not path.is_file():
        raise ReleaseError(f"{folder} holds no params.json: it is not the folder of a Voxtral TTS release")
    return read_params_file(path)


def read_params_file(path: Path) -> dict[str, Any]:
    """A parsed `params.json`, wherever it lies. Raises ReleaseError where it is not there or no JSON object."""
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(params, dict):
        raise ReleaseError(f"{path} holds a {type(params).__name__}, expected an object with the model's arguments")
    return params


def _section(params: dict[str, Any], *keys: str) -> dict[str, Any]:
    value: Any = params
    for depth, key in enumerate(keys, 1):
        value = value.get(key)
        if not isinstance(value, dict):
            raise _wrong(".".join(keys[:depth]), value, "an object: this is not a Voxtral TTS release", prefix="")
    return value


def _check_type(name: str, value: Any) -> None:
    kind = get_type_hints(CodecConfig)[name]
    if kind is bool and not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    if kind is str and not isinstance(value, str):
        raise _wrong(name, value, 'a string such as "2,2,2,2"')
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and not (number and value == int(value) and value > 0):
        raise _wrong(name, value, "a positive whole number")
    if kind is float and not (number and math.isfinite(value) and value > 0):
        raise _wrong(name, value, "a positive number")


def _wrong(name: str, value: Any, expected: str, prefix: str = "multimodal.audio_tokenizer_args.") -> ReleaseError:
    where = "dim" if name == "embedding_dim" else prefix + name
    return ReleaseError(f"params.json: {where} is {value!r}, expected {expected}")
