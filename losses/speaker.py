"""Speaker distance: how far the reconstruction's voice is from the original's, measured by a frozen ECAPA-TDNN
(Desplanques et al. 2020).

The network is speechbrain's class. It comes from the hub (`speechbrain/spkrec-ecapa-voxceleb`) or from a folder with
two files of that model: `hyperparams.yaml`, which describes features and network, and `embedding_model.ckpt`, the
weights. Importing this module downloads nothing; loading a network from the hub does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from codec.config import SAMPLE_RATE
from losses.resampling import JUDGE_RATE, band_limited_resample
from system.command import UserError
from system.torch_files import LOAD_ERRORS, load_torch_file, reason_of
from system.untrusted import read_file

PUBLISHED = "speechbrain/spkrec-ecapa-voxceleb"
HYPERPARAMETERS, WEIGHTS = "hyperparams.yaml", "embedding_model.ckpt"
MAX_HYPERPARAMETERS = 1 << 16  # bytes
SHORTEST = 0.1  # seconds; the network's widest convolution needs five frames of 10 ms


class SpeakerModelError(UserError):
    """The speaker network cannot be loaded. The message names it, the configuration key and how to train without it."""


class SpeakerNetwork(nn.Module):
    """Features and ECAPA-TDNN as a `hyperparams.yaml` describes them, with random weights.

    Takes waveforms [B, T] at 16 kHz, returns embeddings [B, E]. If clips are padded with zeros at the end, `lengths`
    [B] are their lengths in samples. Padding is then excluded from the mean that is subtracted from the features, and
    from every average inside the network. Convolutions still see the padding, so near the end of a padded clip they
    see other neighbours than for the clip alone.
    """

    def __init__(self, hyperparameters: Path):
        super().__init__()
        # By default, importing speechbrain turns TF32 on and JIT profiling off for all of PyTorch. This prevents it.
        os.environ.setdefault("SB_DISABLE_QUIRKS", "allow_tf32,disable_jit_profiling,disable_cudnn_benchmarking")
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
        from speechbrain.processing.features import InputNormalization

        described = _read_hyperparameters(hyperparameters)
        self.features = Fbank(**_arguments(described, "compute_features", Fbank))
        self.normalization = InputNormalization(**_arguments(described, "mean_var_norm", InputNormalization))
        self.embedding = ECAPA_TDNN(**_arguments(described, "embedding_model", ECAPA_TDNN))

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        features = self.features(waveform)  # [B, frames, mels], dB
        relative = torch.ones(len(waveform), device=waveform.device)
        if lengths is not None:
            # A clip has length // hop + 1 frames, because they are centred and the first is at sample 0. The network
            # multiplies the relative length by the batch's frames and rounds up; half a frame less makes this exact.
            hop = self.features.compute_STFT.hop_length
            relative = (lengths.to(waveform.device) // hop + 0.5) / features.shape[1]
        return self.embedding(self.normalization(features, relative), relative)[:, 0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpeakerNetwork:
        """Also moves the plain tensors of speechbrain's features: a window and the filters' frequencies. On the
        CPU they would be copied at every call, and each copy waits for the device."""
        for module in self.features.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor):
                    setattr(module, name, fn(value))
                    if hasattr(module, "device_inp"):  # the device on which filters are built
                        module.device_inp = getattr(module, name).device
        return super()._apply(fn, recurse)


class SpeakerDistance(nn.Module):
    """1 − cosine of the speaker embeddings of reconstruction and original: in [0, 2], 0 for equal waveforms. It does
    not depend on a clip's level. It is computed in float32, also under autocast. Only the reconstruction gets a
    gradient.

    `source` is a folder or a hub name. `cache` is the hub's cache folder; empty means the hub's default. Raises
    SpeakerModelError if the network cannot be loaded.
    """

    def __init__(self, source: str = PUBLISHED, sample_rate: int = SAMPLE_RATE, cache: str = ""):
        super().__init__()
        self.network = load_speaker_network(source, cache)
        self.resample = band_limited_resample(sample_rate)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SpeakerDistance:
        """Stays in evaluation mode, so that the frozen network's batch statistics do not change."""
        return super().train(False)

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Takes two waveforms [B, 1, T], returns the mean over the clips, a scalar. Raises ValueError for less than
        0.1 s."""
        return self.per_clip(reconstruction, original).mean()

    def per_clip(self, reconstruction: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The distance of each clip: [B]. If clips are padded with zeros at the end, `lengths` [B] are their lengths in
        samples."""
        with torch.no_grad():
            target = self.embed(original, lengths)
        return 1 - nn.functional.cosine_similarity(self.embed(reconstruction, lengths), target, dim=-1)

    def embed(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Speaker embeddings [B, E] of waveforms [B, 1, T] at the loss's sample rate. `lengths` as in `per_clip`.
        Raises ValueError for less than 0.1 s."""
        rate, samples = self.resample.orig_freq, waveform.shape[-1]
        if samples < SHORTEST * rate:
            raise ValueError(f"{samples} samples are too few for a speaker embedding, expected {SHORTEST} s or more")
        with torch.autocast(waveform.device.type, enabled=False):
            low = self.resample(waveform.float()[:, 0])
            return self.network(low, None if lengths is None else lengths * JUDGE_RATE // rate)


def load_speaker_network(source: str, cache: str = "") -> SpeakerNetwork:
    """The network from a folder or from the hub, with its weights. Raises SpeakerModelError if it cannot be loaded."""
    try:
        hyperparameters, weights = _find(source, cache)
        network = SpeakerNetwork(hyperparameters)
        network.embedding.load_state_dict(load_torch_file(weights))
    except (ImportError, *LOAD_ERRORS) as error:  # the library, the files, the hub, what the files hold
        raise SpeakerModelError(
            f"the speaker network {source!r} cannot be loaded: {reason_of(error)}. losses.speaker_model takes a hub "
            f"name ({PUBLISHED}) or a folder with {HYPERPARAMETERS} and {WEIGHTS}; losses.speaker=0 trains without it"
        ) from error
    return network


def _find(source: str, cache: str) -> tuple[Path, Path]:
    if Path(source).is_dir():
        return Path(source) / HYPERPARAMETERS, Path(source) / WEIGHTS
    from huggingface_hub import hf_hub_download

    found = [Path(hf_hub_download(source, name, cache_dir=cache or None)) for name in (HYPERPARAMETERS, WEIGHTS)]
    return found[0], found[1]


class _Described(yaml.SafeLoader):
    """Reads `!new:module.Class` as (tag, arguments) and calls nothing. speechbrain's own reader would call whatever the
    file names."""


def _described(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> tuple[str, Any]:
    return tag, loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Described.add_multi_constructor("!", _described)


def _read_hyperparameters(path: Path) -> Any:
    from hyperpyyaml import resolve_references
    from ruamel.yaml.error import YAMLError  # hyperpyyaml uses this library

    text = read_file(path, MAX_HYPERPARAMETERS).decode()
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError(f"{path} has aliases (*name): with them a short text can describe a huge value")
        return yaml.load(resolve_references(text), _Described)
    except (YAMLError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid YAML") from error


def _arguments(described: Any, key: str, kind: type) -> dict[str, Any]:
    """The arguments of one entry of a hyperparameter file. Raises ValueError if the entry is of another class."""
    expected = f"new:{kind.__module__}.{kind.__name__}"
    entry = described.get(key) if isinstance(described, dict) else None
    if not isinstance(entry, tuple) or entry[0] != expected:
        found = f"!{entry[0]}" if isinstance(entry, tuple) else repr(entry)
        raise ValueError(f"{HYPERPARAMETERS} has {key}: {found}, expected !{expected}")
    return entry[1] or {}
