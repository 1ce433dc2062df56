"""evaluate_encoder.py --pairs: what an encoder does with the language model's own codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import evaluate_encoder
from codec import Codec, load_release
from codec.checkpoint import with_encoder
from data.pairs import Pairs
from evaluation.codes import agreement, mean_embedding_row
from evaluation.measure import read_pairs
from evaluation.pairs import SpokenStatistics, score_pairs, spoken_halves
from tests.random_pairs import random_shards, write_random_shard

DEMO = Path("data/demo")
WITHHELD = DEMO / "withheld_encoder.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return with_encoder(load_release(DEMO / "release"), WITHHELD)


@pytest.fixture(scope="module")
def shard(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_random_shard(folder / "a.safetensors", codec, (12, 9, 15))
    return folder


@pytest.fixture(scope="module")
def pairs(codec: Codec, shard: Path) -> Pairs:
    return read_pairs(codec, [str(shard)])


def test_a_pairs_codes_are_compared_with_those_found_in_their_sound(codec: Codec, pairs: Pairs) -> None:
    scores, chosen = score_pairs(codec, pairs, "encoder")
    assert chosen == [0, 1, 2]
    found = codec.encode(codec.decode(pairs.codes(1)[None]))[0]
    mean_row = mean_embedding_row(codec, map(pairs.codes, chosen))
    expected = agreement(codec, found, pairs.codes(1), mean_row).values
    assert scores.values["found_acoustic"][1] == expected["equal_acoustic"].value
    assert scores.values["found_embedding"][1] == expected["embedding_agreement"].value
    assert scores.values["found_embedding_centred"][1] == expected["embedding_centred"].value
    assert scores.values["found_within_one"][1] > scores.values["found_acoustic"][1]
    again = codec.encode(codec.decode(found[None]))[0]
    assert scores.values["again_acoustic"][1] == pytest.approx(float((again == found)[1:].float().mean()))
    assert score_pairs(codec, pairs, "encoder", count=2)[1] == [0, 2]


def test_the_centred_cosine_leaves_out_what_all_rows_have_in_common(tiny_release: Path) -> None:
    codec = load_release(tiny_release)
    generator = torch.Generator().manual_seed(0)
    codec.embedding_table.copy_(torch.randn(codec.embedding_table.shape, generator=generator) + 1)
    levels = codec.config.acoustic_codebook_size
    codes, unrelated = (torch.randint(levels, (37, 200), generator=generator) for _ in range(2))
    mean_row = mean_embedding_row(codec, [codes[:, :50], codes[:, 50:]])
    found = agreement(codec, unrelated, codes, mean_row).values
    assert found["embedding_agreement"].value > 0.9
    assert abs(found["embedding_centred"].value) < 0.1
    same = agreement(codec, codes, codes, mean_row).values
    assert same["embedding_centred"].value == pytest.approx(1)


def test_spoken_codes_are_nearer_to_their_own_statistics_than_others(codec: Codec, pairs: Pairs) -> None:
    entries, levels = codec.config.semantic_codebook_size, codec.config.acoustic_codebook_size
    codes = torch.cat([pairs.codes(i) for i in range(3)], dim=1)
    spoken = SpokenStatistics.of(codes, entries, levels)
    own, other = spoken.compare(codes), spoken.compare((codes + 1).clamp(max=levels - 1))
    assert own["acoustic_to_spoken"] == pytest.approx(0, abs=1e-6)
    assert own["semantic_bits"] < other["semantic_bits"]
    assert own["acoustic_to_spoken"] < other["acoustic_to_spoken"]
    assert set(spoken_halves(pairs)[1]) == {"acoustic_to_spoken", "semantic_bits"}


def test_the_table_the_json_and_the_report_have_the_pairs(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_CACHE", str(tmp_path / "cache"))
    left_out = ("words", "wavlm", "ecapa", "quality", "resemblyzer", "pesq", "estoi", "speed")
    arguments = ["--model-dir", str(DEMO / "release"), "--encoder", str(WITHHELD), "--clips", "2", "--device", "cpu"]
    arguments += ["--pairs", str(shard), "--json", str(tmp_path / "found.json"), "--report", str(tmp_path / "report")]
    arguments += ["--require", "pairs.found_acoustic>=2", "--shown", "1", "--without", *left_out]
    assert evaluate_encoder.main(arguments) == 1
    shown = capsys.readouterr()
    assert "On 3 of 3 pairs" in shown.out
    assert "semantic codes steady" in shown.out
    assert "Of the spoken codes themselves: acoustic codes, to spoken" in shown.out
    assert "required pairs.found_acoustic>=2" in shown.err
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["pairs"]["count"] == 3
    assert set(found["pairs"]["totals"]) == {"encoder"}
    assert {"found_semantic", "found_mel", "again_acoustic"} <= set(found["pairs"]["totals"]["encoder"])
    assert {"steady_acoustic", "steady_embedding_centred", "acoustic_to_spoken", "semantic_bits"} <= set(
        found["totals"]["encoder"]
    )
    assert "steady_acoustic" in found["clips"][0]["scores"]["encoder"]
    assert 'id="pairs"' in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_pairs_of_another_release_are_refused(
    tiny_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = random_shards(tiny_release, tmp_path / "pairs")
    arguments = ["--model-dir", str(DEMO / "release"), "--encoder", str(WITHHELD), "--pairs", str(shards)]
    assert evaluate_encoder.main(arguments) == 2
    assert "was spoken by another release" in capsys.readouterr().err
