"""What a run learns: its state, where it starts, how it resumes, and what it saves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codec.checkpoint import codec_fingerprint, load_release, save_encoder, save_release
from codec.codec import Codec
from codec.config import CodecConfig, read_params_file
from losses import Balancer
from training.auxiliary import AuxiliaryNetwork
from training.checkpoints import CheckpointError, checkpoints, delete_old, load_newest, save_checkpoint
from training.config import Config, ConfigError, dump_config
from training.distributed import Ranks
from training.optimization import EMA, load_optimizer
from training.same_run import check_same_run


@dataclass
class TrainingState:
    """Everything that a checkpoint holds. `trained` are the codec's networks that learn: the encoder, and with
    `train=codec` the decoder too."""

    config: Config
    ranks: Ranks
    codec: Codec
    trained: nn.ModuleDict
    ema: EMA
    optimizer: torch.optim.Optimizer
    auxiliary: Mapping[str, AuxiliaryNetwork]
    waveform_balancer: Balancer
    latent_balancer: Balancer
    clips: int = 0  # of the training data
    clips_seen: int = 0  # by all ranks together: the position in the stream of clips
    best_step: int = 0  # of all validations
    best_mel: float = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "trained": self.trained.state_dict(),
            "ema": self.ema.networks.state_dict(),
            "quantizer": self.codec.quantizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "waveform_balancer": self.waveform_balancer.state_dict(),
            "latent_balancer": self.latent_balancer.state_dict(),
            "auxiliary": {name: network.state_dict() for name, network in self.auxiliary.items()},
            "clips_seen": self.clips_seen,
            "best": {"step": self.best_step, "mel": self.best_mel},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        self.ema.networks.load_state_dict(state["ema"])
        self.codec.quantizer.load_state_dict(state["quantizer"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.waveform_balancer.load_state_dict(state["waveform_balancer"], self.ranks.device)
        self.latent_balancer.load_state_dict(state["latent_balancer"], self.ranks.device)
        for name, network in self.auxiliary.items():
            network.load_state_dict(state["auxiliary"][name])
        self.clips_seen = state["clips_seen"]
        self.best_step, self.best_mel = state["best"]["step"], state["best"]["mel"]

    def restore(self, checkpoint: Mapping[str, Any] | None, clips: int) -> None:
        """Resumes from rank 0's checkpoint, or starts from `config.start_from`, or from the weights as they are. All
        ranks get rank 0's state. `clips` is the number of training clips. Raises ConfigError if the checkpoint is of a
        run with another codec or, where the data was moved, with another number of clips."""
        self.clips = clips
        if self.ranks.world_size > 1:
            self.check_same_on_all_hosts()
        if checkpoint:
            self.check_same_data(checkpoint)
            try:
                self.load_state_dict(checkpoint)
            except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise CheckpointError(
                    f"output_dir {self.config.output_dir} has checkpoints that this run's networks cannot take "
                    f"({str(error).strip().splitlines()[-1].strip()}): choose another output_dir"
                ) from error
            # the run may have been killed after its last save and before it deleted older checkpoints
            delete_old(Path(self.config.output_dir) / "checkpoints", self.config.keep, self.best_step)
        elif self.config.start_from and self.ranks.main:
            self.start_from(Path(self.config.start_from))
        if self.ranks.world_size > 1:
            self.load_state_dict(self.ranks.broadcast(self.state_dict()))

    @cached_property
    def codec_identity(self) -> dict[str, str]:
        """What tells the codec from others, wherever its release lies: dimensions, and for a frozen codec its hash."""
        fingerprint = codec_fingerprint(self.codec) if self.config.train == "encoder" else ""
        return {"dimensions": json.dumps(asdict(self.codec.config)), "fingerprint": fingerprint}

    def check_same_on_all_hosts(self) -> None:
        """Raises ConfigError if a host has other training clips or another release than rank 0's host."""
        codec = "model_dir" if self.config.train == "encoder" else "params"
        identity = self.codec_identity["fingerprint"] or self.codec_identity["dimensions"]
        read = {"data.train": f"{self.clips} clips", codec: f"the codec {identity}"}
        everyones = self.ranks.gather_objects(read)
        for rank, other in enumerate(everyones):
            for setting, found in other.items():
                if found != everyones[0][setting]:
                    raise ConfigError(
                        f"{setting} has {found} on rank {rank} and {everyones[0][setting]} on rank 0: "
                        "every host needs the same files"
                    )

    def check_same_data(self, checkpoint: Mapping[str, Any]) -> None:
        config = self.config
        if checkpoint.get("codec", self.codec_identity) != self.codec_identity:
            setting = "model_dir" if config.train == "encoder" else "params"
            raise ConfigError(
                f"output_dir {config.output_dir} has checkpoints of a run with another codec than that of {setting} "
                f"{getattr(config, setting)}: choose another output_dir, or the codec that the run began with"
            )
        before = checkpoint.get("clips", self.clips)
        if config.moved and before != self.clips:
            raise ConfigError(
                f"data.train has {self.clips} clips, {before} when the run began: moved=true needs the same clips"
            )

    def start_from(self, folder: Path) -> None:
        """Takes the EMA weights of another run's newest checkpoint; with `train=codec` its codebook too."""
        state = load_newest(folder / "checkpoints")
        if state is None:
            raise _no_start(folder)
        try:
            for networks in (self.trained, self.ema.networks):
                networks.load_state_dict(state["ema"])
            if self.config.train == "codec":  # an encoder keeps the codebook of its release
                self.codec.quantizer.load_state_dict(state["quantizer"])
        except RuntimeError as error:
            raise ConfigError(
                f"start_from is {folder}, but that run trained other networks than train={self.config.train} does here:"
                f" {str(error).splitlines()[1].strip()}"
            ) from error

    def save(self, step: int) -> None:
        """Writes encoder.safetensors (with `train=codec` the release too) and then a checkpoint. In this order a run
        that is killed in between writes the encoder again when it resumes."""
        folder, codec = Path(self.config.output_dir), self.ema.codec
        seconds = self.clips_seen * self.config.data.crop_seconds
        about = {"step": step, "audio_seconds": seconds, "averaged_weights": True}
        for kind in ("", "_best") if self.best_step == step else ("",):
            if self.config.train == "codec":
                save_release(folder / f"release{kind}", codec, Path(self.config.params))
            save_encoder(folder / f"encoder{kind}.safetensors", codec, about)
        about_run = {"step": step, "config": dump_config(self.config), "folder": _current_folder(), "clips": self.clips}
        state = {**about_run, "codec": self.codec_identity, **self.state_dict()}
        save_checkpoint(folder / "checkpoints", step, state, self.config.keep, self.best_step)

    def networks(self) -> dict[str, tuple[nn.Module, int]]:
        """Every network that learns, with a number that grows with each of its updates."""
        auxiliary = {name: (one.network, one.updates) for name, one in self.auxiliary.items()}
        return {name: (network, self.clips_seen) for name, network in self.trained.items()} | auxiliary


def newest_checkpoint(config: Config, ranks: Ranks) -> tuple[dict[str, Any] | None, int]:
    """Rank 0's newest checkpoint in `output_dir`, None on the other ranks, which may not share its disk; and the step
    to resume from, on all ranks. Raises ConfigError where the checkpoint is of another configuration, or where there is
    none, and `start_from` has none either."""
    state = load_newest(Path(config.output_dir) / "checkpoints") if ranks.main else None
    first_step = ranks.largest(state["step"] if state else 0)
    if state:
        check_same_run(state["config"], dump_config(config), state.get("folder", ""), "codec" in state)
    elif ranks.main and config.start_from and not checkpoints(Path(config.start_from) / "checkpoints"):
        raise _no_start(Path(config.start_from))
    return state, first_step


def _no_start(folder: Path) -> ConfigError:
    return ConfigError(f"start_from is {folder}, expected the output_dir of a run with checkpoints")


def _current_folder() -> str:
    """Where relative paths start: empty if somebody has deleted that folder."""
    with suppress(OSError):
        return str(Path.cwd())
    return ""


def build_codec(config: Config, init: str, device: torch.device) -> Codec:
    """The codec to train, in float32: a release's with a new encoder, or a whole codec from scratch."""
    if config.train == "codec":
        codec = Codec(CodecConfig.from_params(read_params_file(Path(config.params)))).requires_grad_(False)
        # no language model is trained, so any embedding table will do that has the norm of the release's, 3.7
        nn.init.normal_(codec.embedding_table, std=0.6 * codec.config.embedding_dim**-0.5)
        return codec.to(device)
    # on the device: at the release's dimensions init=inverse takes 13 seconds on two CPU cores
    return load_release(config.model_dir, torch.float32, device).with_new_encoder(init)
