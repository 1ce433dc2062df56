"""One odd clip among good ones ends nothing: it is used, or skipped and named, in training, evaluation and export."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

import evaluate_encoder
import train_encoder
from codec import load_release
from codec.checkpoint import save_encoder
from data import open_clips
from data.export import Writer, folder_name
from evaluation import read_speech
from evaluation.judges.available import NAMES
from experiments.random_speech import audio_bytes
from tests.fuzzing import bounded
from training.config import load_config
from training.distributed import Ranks

LATIN_1 = os.fsdecode(b"caf\xe9.wav")


def gsm() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.random.default_rng(0).standard_normal(8000), 8000, "GSM610", format="WAV")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good clips, a good one and a broken one with names that are no UTF-8, and one of each odd kind."""
    flac, one_hertz = bytearray(audio_bytes(1.0, kind="FLAC")), bytearray(audio_bytes(1.0))
    flac[21] |= 0x0F
    one_hertz[24:28] = (1).to_bytes(4, "little")
    files = {
        "a.wav": audio_bytes(1.0),
        "b.wav": audio_bytes(1.1),
        "声.wav": audio_bytes(1.2),
        LATIN_1: b"RIFF no audio",
        f"good {LATIN_1}": audio_bytes(1.3),
        "two\nlines.wav": b"",
        "lying.flac": bytes(flac),
        "telephone.wav": gsm(),
        "one hertz.wav": bytes(one_hertz),
    }
    folder = tmp_path / "speech"
    for name, content in files.items():
        path = folder / os.fsdecode(b"s\xe9") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.mkfifo(folder / "pipe.wav")
    (folder / "nowhere.wav").symlink_to("gone.wav")
    return folder


def test_training_names_the_clips_that_it_skips(settings: Path, folder: Path) -> None:
    values = yaml.safe_load(settings.read_text())
    values["data"] |= {"train": str(folder), "resample": True}
    values |= {"steps": 2, "batch_size": 6}
    settings.write_text(yaml.safe_dump(values))
    config = load_config(settings)
    train_encoder.train(config, Ranks(0, 1, torch.device("cpu")))
    skipped = (Path(config.output_dir) / "skipped_clips.txt").read_text(encoding="utf-8").splitlines()
    names = {Path(line.split(": ")[0].split(" (")[0]).name for line in skipped}
    assert {name.rpartition(".")[0] for name in names} == {
        *(r"caf\xe9", r"two\nlines", "lying", "one hertz", "pipe", "nowhere")
    }


def test_evaluation_and_its_report_name_the_clips_that_cannot_be_scored(
    folder: Path, tmp_path: Path, tiny_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(encoder, load_release(tiny_release, torch.float32).with_new_encoder("mirror"), {"step": 0})
    arguments = ["--model-dir", tiny_release, "--encoder", encoder, "--data", folder]
    arguments += ["--report", tmp_path / "report", "--json", tmp_path / "figures", "--shown", "1"]
    without = ["--device", "cpu", "--jobs", "1", "--without", *NAMES, "speed"]
    assert evaluate_encoder.main([*map(str, arguments), *without]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "figures").read_text())
    scored = {"a.wav", "b.wav", "声.wav", r"good caf\xe9.wav", "telephone.wav"}
    assert {clip["name"] for clip in figures["clips"]} == scored
    named = {problem["clip"] for problem in figures["problems"] if problem["what"] == "clip"}
    assert named == {*(r"caf\xe9.wav", r"two\nlines.wav", "lying.flac", "one hertz.wav", "pipe.wav", "nowhere.wav")}
    assert all(name in page for name in scored)
    assert r"s\xe9" in page  # the speaker
    assert capsys.readouterr().out.count("not scored: ") == 6


def test_an_evaluation_of_odd_clips_only_is_one_sentence(folder: Path) -> None:
    with bounded():
        speech, problems, _ = read_speech([str(folder)])
    assert (len(speech), len(problems)) == (5, 6)
    assert speech[0].speaker == r"s\xe9"


def test_an_export_leaves_them_out_and_stays_in_its_folder(folder: Path, tmp_path: Path) -> None:
    clips = open_clips([str(folder)])
    write = Writer(clips, tmp_path / "out")
    problems = [text for text in map(write, range(len(clips))) if text]
    assert len(problems) == 5  # the file whose header lies is read to its end
    assert all(len(text.splitlines()) == 1 for text in problems)
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 6
    for speaker, name in (("..", "unknown"), ("", "unknown"), ("a/../b", "a_.._b"), ("é" * 200, "é" * 100)):
        assert folder_name(speaker) == name
