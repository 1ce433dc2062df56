"""Does a bridge from the decoder's sound to real sound bring an encoder's codes of recordings nearer to the original's?

    python -m experiments.bridge --config CONFIG data.pairs=PAIRS [key=value ...]

An encoder that learned from pairs finds the codes of the decoder's sound again, but makes other codes of recordings
than the original encoder (RESULTS.md): recordings sound otherwise than what the decoder makes. A step's reconstructions
show the difference, for each is there beside its recording. So a small network learns to turn the decoder's sound into
real sound, and the sound of pairs goes through it before the encoder hears it. Their codes stay known.

Trains as `train_encoder.py` does, without CUDA graphs and on one GPU. Pairs pass the bridge from step `--begin` on,
because it has to learn first, from reconstructions that resemble the recordings. A run that was stopped begins with a
new bridge.
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
from experiments.runs import experiment_status
from train_encoder import Trainer
from training.config import load_config
from training.distributed import exit_process, start_ranks
from training.output_lock import sole_run
from training.pairs import DecodedPairs

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


class BridgedTrainer(Trainer):
    """A Trainer whose pairs pass a bridge that learns in every step. Needs pairs, and the losses mel and stft."""

    begin = 0

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.steps, self.bridge = 0, Bridge().to(self.ranks.device)
        self.bridge_optimizer = torch.optim.Adam(self.bridge.parameters(), LEARNING_RATE, BETAS)
        self.mel_distance, self.decode = self.mel, self.pair_decoder
        self.pair_decoder, self.mel = self.decode_across, self.learn_and_compare  # type: ignore[assignment]

    def decode_across(self, codes: Tensor, begins: Tensor) -> DecodedPairs:
        """What `pair_decoder` makes, behind the bridge."""
        pairs = self.decode(codes, begins)
        if self.steps < self.begin:
            return pairs
        with torch.no_grad(), self.autocast():
            return pairs._replace(waveform=self.bridge(pairs.waveform).float())

    def learn_and_compare(self, reconstruction: Tensor, waveform: Tensor) -> Tensor:
        """The loss `mel`. The step computes it of what the bridge learns from."""
        self.learn(reconstruction, waveform)
        return self.mel_distance(reconstruction, waveform)

    def learn(self, reconstruction: Tensor, waveform: Tensor) -> None:
        """One step of the bridge, from what the decoder made of a step's speech to the speech."""
        with self.autocast():
            bridged = self.bridge(reconstruction.detach()).float()
        loss = self.mel_distance(bridged, waveform) + self.stft(bridged, waveform) + F.l1_loss(bridged, waveform)
        self.bridge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.bridge_optimizer.step()
        self.steps += 1
        if self.steps % self.config.log_every == 0:
            with torch.no_grad():
                before, after = (float(self.mel_distance(each, waveform)) for each in (reconstruction, bridged))
            print(f"bridge, step {self.steps}: mel {before:.3f} of the decoder's sound, {after:.3f} behind", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file of settings")
    parser.add_argument("--begin", type=int, default=300, help="step (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change; data.pairs is needed")
    options = parser.parse_intermixed_args(argv)

    def run() -> int:
        config = load_config(options.config, [*options.overrides, "cuda_graph=false"])
        BridgedTrainer.begin = options.begin
        with (
            start_ranks() as ranks,
            sole_run(Path(config.output_dir), ranks),
            patch.object(train_encoder, "Trainer", BridgedTrainer),
        ):
            train_encoder.train(config, ranks)
        return 0

    return experiment_status(run, "repeat the command to resume, with a new bridge")


if __name__ == "__main__":
    exit_process(main())
