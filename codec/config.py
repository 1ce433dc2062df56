"""What a release's `params.json` says of its codec, checked, with the server's defaults for what it leaves out."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from system.command import UserError
from system.untrusted import parse_json, read_file

SAMPLE_RATE = 24000  # Hz, of every Voxtral TTS release
FRAME_SIZE = 1920  # samples of one codec frame: 12.5 frames per second
SPECIAL_TOKENS = 2  # rows 0 (empty audio) and 1 (end of audio) stand before the codes of every codebook
TABLE_ROW_MULTIPLE = 128  # the audio embedding table's row count is rounded up to this

# Whoever writes params.json decides how much memory and time reading a release takes, so there are limits.
MAX_SIZE = 1 << 24  # of any whole number; the largest in the release is 131,072
MAX_STAGES, MAX_LAYERS, MAX_KERNEL = 32, 256, 64  # of one half of the codec; the release has 4, 8 and 4
MAX_CODEBOOKS = 1024  # the release has 37
MAX_FRAME = 1 << 20  # samples; the release has 1920
MAX_BYTES = 8 << 20  # of params.json; the release has 3 kB


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
            where = "dim" if field.name == "embedding_dim" else _ARGS + field.name
            check_value(where, getattr(self, field.name), str(field.type))
        if self.acoustic_dim > MAX_CODEBOOKS:
            raise _wrong("acoustic_dim", self.acoustic_dim, f"at most {MAX_CODEBOOKS}")
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
            if len(lengths) > MAX_STAGES or sum(lengths) > MAX_LAYERS:
                expected = f"at most {MAX_STAGES} stages of at most {MAX_LAYERS} layers together"
                raise _wrong(f"{side}_transformer_lengths_str", lengths, expected)
            if max(kernels) > MAX_KERNEL:
                raise _wrong(f"{side}_convs_kernels_str", kernels, f"kernels of at most {MAX_KERNEL}")
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
        if self.frame_size > MAX_FRAME:
            raise _wrong(
                "pretransform_patch_size", self.pretransform_patch_size, f"frames of at most {MAX_FRAME} samples"
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
        given = args | {"embedding_dim": params.get("dim", "missing")}
        config = cls(**given_values(given, {field.name: str(field.type) for field in fields(cls)}))
        expected: dict[str, Any] = {
            "semantic_codebook_size": config.semantic_codebook_size,
            "acoustic_codebook_size": config.acoustic_codebook_size,
            "n_acoustic_codebook": config.acoustic_dim,
        }
        for key, value in expected.items():
            if model_args.get(key) != value:
                where = f"multimodal.audio_model_args.{key}"
                raise wrong_value(where, model_args.get(key), f"{value}, as in audio_tokenizer_args")
        encoding_args = model_args.get("audio_encoding_args") or {}
        where = "multimodal.audio_model_args.audio_encoding_args"
        if not isinstance(encoding_args, dict):
            raise wrong_value(where, encoding_args, "an object")
        frame_rate = encoding_args.get("frame_rate", config.frame_rate)
        if frame_rate != config.frame_rate:
            where += ".frame_rate"
            raise wrong_value(where, frame_rate, f"{config.frame_rate} Hz, what the strides give")
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
    def decoder_context(self) -> int:
        """Frames before a frame that its sound depends on: 21 in the release. Counted back from the output: causal
        convolutions see kernel − 1 steps back, a transformer layer its window, and a transposed convolution turns n
        steps of its output into at most ⌊(n + kernel − 1) / stride⌋ of its input."""
        steps = self.patch_proj_kernel_size - 1
        for i, stage in reversed(list(enumerate(self.decoder_stages))):
            steps += stage.layers * stage.window
            if i == 0:
                steps += stage.kernel - 1
            elif stage.resamples:
                steps = (steps + stage.kernel - 1) // stage.stride
        return steps

    @property
    def codebook_sizes(self) -> list[int]:
        """Rows each codebook has in the embedding table, the special tokens included."""
        codes = [self.semantic_codebook_size] + [self.acoustic_codebook_size] * self.acoustic_dim
        return [size + SPECIAL_TOKENS for size in codes]

    @property
    def embedding_rows(self) -> int:
        return math.ceil(sum(self.codebook_sizes) / TABLE_ROW_MULTIPLE) * TABLE_ROW_MULTIPLE


_ARGS = "multimodal.audio_tokenizer_args."
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
        params = parse_json(read_file(path, MAX_BYTES))
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ReleaseError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(params, dict):
        raise ReleaseError(f"{path} holds a {type(params).__name__}, expected an object with the model's arguments")
    return params


def _section(params: dict[str, Any], *keys: str) -> dict[str, Any]:
    value: Any = params
    for depth, key in enumerate(keys, 1):
        value = value.get(key)
        if not isinstance(value, dict):
            raise wrong_value(".".join(keys[:depth]), value, "an object: this is not a Voxtral TTS release")
    return value


def given_values(args: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """What of `args` is in `kinds` (name -> "int", "float", "bool" or "str") and not null. A whole number that is
    written as 24000.0 becomes an int where an int is wanted."""
    given = {key: value for key, value in args.items() if key in kinds and value is not None}
    whole = {key for key, value in given.items() if isinstance(value, float) and value.is_integer()}
    return {key: int(value) if key in whole and kinds[key] == "int" else value for key, value in given.items()}


def check_value(where: str, value: Any, kind: str) -> None:
    """Raises ReleaseError if the value of the key `where` is not of a `kind` as in `given_values`. Numbers must be
    positive, finite, and at most MAX_SIZE if they are whole."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "bool" and not isinstance(value, bool):
        raise wrong_value(where, value, "true or false")
    if kind == "str" and not isinstance(value, str):
        raise wrong_value(where, value, 'a string such as "2,2,2,2"')
    if kind == "int" and not (isinstance(value, int) and number and 0 < value <= MAX_SIZE):
        raise wrong_value(where, value, f"a positive whole number of at most {MAX_SIZE}")
    if kind == "float" and not (number and 0 < value < sys.float_info.max):
        raise wrong_value(where, value, "a positive number")


def wrong_value(where: str, value: Any, expected: str) -> ReleaseError:
    """The error for a value of params.json."""
    text = json.dumps(value, default=str)
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    return ReleaseError(f"params.json: {where} is {shown}, expected {expected}")


def _wrong(name: str, value: Any, expected: str) -> ReleaseError:
    return wrong_value(_ARGS + name, value, expected)
