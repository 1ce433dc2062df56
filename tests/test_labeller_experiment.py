"""experiments/labeller.py: a labeller learns from pairs and is measured on speech."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codec import load_release
from codec.checkpoint import save_encoder
from experiments import labeller
from losses import PseudoLabels
from losses.pseudo_labels import STATES, Labeller
from tests.random_pairs import random_shards
from tests.random_teacher import use_random_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_trains_on_pairs_and_measures_speech_and_its_decoded_sound(
    tiny_release: Path,
    speech_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_random_teacher(monkeypatch)
    monkeypatch.setattr(labeller, "CROPS", 2)
    monkeypatch.setattr(labeller, "FRAMES", 5)
    encoder, pairs = tmp_path / "withheld.safetensors", random_shards(tiny_release, tmp_path / "pairs")
    save_encoder(encoder, load_release(tiny_release).with_new_encoder(), {})
    files = ["--model-dir", str(tiny_release), "--encoder", str(encoder), "--pairs", str(pairs)]
    assert labeller.main(["--whisper", "base", *files, "--unseen", str(speech_folder), "--steps", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "2 steps of 2 crops" in told[-3]
    assert told[-2].startswith("speech: ")
    assert told[-1].startswith("the decoder's sound of its codes: ")


def test_the_share_found_is_that_of_all_frames(tiny_release: Path) -> None:
    loss = PseudoLabels(load_release(tiny_release, torch.float32).quantizer)
    network = Labeller(4, loss.entries.shape[1])
    for block in network.blocks:  # so that a frame hears no other
        torch.nn.init.zeros_(block.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(block.bias)  # type: ignore[arg-type]
    named = int(loss.scored(network(torch.zeros(1, STATES, 4))).argmax())
    clips = ((2, named), (3, named + 1), (5, named))  # lengths and codes
    heard = [labeller.Heard(torch.zeros(STATES * length, 4), torch.full((length,), code)) for length, code in clips]
    assert labeller.scores(network, loss, heard)[0] == pytest.approx(0.7)
