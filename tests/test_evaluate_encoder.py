"""evaluate_encoder.py as it is run: the withheld encoder against itself, an untrained one, and bad input."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import evaluate_encoder
from codec import load_release
from codec.checkpoint import save_encoder
from data.reference import SAMPLE_RATE
from evaluation import measure, read_speech, speed
from evaluation.arguments import default_jobs
from evaluation.judges.available import NAMES
from evaluation.provenance import machine
from evaluation.speed import RUNS, timed
from experiments import results_tables
from losses.mel import MelDistance
from tests.run_metrics import METRICS

DEMO = Path("data/demo")
WITHHELD = DEMO / "withheld_encoder.safetensors"
WITHOUT_SLOW = ("--device", "cpu", "--without", "words", "wavlm", "ecapa", "quality")
QUICK = (*WITHOUT_SLOW, "resemblyzer")
CLIPS = 2

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_CACHE", str(tmp_path_factory.getbasetemp() / "evaluated"))
    monkeypatch.delenv("MODEL_DIR", raising=False)


@pytest.fixture(autouse=True)
def short_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed is measured with 1 s of speech, not 10: that took a third of these tests' time."""
    monkeypatch.setattr(speed, "PROMPT_SECONDS", 1.0)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder, with another seed than the evaluation's own."""
    torch.manual_seed(7)
    codec = load_release(DEMO / "release", torch.float32).with_new_encoder()
    path = tmp_path_factory.mktemp("untrained") / "encoder.safetensors"
    save_encoder(path, codec, {"step": 0})
    return path


def _run(*arguments: str | Path, judges: Sequence[str] = QUICK) -> int:
    return evaluate_encoder.main(["--model-dir", str(DEMO / "release"), *judges, *map(str, arguments)])


def _figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_withheld_encoder_against_itself_recovers_everything_and_the_evaluation_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for name in ("first", "second"):
        arguments: tuple[str | Path, ...] = ("--encoder", WITHHELD, "--against", WITHHELD, "--clips", str(CLIPS))
        arguments += ("--json", tmp_path / name, "--require", "recovered.mel>=1")
        assert _run(*arguments, judges=WITHOUT_SLOW) == 0
        texts.append(capsys.readouterr().out.split("\ncpu: ")[0])
    assert texts[0] == texts[1]
    assert (
        "\nResampler: soxr HQ, to 24000 Hz and from it; for ECAPA torchaudio's, for ESTOI pystoi's; seed 0; python "
        in texts[0]
    )
    assert "\nmel distance: L1 of natural-log mel magnitudes, 80 bands" in texts[0]
    found, again = _figures(tmp_path / "first"), _figures(tmp_path / "second")
    assert found | {"speed": {}} == again | {"speed": {}}

    compared = found["compared"]
    assert all(each["difference"]["value"] == 0 for each in compared.values())
    recovered = {name: each["recovered"] for name, each in compared.items() if each["recovered"]}
    assert all(each == {"value": 1, "low": 1, "high": 1} for each in recovered.values())
    assert {"mel", "estoi", "equal_semantic", "equal_acoustic", "embedding_agreement"} <= set(recovered)
    assert found["totals"]["encoder"]["equal_semantic"]["value"] == 1
    assert found["settings"]["versions"]["torch"] == torch.__version__
    settings = found["settings"]
    size = (DEMO / "release" / "consolidated.safetensors").stat().st_size
    assert settings["release_files"]["consolidated.safetensors"] == size
    assert (settings["clips"], settings["extra_systems"]) == (CLIPS, {})
    assert settings["without"] == ["words", "wavlm", "ecapa", "quality"]
    assert platform.machine() in settings["machine"]
    assert settings["machine"].endswith(" 1 threads")
    digest = hashlib.sha256(WITHHELD.read_bytes()).hexdigest()
    assert found["encoders"]["encoder"]["sha256"] == found["encoders"]["against"]["sha256"] == digest
    assert found["speed"]["cpu"]["latency"] > 0
    assert len(found["clips"]) == CLIPS
    assert {"mel", "pesq", "distinct_codes", "speaker_resemblyzer"} <= set(found["clips"][0]["scores"]["encoder"])
    for shares in found["acoustic_histogram"].values():
        assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in shares)


def test_an_untrained_encoder_recovers_almost_nothing_and_fails_a_requirement(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--encoder", untrained, "--against", WITHHELD, "--clips", str(CLIPS), "--json", tmp_path / "json")
    assert _run(*arguments, "--require", "recovered.mel>=0.5", "--require", "mel>0") == 1
    assert "required recovered.mel>=0.5: it is" in capsys.readouterr().err
    compared = _figures(tmp_path / "json")["compared"]
    assert abs(compared["mel"]["recovered"]["value"]) < 0.1
    assert abs(compared["equal_semantic"]["recovered"]["value"]) < 0.1


def test_each_of_several_encoders_is_compared_as_if_alone_and_requirements_are_about_the_first(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--against", WITHHELD, "--clips", str(CLIPS), "--require", "recovered.mel<0.5", "--json")
    both = (f"new={untrained}", f"good={WITHHELD}")
    assert _run("--encoder", *both, *rest, tmp_path / "both", "--report", tmp_path / "report") == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert _run("--encoder", untrained, *rest, tmp_path / "alone") == 0
    found, alone = _figures(tmp_path / "both"), _figures(tmp_path / "alone")
    assert list(found["totals"]) == ["new", "good", "against", "untrained", "original"]
    assert found["totals"]["new"] == alone["totals"]["encoder"]
    assert found["totals"]["good"] == found["totals"]["against"]
    assert found["totals"]["untrained"] == alone["totals"]["untrained"]
    assert found["compared"] == found["comparisons"]["new"] == alone["compared"] == alone["comparisons"]["encoder"]
    assert {each["difference"]["value"] for each in found["comparisons"]["good"].values()} == {0}
    assert found["comparisons"]["good"]["mel"]["recovered"]["value"] == 1
    digest = hashlib.sha256(untrained.read_bytes()).hexdigest()
    assert found["encoders"]["new"] == {"file": str(untrained), "sha256": digest, "step": 0}
    printed = capsys.readouterr().out
    for column in ("new: difference", "new: recovered", "good: difference", "good: recovered"):
        assert column in printed
        assert column in page
    assert "<h4><kbd>3</kbd> good</h4>" in page
    assert results_tables.main([str(tmp_path / "both")]) == 0
    tables = capsys.readouterr().out
    assert "| metric | new | good | untrained | against | original |" in tables
    assert "\nnew: 0 of " in tables


def test_clips_are_computed_as_on_the_server_and_measured_as_in_training(tmp_path: Path) -> None:
    """Against the same arithmetic written out: bf16, one clip at a time, hard codes, the training's mel distance."""
    assert _run("--encoder", WITHHELD, "--clips", "2", "--json", tmp_path / "json") == 0
    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=2)
    codec = measure.load_encoder(DEMO / "release", str(WITHHELD), torch.device("cpu"))
    for clip, found in zip(speech, _figures(tmp_path / "json")["clips"], strict=True):
        waveform = clip.waveform[None, None]
        codes = codec.encode(waveform.bfloat16())
        decoded = codec.decode(codes)[..., : waveform.shape[-1]].clamp(-1, 1)
        assert found["scores"]["encoder"]["mel"] == pytest.approx(float(MelDistance(SAMPLE_RATE)(decoded, waveform)))
        assert found["scores"]["encoder"]["distinct_codes"] == codes[0, 0].unique().numel()


def test_if_the_memory_is_too_small_for_the_speed_this_is_reported_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")

    monkeypatch.setattr(measure, "measure_speed", fail)
    arguments = ("--encoder", WITHHELD, "--clips", "1", "--json", tmp_path / "json")
    assert _run(*arguments, "--without", *NAMES[1:], judges=("--device", "cpu")) == 0
    found, out = _figures(tmp_path / "json"), capsys.readouterr().out
    assert found["totals"]["encoder"]["mel"]["value"] > 0
    assert found["left_out"]["speed on cpu"] == "CUDA out of memory"
    assert "left out: speed on cpu: CUDA out of memory" in out


def test_bad_clips_are_named_and_the_others_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=1)[0][0].waveform
    folder = tmp_path / "speech"
    folder.mkdir()
    soundfile.write(folder / "good.wav", good, SAMPLE_RATE)
    soundfile.write(folder / "at_16_khz.wav", good[:48000], 16000)
    soundfile.write(folder / "silent.wav", torch.zeros(24000), SAMPLE_RATE)
    soundfile.write(folder / "tenth_of_a_second.wav", good[24000:26400], SAMPLE_RATE)
    (folder / "broken.wav").write_bytes(b"RIFF, and then nothing")
    soundfile.write(folder / "shorter_than_a_window.wav", good[24000:26000], SAMPLE_RATE)
    assert _run("--encoder", WITHHELD, "--data", folder, "--json", tmp_path / "json") == 0
    found = _figures(tmp_path / "json")
    names = ["at_16_khz.wav", "good.wav", "shorter_than_a_window.wav", "tenth_of_a_second.wav"]
    assert [clip["name"] for clip in found["clips"]] == names
    problems = {(problem["clip"], problem["what"]) for problem in found["problems"]}
    assert {("silent.wav", "clip"), ("broken.wav", "clip")} <= problems
    assert {("tenth_of_a_second.wav", "pesq"), ("tenth_of_a_second.wav", "estoi")} <= problems
    assert ("shorter_than_a_window.wav", "mel") in problems
    assert {"mel", "distinct_codes"} <= set(found["clips"][3]["scores"]["encoder"])
    assert found["totals"]["encoder"]["pesq"]["clips"] == 2
    assert any("resampled" in note for note in found["notes"])
    out = capsys.readouterr().out
    assert "silent.wav is silent" in out
    assert "not scored: tenth_of_a_second.wav: pesq" in out


def test_a_clip_without_transcript_has_all_scores_but_the_word_errors_against_it(tmp_path: Path) -> None:
    good = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path / "cache"), limit=1)[0][0].waveform
    for name in ("with", "without"):
        folder = tmp_path / "corpus" / "speaker" / name
        folder.mkdir(parents=True)
        soundfile.write(folder / f"{name}.wav", good, SAMPLE_RATE)
    (folder.parent / "with" / "with.normalized.txt").write_text("words")
    arguments = ("--encoder", WITHHELD, "--data", tmp_path / "corpus", "--json", tmp_path / "json")
    assert _run(*arguments, "--without", *NAMES[1:], "speed", judges=()) == 0
    found = _figures(tmp_path / "json")
    clips = [(clip["name"], clip["speaker"], clip["text"]) for clip in found["clips"]]
    assert clips == [("with.wav", "speaker", "words"), ("without.wav", "speaker", "")]
    assert found["clips"][0]["scores"] == found["clips"][1]["scores"]
    assert found["problems"] == []


def test_a_row_without_transcript_is_read_with_an_empty_text(tmp_path: Path) -> None:
    rows = pq.read_table(DEMO / "unseen.parquet").slice(0, 2).to_pylist()
    rows[0]["text_normalized"], rows[1]["speaker_id"] = None, None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    speech, problems, _ = read_speech([str(tmp_path / "rows.parquet")], str(tmp_path / "cache"))
    assert [clip.text for clip in speech] == ["", rows[1]["text_normalized"]]
    assert [clip.speaker for clip in speech] == [rows[0]["speaker_id"], ""]
    assert problems == []


def test_on_a_gpu_the_warm_up_run_ends_before_the_first_counted_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> torch.Tensor:
        happened.append("work")
        return torch.ones(1)

    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("ended"))
    taken, found = timed(work, torch.device("cuda"))
    assert happened == ["work", "ended"] * (RUNS + 1)
    assert len(taken) == RUNS
    assert found == 1


def test_beside_a_gpu_the_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert machine(torch.device("cuda")) == f"a card; {machine(torch.device('cpu'))}"


def test_a_metric_whose_library_is_missing_is_left_out_with_its_reason_and_not_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    arguments = ("--encoder", WITHHELD, "--clips", "1", "--json", tmp_path / "json")
    assert _run(*arguments, "--require", "pesq>=1") == 1
    found, printed = _figures(tmp_path / "json"), capsys.readouterr()
    assert "left out: pesq:" in printed.out
    assert "pesq was not measured" in printed.err
    assert "pesq" in found["left_out"]
    assert "pesq" not in found["totals"]["encoder"]


def test_nan_weights_are_an_error_and_get_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = measure.load_encoder(DEMO / "release", str(WITHHELD), torch.device("cpu"))
    for parameter in codec.get_submodule("encoder").parameters():
        parameter.fill_(torch.nan)
    save_encoder(tmp_path / "broken.safetensors", codec, {})
    assert _run("--encoder", tmp_path / "broken.safetensors", "--clips", "1") == 2
    assert "no clip has codes; the first: codes out of range" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (2, 1), (7, 3), (128, 16)])
def test_the_default_is_a_judge_process_for_every_second_core_and_at_most_16(
    cores: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert default_jobs() == jobs


def test_a_release_without_an_encoder_is_an_error_that_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 2
    error = capsys.readouterr().err
    assert "has no encoder" in error
    assert "--encoder" in error
    assert error.count("\n") == 1


def test_an_injected_encoder_is_found_in_its_release(tmp_path: Path) -> None:
    release = tmp_path / "release"
    shutil.copytree(DEMO / "release", release)
    shutil.copyfile(WITHHELD, release / "consolidated_encoder.safetensors")
    figures = [tmp_path / "own", tmp_path / "given"]
    arguments = [*QUICK, "--clips", "1", "--json"]
    assert evaluate_encoder.main(["--model-dir", str(release), *arguments, str(figures[0])]) == 0
    assert _run("--encoder", WITHHELD, "--clips", "1", "--json", figures[1]) == 0
    assert _figures(figures[0])["totals"] == _figures(figures[1])["totals"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--encoder", "no.safetensors"], "does not exist"),
        (["--encoder", DEMO / "release" / "consolidated.safetensors"], "lacks 114 tensors"),
        (["--encoder", WITHHELD, "--data", "nowhere"], "does not exist"),
        (["--encoder", WITHHELD, WITHHELD], "NAME=FILE"),
        (["--encoder", f"one={WITHHELD}", "one=other"], "another one is called 'one'"),
        (["--encoder", f"untrained={WITHHELD}"], "cannot be an encoder's name"),
        (["--encoder", f"={WITHHELD}"], "cannot be an encoder's name"),
        (["--encoder", WITHHELD, "--require", "pesq"], "expected a metric"),
        (["--encoder", WITHHELD, "--metrics", "README.md"], "line 1"),
        (["--encoder", WITHHELD, "--json", "nowhere/figures.json"], "nowhere is not a folder"),
        (["--encoder", WITHHELD, "--json", "data"], "--json: data is a folder: name a file in it"),
        (
            ["--encoder", WITHHELD, "--report", "README.md"],
            "--report: README.md is not a folder: name a folder, which need not exist yet",
        ),
        (
            ["--encoder", WITHHELD, "--report", "README.md/report"],
            "--report: README.md is not a folder: name a folder, which need not exist yet",
        ),
    ],
)
def test_other_bad_arguments_are_one_sentence_and_status_2(
    arguments: list[str | Path], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error


def test_an_encoder_of_another_codec_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    codec = load_release(DEMO / "release", torch.float32).with_new_encoder()
    codec.quantizer.semantic_codebook.embedding_sum += 1
    save_encoder(tmp_path / "other.safetensors", codec, {})
    assert _run("--encoder", tmp_path / "other.safetensors") == 2
    assert "another codec" in capsys.readouterr().err


def test_the_report_is_written_and_its_path_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text(METRICS, encoding="utf-8")
    arguments = ("--encoder", WITHHELD, "--clips", "1", "--shown", "1", "--metrics", tmp_path / "metrics.jsonl")
    assert _run(*arguments, "--report", tmp_path / "report") == 0
    page = tmp_path / "report" / "index.html"
    assert f"report: {page}" in capsys.readouterr().out
    assert "Training" in page.read_text(encoding="utf-8")
