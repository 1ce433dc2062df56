"""The demo's stand-in: what ships, and parity with the server's class on trained weights and real speech."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import patch_tokenizer
from codec import Codec, load_release
from codec.checkpoint import checkpoint_tensors, codec_fingerprint, with_encoder
from codec.tensors import expected_encoder
from data.pairs import SPOKEN
from evaluation.measure import read_pairs
from evaluation.server_codec import load_server_codec
from examples.demo import fresh_release, shortcomings, table, unseen_clips
from losses.mel import MelDistance
from system.command import UserError
from tests.injecting import read_encoder

DEMO = Path("data/demo")


@pytest.fixture(scope="module")
def withheld() -> Codec:
    return with_encoder(load_release(DEMO / "release"), DEMO / "withheld_encoder.safetensors")


def test_the_release_lacks_its_encoder_and_the_withheld_one_is_its_own(withheld: Codec) -> None:
    release = load_release(DEMO / "release")
    assert not release.has_encoder
    tensors, metadata = read_encoder(DEMO / "withheld_encoder.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected_encoder(release.config)
    assert metadata["codec_fingerprint"] == codec_fingerprint(release)


def test_it_ships_in_65_mb() -> None:
    assert (
        sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        < 65e6
    )


def test_every_clip_has_a_source_and_none_a_licence_that_binds_the_project() -> None:
    clips = {row["id"] for name in ("seen", "unseen") for row in pq.read_table(DEMO / f"{name}.parquet").to_pylist()}
    with (DEMO / "sources.csv").open(encoding="utf-8") as file:
        sources = {row["id"]: row["licence"] for row in csv.DictReader(file)}
    assert clips == set(sources)
    assert not any("SA" in licence or not licence for licence in sources.values())


def test_no_unseen_speaker_is_among_the_seen() -> None:
    speakers = [set(pq.read_table(DEMO / f"{name}.parquet")["speaker_id"].to_pylist()) for name in ("seen", "unseen")]
    assert not speakers[0] & speakers[1]


def test_the_servers_class_computes_the_same_codes_embeddings_and_audio_on_speech(
    withheld: Codec, tmp_path: Path
) -> None:
    (tmp_path / "params.json").write_bytes((DEMO / "release" / "params.json").read_bytes())
    save_file(checkpoint_tensors(withheld), tmp_path / "consolidated.safetensors")
    server = load_server_codec(tmp_path)
    for clip in unseen_clips()[::8]:
        codes = withheld.encode(clip)
        assert torch.equal(codes, server._tokenize_audio(clip.bfloat16()))
        assert torch.equal(withheld.embed(codes)[0], server.encode_waveforms([clip[0, 0].bfloat16()])[0])
        assert torch.equal(withheld.decode(codes), server.decode(codes, dtype=torch.bfloat16).float())


def test_its_voices_are_named_everywhere_as_the_server_wants_it(capsys: pytest.CaptureFixture[str]) -> None:
    patch_tokenizer.main(["--model-dir", str(DEMO / "release"), "--check"])
    assert "speaks with 20 named voices, of which 0 were added" in capsys.readouterr().out


def test_its_pairs_are_spoken_by_the_language_model_and_belong_to_its_codec(withheld: Codec) -> None:
    pairs = read_pairs(withheld, [str(DEMO / "pairs")])
    assert pairs.sources == [SPOKEN]
    assert len({about.voice for about in pairs.about()}) == 20


@pytest.mark.parametrize(("recovered", "failures"), [(0.85, 0), (0.7, 1), (None, 1)])
def test_the_demo_fails_with_an_encoder_no_better_than_its_start(recovered: float | None, failures: int) -> None:
    found = {"compared": {"mel": {"recovered": recovered and {"value": recovered}}}}
    assert len(shortcomings(found, [True, True])) == failures
    assert len(shortcomings(found, [True, False])) == failures + 1


def test_the_table_has_a_column_under_each_heading_and_a_dash_for_what_was_not_measured() -> None:
    totals = {"untrained": {"mel": {"value": 7.0}}, "encoder": {"mel": {"value": 1.0}}, "against": {}}
    found = {"totals": totals, "compared": {"mel": {"recovered": {"value": 0.9}}, "sem_util": {"recovered": None}}}
    lines = table(found).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[:3] for line in lines[1:]] == [
        ["untrained", "7.000", "–"],
        ["trained", "1.000", "–"],
        ["withheld", "–", "–"],
        ["recovered", "90%", "–"],
    ]


def test_a_new_demo_replaces_an_earlier_one_and_deletes_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    assert fresh_release(output) == output / "release"
    (output / "report").mkdir()
    fresh_release(output)
    assert [path.name for path in output.iterdir()] == ["release"]
    (tmp_path / "thesis.txt").write_text("four years")
    (tmp_path / "demo").rename(tmp_path / "other")
    with pytest.raises(UserError, match="has other files than a demo's"):
        fresh_release(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_the_withheld_encoder_is_worth_recovering(withheld: Codec) -> None:
    """The demo's measure means something only if the stand-in is far better than an untrained encoder."""
    clips = unseen_clips()[::8]
    torch.manual_seed(0)
    untrained = load_release(DEMO / "release", torch.float32).with_new_encoder().to(torch.bfloat16)
    mel = MelDistance(withheld.sample_rate)

    def distance(codec: Codec) -> float:
        sounds = [codec.decode(codec.encode(clip))[..., : clip.shape[-1]] for clip in clips]
        return sum(float(mel(sound, clip)) for sound, clip in zip(sounds, clips, strict=True)) / len(clips)

    assert distance(withheld) < 0.3 * distance(untrained)
