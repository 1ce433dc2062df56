"""`train_encoder.py --profile`: what a step costs."""

from __future__ import annotations

import re
from pathlib import Path

import train_encoder
from tests.one_step import ALONE
from tests.rank_processes import start, statuses
from training.config import load_config


def test_a_profile_of_two_ranks_shows_once_what_their_collectives_exchange(settings: Path, tmp_path: Path) -> None:
    losses = ["losses.feature_matching=1", "discriminator.channels=2", "losses.diversity=0.5", "losses.shaping=0.5"]
    log = tmp_path / "log"
    assert statuses(start(2, ["--config", str(settings), "--profile", "1", *losses], log)) == [0, 0], log.read_text()
    _, *tables = log.read_text().split("collectives       bytes  statement\n")
    assert len(tables) == 1
    rows = re.findall(r"^ +(\d+) +(\d+)  (.*)$", tables[0], re.MULTILINE)

    trainer = train_encoder.Trainer(load_config(settings, losses), ALONE)
    encoder, discriminator = (
        sum(parameter.numel() for parameter in network.parameters())
        for network in (trainer.trained, trainer.discriminator.network)
    )
    codec, frames = trainer.codec.config, 5  # of a crop
    numbers = {  # of four bytes
        "waveform_balancer.combine(": 4,  # losses on the reconstruction: mel, l1, stft, feature matching
        "latent_balancer.combine(": 4,  # commitment, diversity, shaping, and all on the reconstruction
        "self.diversity(": codec.semantic_codebook_size,
        "self.shaping(": codec.acoustic_dim * 2 * 2 * frames,  # of two crops on each of two ranks
        "self.ranks.average_gradients(": encoder,
        "network.update()": discriminator,
        "the step": 4 + 4 + codec.semantic_codebook_size + codec.acoustic_dim * 20 + encoder + discriminator,
    }
    assert len(rows) == len(numbers)
    for part, number in numbers.items():
        (row,) = [row for row in rows if part in row[2]]
        assert row[:2] == ("6" if part == "the step" else "1", str(4 * number))
