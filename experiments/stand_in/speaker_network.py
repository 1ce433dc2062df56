"""The `hyperparams.yaml` that describes an ECAPA-TDNN to `losses/speaker.py` (and to speechbrain), at two sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from losses.speaker import HYPERPARAMETERS, WEIGHTS, SpeakerNetwork

FEATURES = {"n_mels": 80}
NORMALIZATION = {"norm_type": "sentence", "std_norm": False}
KERNELS = {"input_size": 80, "kernel_sizes": [5, 3, 3, 3, 1], "dilations": [1, 2, 3, 4, 1]}
# speechbrain/spkrec-ecapa-voxceleb
PUBLISHED = {
    **KERNELS,
    "channels": [1024, 1024, 1024, 1024, 3072],
    "attention_channels": 128,
    "res2net_scale": 8,
    "se_channels": 128,
    "lin_neurons": 192,
}
# data/demo/speaker: the same with a sixteenth of the channels
SMALL = {
    **KERNELS,
    "channels": [64, 64, 64, 64, 192],
    "attention_channels": 64,
    "res2net_scale": 4,
    "se_channels": 64,
    "lin_neurons": 96,
}


def write_hyperparameters(folder: Path, size: dict[str, Any]) -> Path:
    """Writes `folder`/hyperparams.yaml for ECAPA_TDNN's arguments `size`, and returns its path."""
    described = {
        "compute_features": _New("speechbrain.lobes.features.Fbank", FEATURES),
        "mean_var_norm": _New("speechbrain.processing.features.InputNormalization", NORMALIZATION),
        "embedding_model": _New("speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN", size),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HYPERPARAMETERS
    path.write_text(yaml.dump(described, Dumper=_Dumper, default_flow_style=None, sort_keys=False), encoding="utf-8")
    return path


def write_random_network(folder: Path, size: dict[str, Any]) -> Path:
    """Writes a network with random weights (seed 0) that `load_speaker_network` reads, and returns the folder."""
    hyperparameters = write_hyperparameters(folder, size)
    torch.manual_seed(0)
    torch.save(SpeakerNetwork(hyperparameters).embedding.state_dict(), folder / WEIGHTS)
    return folder


class _New:
    """`!new:module.Class` with its arguments."""

    def __init__(self, name: str, arguments: dict[str, Any]):
        self.name, self.arguments = name, arguments


class _Dumper(yaml.SafeDumper):
    """Writes a _New as hyperpyyaml has it, and repeats a value instead of making an alias of it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _New, lambda dumper, new: dumper.represent_mapping(f"!new:{new.name}", new.arguments, flow_style=False)
)
