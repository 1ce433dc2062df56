"""The comparison of encoders trained with and without pairs: its runs, and what its tables say."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec.config import SAMPLE_RATE
from experiments import pair_ablations
from experiments.stand_in import measure_codes
from tests.language_models import CODEC, write_tiny_release
from training.config import load_config


def options(tmp_path: Path, *only: str, seeds: int = 2) -> argparse.Namespace:
    paths = dict.fromkeys(("out", "wavs", "model_dir", "withheld"), tmp_path)
    return argparse.Namespace(only=only, seeds=seeds, steps=100, overrides=["batch_size=24"], **paths)


def test_configurations_differ_from_sound_alone_in_what_their_names_say(tmp_path: Path) -> None:
    found = {}
    for name in pair_ablations.CONFIGURATIONS:
        run = pair_ablations.described_run(options(tmp_path), name, 1, [pair_ablations.CONFIGURATIONS[name].pairs])
        found[name] = load_config(run.config, run.settings)
    assert {config.seed for config in found.values()} == {1}
    assert found["long"].steps == found["sound_long"].steps == 2 * found["pairs"].steps == 200
    weights = found["pairs"].losses
    assert weights.inversion == weights.mel + weights.l1 + weights.stft + weights.speaker
    assert found["sound"].losses == found["statistics"].losses.__class__(
        **{**vars(found["statistics"].losses), "inversion": 0}
    )
    assert {name for name, config in found.items() if not config.data.pairs} == {
        *("sound", "sound_long", "sound_without_statistics")
    }
    assert found["quarter"].pairs_a_batch * 3 == found["three_quarters"].pairs_a_batch == 18


def test_tables_have_the_base_with_intervals_and_differences_from_it(tmp_path: Path) -> None:
    values = {"pairs_0": 0.4, "pairs_1": 0.6, "sound_0": 0.1, "sound_1": 0.3, "withheld": 1.0}
    systems: dict[str, Any] = {
        name: {
            **{metric: [value, value] for metric in ("semantic", "acoustic", "within_one", "cosine", "nearest")},
            "error_rate": value / 2,
            "error_rate_draws": [value / 2] * 5,
        }
        for name, value in values.items()
    }
    found = {"speakers": ["a", "b"], "frames": [10, 30], "systems": systems}
    table = pair_ablations.codes_table(options(tmp_path, "pairs", "sound"), found).splitlines()
    assert table[0].startswith("| training | semantic codes equal ↑ |")
    assert table[2].startswith("| pairs of 20 voices | 50.0 % [50.0, 50.0] |")
    assert table[2].endswith("| 25.0 % [25.0, 25.0] |")
    assert table[3].startswith("| sound alone | 20.0 %, -30.0 % [-30.0, -30.0] |")
    assert table[4].startswith("| the withheld encoder | 100.0 %, +50.0 % [50.0, 50.0] |")
    assert len(table) == 5  # what was not measured is not there

    metrics = {"mel": {"name": "mel", "title": "mel", "better": "lower", "definition": ""}}
    scores = [{name: {"mel": value + clip} for name, value in values.items()} for clip in (0, 1)]
    del scores[1]["sound_1"]["mel"]
    clips = [{"scores": each, "weights": {}, "speaker": str(i)} for i, each in enumerate(scores)]
    figures = {"metrics": metrics, "clips": clips}
    rows = pair_ablations.sound_table(options(tmp_path, "pairs", "sound"), figures).splitlines()
    assert rows[2] == "| pairs of 20 voices | 1.000 [0.500, 1.500] |"
    assert rows[3] == "| sound alone | 0.200, -0.300 |"  # of the clip that all have a score of


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for speaker in ("a", "b"):
        for clip in range(2):
            folder = tmp_path / "clips" / speaker / "closed"
            folder.mkdir(parents=True, exist_ok=True)
            samples = generator.normal(size=int((0.9 + 0.3 * clip) * SAMPLE_RATE)) * 0.1
            soundfile.write(folder / f"{clip}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
            (folder / f"{clip}.normalized.txt").write_text("One two.", encoding="utf-8")
    return tmp_path / "clips"


def test_codes_are_measured_against_the_withheld_encoder(tmp_path: Path, speech: Path) -> None:
    release, encoder = write_tiny_release(tmp_path), str(tmp_path / "encoder.safetensors")
    lengths, random = np.full(6, 12), np.random.default_rng(1)
    semantic = random.integers(CODEC.semantic_codebook_size, size=72).astype(np.int16)
    acoustic = random.integers(CODEC.acoustic_codebook_size, size=(72, CODEC.acoustic_dim)).astype(np.uint8)
    np.savez(tmp_path / "train.npz", semantic=semantic, acoustic=acoustic, lengths=lengths)
    (tmp_path / "train.json").write_text(json.dumps([["", f"{i % 3}", "", "", 0] for i in range(6)]), encoding="utf-8")
    out = tmp_path / "codes.json"
    command = [str(out), "--encoder", f"same={encoder}", "--unseen", f"pairs={speech}", "--codes", str(tmp_path)]
    more = ["--model-dir", str(release), "--against", encoder, "--listener-steps", "1"]
    assert measure_codes.main(command + more) == 0
    found = json.loads(out.read_text())["pairs"]
    systems = found["systems"]
    assert found["speakers"] == ["a", "a", "b", "b"]
    assert found["frames"] == [12, 15, 12, 15]
    assert set(systems) == {"withheld", "second_pass", "untrained", "other_speaker", "same"}
    same = {name: value for name, value in systems["same"].items() if name != "error_rate_draws"}
    assert same == {name: systems["withheld"][name] for name in same}
    for metric in ("semantic", "acoustic", "within_one", "cosine", "centred"):
        assert systems["same"][metric] == pytest.approx([1] * 4)
        assert np.mean(systems["untrained"][metric]) < 0.9
    assert systems["same"]["voice_flow"] == systems["same"]["flow"]  # the speech is the withheld encoder's anyway
    assert systems["other_speaker"]["voice_flow"] != systems["same"]["voice_flow"]
    assert 0 <= systems["same"]["error_rate"] <= 1
    table = pair_ablations.codes_table(
        argparse.Namespace(only=["pairs"], seeds=1), found | {"systems": systems | {"pairs_0": systems["same"]}}
    )
    assert len(table.splitlines()) == 2 + 5


def test_no_configuration_has_the_name_of_another_row() -> None:
    others = {measure_codes.WITHHELD, measure_codes.SECOND_PASS, measure_codes.UNTRAINED, measure_codes.OTHER_SPEAKER}
    assert not others & set(pair_ablations.CONFIGURATIONS)


def test_a_set_with_a_single_clip_of_a_speaker_has_the_agreement_only() -> None:
    silence = [torch.zeros(1920, dtype=torch.int16)] * 3
    assert measure_codes.Speech(silence, ["a", "b", "b"], [""] * 3).another() is None
    assert measure_codes.Speech(silence, ["a", "b", "a"], [""] * 3).another() is None
    several = measure_codes.Speech(silence * 2, ["a", "b", "a", "b", "b", "a"], [""] * 6)
    assert several.another() == [2, 3, 5, 4, 1, 0]
    assert several.of_another_speaker() == [1, 0, 1, 0, 0, 1]
