"""speak_pairs.py in the server's environment: the codes of its pairs are those that the server plays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import train_encoder
from codec import load_release
from data.pairs import SPOKEN, Pairs
from evaluation.measure import read_pairs
from experiments.cpu_server.server import STAGES, variables_for
from tests.one_step import ALONE
from tests.serving.conftest import PRESETS
from tests.serving.scene import Scene
from tests.serving.server import said
from training.config import load_config
from training.dataset import TrainingData

pytestmark = pytest.mark.served

ROOT = Path(__file__).parents[2]
FRAMES = 6  # as the server is asked for
ENGINE = [f"{key}={str(value).lower()}" for key, value in STAGES["0"].items()]


@pytest.fixture(scope="module")
def spoken(environment: Path, plain: Path, work: Path) -> Path:
    """The first two requests of the other tests' scene as pairs: a file each, so that one comes after the other, and
    with the server's seed."""
    texts, out = work / "texts.txt", work / "pairs"
    texts.write_text("Hello there.\nHello there.\n")
    command = [environment / "bin" / "python", ROOT / "speak_pairs.py", "--model-dir", plain, "--texts", texts]
    command += ["--out", out, "--voices", *PRESETS, "--max-seconds", str(FRAMES * 0.08), "--shard-texts", "1"]
    command += ["--keep", "no end", "length", "loop", "--engine", *ENGINE, "gpu_memory_utilization=0.2"]
    done = subprocess.run(
        list(map(str, command)), env=variables_for(environment), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    said(f"  speak_pairs.py: {done.stdout.strip()}")
    return out


@pytest.fixture(scope="module")
def pairs(spoken: Path, plain: Path) -> Pairs:
    return read_pairs(load_release(plain), [str(spoken)])


def test_the_codes_are_those_that_the_server_plays(pairs: Pairs, without_encoder: Scene) -> None:
    assert pairs.sources == [SPOKEN]
    assert [about.voice for about in pairs.about()] == list(PRESETS)
    assert {about.text for about in pairs.about()} == {"Hello there."}
    for index, name in enumerate(PRESETS):
        played = without_encoder.answers[name].spoken.T - 2  # [37, F]
        frames = min(played.shape[1], int(pairs.lengths[index]))
        assert frames >= FRAMES - 1  # the server does not feed back its last frame
        assert torch.equal(pairs.codes(index)[:, :frames], played[:, :frames])
        said(f"  {name}: {frames * 37} codes equal those that the server plays")


def test_a_training_run_takes_them(spoken: Path, plain: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("losses: {inversion: 5}\nbatch_size: 2\nprecision: fp32\n")
    speech = "data/demo/seen.parquet"
    overrides = [f"model_dir={plain}", f"data.pairs={spoken}", f"data.train={speech}", f"data.validation={speech}"]
    overrides += ["data.crop_seconds=0.32", "data.validation_clips=1", "data.workers=0", f"hf_cache={tmp_path}"]
    training = train_encoder.Trainer(load_config(settings, overrides), ALONE)
    data = TrainingData(training.config, ALONE, training.codec)
    metrics = training.step(next(data.batches(0)).waveform, 0, data.pairs(0))
    assert 0 <= float(metrics["found/acoustic"]) <= 1
    assert training.monitor.found() is None
