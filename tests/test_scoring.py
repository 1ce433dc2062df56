"""Scoring: if the codec or a judge fails on one clip, the others keep their scores."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from codec import Codec
from data import DataError
from evaluation import evaluate, read_speech
from evaluation.judges.quality import Distances
from evaluation.measure import load_encoder

DEMO = Path("data/demo")
WITHHELD = DEMO / "withheld_encoder.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_if_a_judge_fails_on_a_clip_the_reason_is_kept_and_the_other_clips_are_scored(tmp_path: Path) -> None:
    class Failing(Distances):
        def score(self, clip: Any, audio: torch.Tensor) -> Any:
            if clip is speech[0]:
                raise RuntimeError("out of order\nand more of it")
            return super().score(clip, audio)

    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=2)
    codec = load_encoder(DEMO / "release", str(WITHHELD), torch.device("cpu"))
    scores = evaluate(codec, speech, [Failing()])
    assert scores.scored("mel") == [1]
    assert scores.scored("distinct_codes") == [0, 1]
    failed = [(problem.clip, problem.what, problem.reason) for problem in scores.problems if problem.what == "mel"]
    assert failed == [(speech[0].name, "mel", "out of order")]


def test_a_clip_that_cannot_be_encoded_is_named_and_the_others_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(waveform: torch.Tensor) -> torch.Tensor:
        if waveform.shape[-1] == speech[0].waveform.shape[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")
        return whole(waveform)

    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=2)
    codec = load_encoder(DEMO / "release", str(WITHHELD), torch.device("cpu"))
    whole = codec.encode
    monkeypatch.setattr(codec, "encode", encode)
    scores = evaluate(codec, speech, [Distances()])
    assert scores.scored("mel") == scores.scored("distinct_codes") == [1]
    assert [(each.clip, each.what, each.reason) for each in scores.problems if each.what == "clip"] == [
        (speech[0].name, "clip", "CUDA out of memory")
    ]
    with pytest.raises(DataError, match="no clip has codes; the first: CUDA out of memory"):
        evaluate(codec, speech[:1], [Distances()])


def test_a_clip_that_cannot_be_decoded_is_named_and_the_others_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(codes: torch.Tensor) -> torch.Tensor:
        if next(calls) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")
        return whole(codes)

    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=2)
    codec = load_encoder(DEMO / "release", str(WITHHELD), torch.device("cpu"))
    whole, calls = codec.decode, itertools.count()
    monkeypatch.setattr(codec, "decode", decode)
    scores = evaluate(codec, speech, [Distances()])
    assert scores.scored("mel") == [1]
    assert scores.scored("distinct_codes") == [0, 1]
    assert [(each.clip, each.what, each.reason) for each in scores.problems if each.what == "sound"] == [
        (speech[0].name, "sound", "CUDA out of memory")
    ]


def test_codes_are_scored_even_if_float32_codes_cannot_be_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(codec: Codec, waveform: torch.Tensor) -> torch.Tensor:
        if codec.dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")
        return whole(codec, waveform)

    whole = Codec.encode
    monkeypatch.setattr(Codec, "encode", encode)
    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=1)
    codec = load_encoder(DEMO / "release", str(WITHHELD), torch.device("cpu"))
    scores = evaluate(codec, speech, [Distances()])
    assert scores.scored("mel") == scores.scored("distinct_codes") == [0]
    reasons = {each.what: each.reason for each in scores.problems if each.what.startswith("moved")}
    assert reasons == dict.fromkeys(("moved_semantic", "moved_acoustic"), "in float32: CUDA out of memory")
