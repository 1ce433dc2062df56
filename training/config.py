"""A run's settings with their defaults: a YAML file, then the environment, then `key=value` arguments. The later wins.

An unknown key, a wrong type or a value out of range is a ConfigError that names the key, the value and what was
expected. The value of a text setting is what the user typed: `output_dir=/runs/run #1` and `output_dir=2026` are paths.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from data.sources import Source
from system.environment import from_environment
from training.setting_values import ConfigError, InputPath, OutputPath, convert, exists, shown
from training.settings_file import parse_yaml, read_settings

# settings of earlier versions, and what they are called now
RENAMED = {
    "recompute": "activation_checkpointing",
    "losses.fading": "losses.l1_stft_decay",
    "discriminator.from_step": "discriminator.start_step",
    "optimizer.average_decay": "optimizer.ema_decay",
}
REMOVED = {"compile": "what is faster compiled is compiled without it"}
WHISPER_SECONDS = 30  # of sound that Whisper takes at a time


@dataclass(frozen=True)
class Data:
    train: tuple[Source, ...] = ()  # paths and hub names, or sections of a path and more: data/sources.py
    validation: tuple[Source, ...] = ()  # the same; take speakers that are not in train
    pairs: tuple[InputPath, ...] = ()  # shards of speak_pairs.py or folders of them, for losses.inversion
    pairs_share: float = 0.5  # share of the batch that is the decoder's sound of pairs
    sampling: str = "clips"  # draw all "clips" equally often, or all "speakers", however little speech each has
    crop_seconds: float = 4.0  # length of a training crop; shorter clips are skipped and counted
    resample: bool = False  # true resamples clips of other sample rates; false skips and counts them
    band_limited: str = "keep"  # "keep" or "drop" clips with nothing above 8 kHz; both counts and names them
    workers: int = 4  # processes that read and decode; 0 decodes in the training process
    validation_clips: int = 32  # spread evenly over the validation clips that are long enough
    validation_seconds: float = 4.0  # the beginning of each validation clip, of this length

    def __post_init__(self) -> None:
        _at_least("data.crop_seconds", self.crop_seconds, 0.1)
        _at_least("data.validation_seconds", self.validation_seconds, 0.1)
        for name in ("crop_seconds", "validation_seconds"):
            _at_most(f"data.{name}", getattr(self, name), 3600)
        _at_least("data.workers", self.workers, 0)
        _at_most("data.workers", self.workers, 1000)
        _one_of("data.band_limited", self.band_limited, ("keep", "drop"))
        _at_least("data.validation_clips", self.validation_clips, 1)
        _one_of("data.sampling", self.sampling, ("clips", "speakers"))
        if not 0 < self.pairs_share < 1:
            raise ConfigError(f"data.pairs_share is {self.pairs_share}, expected more than 0 and less than 1")
        weights = [source.weight for source in self.train]
        if min(weights, default=0) < 0 or (any(weights) and not all(weights)):
            raise ConfigError(
                f"the weights of data.train are {weights}, expected none, or a positive one for each source"
            )


@dataclass(frozen=True)
class Losses:
    """The weight of each loss is its share of the gradient, relative to the others; 0 switches the loss off."""

    mel: float = 4.0
    l1: float = 0.5
    stft: float = 1.0
    feature_matching: float = 0.0  # trains the discriminator too, which is most of a step's cost
    speaker: float = 0.0  # keeps the voice, by a frozen speaker network
    commitment: float = 0.1
    asr: float = 0.0  # keeps the words, by a frozen Whisper
    diversity: float = 0.0  # against a codebook that collapses
    shaping: float = 0.0  # toward the code statistics of the release's own voices
    inversion: float = 0.0  # finds again the codes that the release's language model spoke: data.pairs
    second_pass: float = 0.0  # draws the codes of speech to those that the encoder finds in their reconstruction
    pseudo_labels: float = 0.0  # labels speech with semantic codes, by a network that learns them from pairs
    diversity_temperature: float = 0.1  # in units of the codebook's own spacing
    inversion_temperature: float = 0.5  # in the same units
    l1_stft_decay: float = 1.0  # factor a step on the weights of l1 and stft; the paper's gamma is 0.9999
    mel_offset: float = 0.01  # added to the magnitudes in the mel loss; without it silence owns its gradient
    balanced: bool = True  # false uses the numbers above as fixed weights, for comparison
    balancer_decay: float = 0.999  # of the averaged gradient norms; short runs need 0.99 to forget their start
    speaker_model: InputPath = "speechbrain/spkrec-ecapa-voxceleb"  # a hub name, or a folder with its two files
    asr_teacher: InputPath = "base"  # a Whisper by name, downloaded once, or a .pt file in openai-whisper's format
    asr_language: str = "en"  # of clips whose source names none
    asr_every: int = 1  # the teacher runs in every n-th step; its weight is the same share there
    asr_context_seconds: float = 30.0  # the window that the teacher's clips are padded to: shorter is faster and worse
    asr_cache: OutputPath = ""  # a folder for the teacher's transcripts, for runs that share data and seed

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float):
                _at_least(f"losses.{name}", value, 0)
        _below_one("losses.balancer_decay", self.balancer_decay)
        _at_least("losses.asr_every", self.asr_every, 1)
        for name in ("diversity_temperature", "inversion_temperature"):
            _above(f"losses.{name}", getattr(self, name), 0)
        if not (self.mel or self.l1 or self.stft or self.feature_matching or self.speaker):
            raise ConfigError("losses: all on the reconstruction are 0, expected one of them above 0")
        for name in ("speaker_model", "asr_teacher", "asr_language"):
            _not_empty(
                f"losses.{name}", getattr(self, name), "a name, or a path" if name != "asr_language" else "a code"
            )
        if not 0 < self.l1_stft_decay <= 1:
            raise ConfigError(f"losses.l1_stft_decay is {self.l1_stft_decay}, expected more than 0 and at most 1")


@dataclass(frozen=True)
class Discriminator:
    channels: int = 64
    lr: float = 3e-4
    start_step: int = 0  # earlier steps run without discriminator and feature matching, and are faster
    every: int = 1  # features are matched and the discriminator learns in every n-th step
    crop_seconds: float = 0.0  # of each training crop the discriminator gets a random part of this length; 0: all of it

    def __post_init__(self) -> None:
        _at_least("discriminator.channels", self.channels, 1)
        _at_most("discriminator.channels", self.channels, 10_000)
        _above("discriminator.lr", self.lr, 0)
        _at_least("discriminator.start_step", self.start_step, 0)
        _at_least("discriminator.every", self.every, 1)
        if self.crop_seconds:
            _at_least("discriminator.crop_seconds", self.crop_seconds, 0.1)


@dataclass(frozen=True)
class Optimizer:
    lr: float = 3e-4  # peak of the schedule: linear warm-up, then a cosine down to final_lr
    final_lr: float = 3e-5
    beta1: float = 0.5  # 0.5 rather than 0.9: balanced gradients change direction quickly
    beta2: float = 0.9
    warmup_steps: int = 500
    clip_norm: float = 1.0  # largest norm of the parameters' gradient, per trained network
    ema_decay: float = 0.999  # the EMA of the weights is what is validated, saved and injected

    def __post_init__(self) -> None:
        for name in ("lr", "clip_norm"):
            _above("optimizer." + name, getattr(self, name), 0)
        for name in ("beta1", "beta2", "ema_decay"):
            _below_one("optimizer." + name, getattr(self, name))
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        _at_least("optimizer.final_lr", self.final_lr, 0)


@dataclass(frozen=True)
class Config:
    train: str = "encoder"  # "encoder" against a frozen release, or "codec": a whole codec from scratch
    model_dir: InputPath = ""  # MODEL_DIR: the release to train against
    params: InputPath = ""  # a params.json with the dimensions of a codec from scratch
    output_dir: OutputPath = "runs/latest"  # OUTPUT_DIR: what the run writes
    hf_cache: OutputPath = ""  # HF_CACHE: where data sets are cached; empty is the hub's own default
    stochastic: bool = True  # quantizes half of the samples, as the paper does; false quantizes all, for comparison
    init: str = "inverse"  # the encoder starts as the decoder's "inverse", with "mirror"ed layers, or "random"
    start_from: InputPath = ""  # output_dir of another run of the same kind: start from its weights, not its optimizers
    moved: bool = False  # true: the files of the run that resumes are the same, at other paths
    steps: int = 100_000
    batch_size: int = 32  # crops a GPU at a time
    accumulate: int = 1  # batches a step: their gradients are averaged, so more crops fit into the same memory
    precision: str = "bf16"  # autocast of encoder and decoder: "bf16" or "fp32"
    activation_checkpointing: bool = False  # computes activations again in the backward pass: less memory, slower
    cuda_graph: bool = True  # on a GPU: records steps as CUDA graphs and replays them, which is faster
    seed: int = 0
    log_every: int = 50  # steps between two lines of metrics
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 2  # checkpoints kept, beside the best one
    data: Data = field(default_factory=Data)
    losses: Losses = field(default_factory=Losses)
    discriminator: Discriminator = field(default_factory=Discriminator)
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        _one_of("train", self.train, ("encoder", "codec"))
        _one_of("init", self.init, ("inverse", "mirror", "random"))
        _one_of("precision", self.precision, ("bf16", "fp32"))
        for name in ("steps", "batch_size", "accumulate", "log_every", "validate_every", "save_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        _not_empty("output_dir", self.output_dir, "a folder: is a variable of the shell not set?")
        _at_most("batch_size", self.batch_size, 100_000)
        _at_most("accumulate", self.accumulate, 100_000)
        if self.losses.asr and self.data.crop_seconds > self.losses.asr_context_seconds:
            raise ConfigError(
                f"data.crop_seconds is {self.data.crop_seconds}, expected at most losses.asr_context_seconds, "
                f"{self.losses.asr_context_seconds}: the teacher gets a crop in one window"
            )
        if self.losses.pseudo_labels and self.data.crop_seconds > WHISPER_SECONDS:
            raise ConfigError(
                f"data.crop_seconds is {self.data.crop_seconds}, expected at most {WHISPER_SECONDS} with "
                "losses.pseudo_labels: Whisper hears no more at a time"
            )
        if self.discriminator.crop_seconds > self.data.crop_seconds:
            raise ConfigError(
                f"discriminator.crop_seconds is {self.discriminator.crop_seconds}, expected at most data.crop_seconds, "
                f"{self.data.crop_seconds}, or 0"
            )
        if self.losses.inversion and not self.data.pairs:
            raise ConfigError(
                "losses.inversion is on and data.pairs is empty, expected files that speak_pairs.py wrote; "
                "losses.inversion=0 trains without them"
            )
        if self.data.pairs and not self.losses.inversion:
            raise ConfigError("data.pairs is given and losses.inversion is 0, expected a weight for it")
        for name in ("second_pass", "pseudo_labels"):
            if getattr(self.losses, name) and not self.losses.inversion:
                raise ConfigError(f"losses.{name} is on, expected data.pairs and losses.inversion, which it needs")
        if self.losses.inversion and self.train != "encoder":
            raise ConfigError("losses.inversion is on, expected train=encoder: pairs belong to a release's own decoder")
        if self.losses.inversion and self.batch_size < 2:
            raise ConfigError("batch_size is 1, expected 2 or more: a crop of speech and one of a pair")
        if self.train == "encoder" and not self.model_dir:
            raise ConfigError("model_dir is empty, expected a release's folder: set MODEL_DIR, or model_dir=DIR")
        if self.train == "codec" and not self.params:
            raise ConfigError("params is empty, expected the params.json that gives the codec's dimensions")
        if not self.data.train or not self.data.validation:
            empty = "data.validation" if self.data.train else "data.train"
            raise ConfigError(f"{empty} is empty, expected folders or parquet files of speech")

    @property
    def cycle(self) -> int:
        """The number of steps after which the losses of a step repeat."""
        teacher = self.losses.asr_every if self.losses.asr else 1
        return math.lcm(teacher, self.discriminator.every if self.losses.feature_matching else 1)

    @property
    def pairs_a_batch(self) -> int:
        """Crops of pairs in a batch."""
        most = self.batch_size - 1
        return min(max(round(self.batch_size * self.data.pairs_share), 1), most) if self.losses.inversion else 0

    @property
    def crops_a_batch(self) -> int:
        """Crops of speech in a batch."""
        return self.batch_size - self.pairs_a_batch


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads `path`, then applies MODEL_DIR, OUTPUT_DIR and HF_CACHE, then `key=value` arguments (`losses.mel=2`). A
    file with `base: OTHER.yaml` changes settings of that file, which lies in the same folder."""
    values = read_settings(Path(convert(str(path), InputPath, "--config")))
    for key in ("model_dir", "output_dir", "hf_cache"):
        value = from_environment(key.upper())
        if value:
            values[key] = value
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{shown(override)} is not an override, expected key=value")
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{key} is unknown: {section} is a value, not a section")
        target[last] = _value(text, key)
    return _build(Config, values, "")


def _value(text: str, key: str) -> Any:
    """The value of `key=text`: the text itself, but for lists of sources and for sections, in YAML's brackets."""
    kind: Any = Config
    for part in key.split("."):
        kind = typing.get_type_hints(kind).get(part) if is_dataclass(kind) else None
    is_yaml = is_dataclass(kind) or isinstance(kind, types.GenericAlias)
    # a folder may be named "[24k] speech"
    return parse_yaml(text, f"{key}={text[:100]}") if is_yaml and text[:1] in "[{" and not exists(text) else text


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    values = asdict(config)
    for key in ("train", "validation"):
        sources = getattr(config.data, key)
        values["data"][key] = [source.as_setting() for source in sources]
    return yaml.safe_dump(values, sort_keys=False)


def defaults(cls: Any = Config, prefix: str = "") -> dict[str, Any]:
    """The default of every setting, by its name with its section."""
    found: dict[str, Any] = {}
    for each in fields(cls):
        section = each.default_factory
        name = prefix + each.name
        found |= defaults(section, f"{name}.") if is_dataclass(section) else {name: each.default}
    return found


def _build(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    known = {f.name for f in fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            name = prefix + key
            if name in REMOVED:
                raise ConfigError(f"{name} was removed: {REMOVED[name]}")
            if name in RENAMED:
                raise ConfigError(f"{name} was renamed: write {RENAMED[name]}")
            near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0)
            raise ConfigError(f"{name[:100]} is no configuration key; the nearest known one is {prefix}{near[0]}")
        kind = hints[key]
        if is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key} is {shown(value)}, expected a section of keys and values")
            arguments[key] = _build(kind, value, f"{prefix}{key}.")
        elif isinstance(kind, types.GenericAlias):
            of_sources = typing.get_args(kind)[0] is Source
            arguments[key] = (_sources if of_sources else _paths)(value, prefix + key)
        else:
            arguments[key] = convert(value, kind, prefix + key)
    return cls(**arguments)


def _sources(value: Any, name: str) -> tuple[Source, ...]:
    items = value if isinstance(value, list) else [value] if value else []
    sections = [asdict(Source.parse(item)) if isinstance(item, str) else item for item in items]
    for section in sections:
        if not isinstance(section, dict) or not section.get("path"):
            raise ConfigError(f"{name} has {shown(section)}, expected a path, a hub name, or a section with a path")
        section["path"] = convert(section["path"], InputPath, f"{name}.path")
    return tuple(_build(Source, section, f"{name}.") for section in sections)


def _paths(value: Any, name: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value] if value else []
    return tuple(convert(item, InputPath, name) for item in items)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {shown(value)}, expected {' or '.join(repr(option) for option in allowed)}")


def _at_least(name: str, value: float, limit: float) -> None:
    if not value >= limit:
        raise ConfigError(f"{name} is {value}, expected {limit} or more")


def _at_most(name: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ConfigError(f"{name} is {value}, expected {limit} or less")


def _not_empty(name: str, value: str, expected: str) -> None:
    if not value:
        raise ConfigError(f"{name} is empty, expected {expected}")


def _above(name: str, value: float, limit: float) -> None:
    if not value > limit:
        raise ConfigError(f"{name} is {value}, expected more than {limit}")


def _below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}, expected 0 or more and less than 1")
