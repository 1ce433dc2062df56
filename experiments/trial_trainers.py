"""Trainers of two trials: what would bring an encoder's codes of recordings nearer to the original's?

    python -m experiments.trial_trainers asked --withheld FILE --config CONFIG data.pairs=PAIRS [key=value ...]
    python -m experiments.trial_trainers bridge --config CONFIG data.pairs=PAIRS [key=value ...]

An encoder that learned from pairs finds the codes of the decoder's sound again, but makes other codes of recordings
than the original encoder (RESULTS.md): recordings sound otherwise than what the decoder makes.

`asked` gives the encoder the step's speech in place of the decoder's sound, and the withheld encoder's codes of it,
the acoustic ones before they are rounded. With a real release nobody can ask. So it shows what the same steps could
teach at most.

`bridge` has a small network that learns from each step's reconstructions, beside their recordings, to turn the
decoder's sound into real sound. The sound of pairs goes through it before the encoder hears it. It begins as the
identity. A run that was stopped begins with a new bridge. Its loss is logged as `bridge`.

Both train as `train_encoder.py` does. A bridge is on one GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import train_encoder
from codec.checkpoint import load_release, with_encoder
from experiments.runs import experiment_status
from system.command import UserError
from train_encoder import Trainer
from training.config import load_config
from training.distributed import exit_process, start_ranks
from training.optimization import adam
from training.output_lock import sole_run
from training.pairs import DecodedPairs, settled
from training.step_inputs import StepInputs

WIDTH, DILATIONS = 64, (1, 3, 9, 27, 81)
LEARNING_RATE, BETAS = 0.001, (0.8, 0.99)


class Bridge(nn.Module):
    """Waveforms [B, 1, T] of the decoder to waveforms [B, 1, T] that resemble recordings: what is missing is added. It
    hears 31 ms around each sample, and begins as the identity."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.first, self.last = nn.Conv1d(1, width, 15, padding=7), nn.Conv1d(width, 1, 15, padding=7)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, width, 7, dilation=dilation, padding=3 * dilation) for dilation in DILATIONS
        )
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.first(waveform)
        for block in self.blocks:
            x = x + block(F.leaky_relu(x, 0.1))
        return waveform + self.last(F.leaky_relu(x, 0.1))


class AskedTrainer(Trainer):
    """A Trainer that gets the withheld encoder's codes of the step's speech in place of pairs, and its acoustic values
    before they are rounded. At most half of its batch are pairs."""

    withheld = Path()

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        asked = with_encoder(load_release(self.config.model_dir, torch.float32, self.ranks.device), self.withheld)
        self.asked = asked.get_submodule("encoder")
        self.pair_decoder = self.ask  # type: ignore[assignment]

    def backward(
        self, inputs: StepInputs, losses: frozenset[str], part: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self.heard = inputs.waveform.chunk(self.config.accumulate)[part]
        return super().backward(inputs, losses, part)

    @torch.no_grad()
    def ask(self, pair_codes: Tensor, begins: Tensor) -> DecodedPairs:
        """As many crops of speech as there are pairs; nothing else of the pairs is used."""
        speech = self.heard[: len(pair_codes)]
        with self.autocast():
            encoded = self.asked(speech)
        latent = encoded.float()[..., : speech.shape[-1] // self.codec.frame_size]
        codebook, semantic_dim = self.quantizer.acoustic_codebook, self.codec.config.semantic_dim
        levels = (torch.tanh(latent[:, semantic_dim:]) + 1) / 2 * (codebook.levels - 1)
        codes = torch.cat([self.quantizer.encode(latent)[:, :1], levels], dim=1)
        return DecodedPairs(speech, codes, settled(len(speech), latent.shape[-1], latent.device))


class BridgedTrainer(Trainer):
    """A Trainer whose pairs pass a bridge that learns in every step. Needs pairs, and the losses mel and stft."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.bridge = Bridge().to(self.ranks.device)
        self.bridge_optimizer = adam(self.bridge.parameters(), LEARNING_RATE, BETAS, self.ranks.device)
        self.mel_distance, self.decode = self.mel, self.pair_decoder
        self.pair_decoder, self.mel = self.decode_across, self.learn_and_compare  # type: ignore[assignment]

    def decode_across(self, codes: Tensor, begins: Tensor) -> DecodedPairs:
        """What `pair_decoder` makes, behind the bridge."""
        pairs = self.decode(codes, begins)
        with torch.no_grad(), self.autocast():
            return pairs._replace(waveform=self.bridge(pairs.waveform).float())

    def learn_and_compare(self, reconstruction: Tensor, waveform: Tensor) -> Tensor:
        """The loss `mel`. The step computes it of what the bridge learns from."""
        self.bridge_loss = self.learn(reconstruction, waveform)
        return self.mel_distance(reconstruction, waveform)

    def learn(self, reconstruction: Tensor, waveform: Tensor) -> Tensor:
        """One step of the bridge, from what the decoder made of a step's speech to the speech. Returns its loss."""
        self.bridge_optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            bridged = self.bridge(reconstruction.detach()).float()
        loss = self.mel_distance(bridged, waveform) + self.stft(bridged, waveform) + F.l1_loss(bridged, waveform)
        loss.backward()
        self.bridge_optimizer.step()
        return loss.detach()

    def backward(
        self, inputs: StepInputs, losses: frozenset[str], part: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        metrics, flags = super().backward(inputs, losses, part)
        return metrics | {"bridge": self.bridge_loss}, flags


TRIALS = {"asked": AskedTrainer, "bridge": BridgedTrainer}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=TRIALS)
    parser.add_argument("--config", required=True, help="a YAML file of settings")
    parser.add_argument("--withheld", type=Path, help="the encoder that is asked")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change; data.pairs is needed")
    options = parser.parse_intermixed_args(argv)

    def run() -> int:
        if options.trial == "asked" and options.withheld is None:
            raise UserError("--withheld is missing, expected the encoder that is asked")
        config = load_config(options.config, options.overrides)
        AskedTrainer.withheld = options.withheld
        with (
            start_ranks() as ranks,
            sole_run(Path(config.output_dir), ranks),
            patch.object(train_encoder, "Trainer", TRIALS[options.trial]),
        ):
            train_encoder.train(config, ranks)
        return 0

    return experiment_status(run, "repeat the command to resume; a bridge begins anew")


if __name__ == "__main__":
    exit_process(main())
