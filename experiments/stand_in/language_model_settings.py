"""Settings of the stand-in's language model's training, and the `params.json` that they give."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from experiments.stand_in.letters import VOCABULARY


@dataclass(frozen=True)
class Settings:
    minutes: float = 13.0
    steps: int = 10**9  # or so many, if they come first
    # dimensions: 19 million parameters
    dim: int = 384
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    hidden_dim: int = 1024
    acoustic_layers: int = 3
    # a batch: rows of packed examples, and their length. About 130 examples
    rows: int = 48
    length: int = 384
    lr: float = 1e-3  # linear warm-up, then linear down to a hundredth
    warmup_steps: int = 300
    weight_decay: float = 0.05
    dropout: float = 0.1
    corruption: float = 0.4
    draws: int = 4  # of noise and time a frame
    condition_dropout: float = 0.1
    ema_decay: float = 0.999
    # weights of the losses that only the training sees; from half of the time on they fall to a fifth
    attention: float = 0.3
    phonemes: float = 0.3
    spelling: float = 0.3
    acoustic: float = 1.0
    seed: int = 0
    clips: int = 0  # train on so few only, to try it
    compile: int = 1  # on a GPU; 0 to do without
    cuda_graph: int = 1  # likewise
    workers: int = 6  # processes that make batches, on a GPU
    log_every: int = 200
    validate_every: int = 1000
    speak_every: int = 5000
    sentences: int = 48  # spoken at each of these
    voices: int = 4  # presets in the release


def model_params(codec: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The codec's `params.json` with the language model's dimensions."""
    params = copy.deepcopy(codec)
    sizes = {
        "head_dim": settings.dim // settings.heads,
        "hidden_dim": settings.hidden_dim,
        "n_heads": settings.heads,
        "n_kv_heads": settings.kv_heads,
        "dim": settings.dim,
    }
    params |= sizes | {"n_layers": settings.layers, "vocab_size": VOCABULARY}
    acoustic = params["multimodal"]["audio_model_args"]["acoustic_transformer_args"]
    acoustic |= sizes | {"n_layers": settings.acoustic_layers, "input_dim": settings.dim}
    return params
