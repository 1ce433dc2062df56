"""Settings: what is read, what wins, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from data import Source
from training.checkpoints import check_same_run
from training.config import RENAMED, ConfigError, dump_config, load_config

MINIMAL = {"model_dir": "somewhere", "data": {"train": ["a"], "validation": "b"}}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_DIR", "OUTPUT_DIR", "HF_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_the_command_line_beats_the_environment_and_that_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(file).model_dir == "somewhere"
    monkeypatch.setenv("MODEL_DIR", "/environment")
    assert load_config(file).model_dir == "/environment"
    assert load_config(file, ["model_dir=/argument"]).model_dir == "/argument"


def test_overrides_reach_into_sections_and_keep_their_types(file: Path) -> None:
    config = load_config(file, ["losses.mel=2", "optimizer.lr=1e-4", "compile=true", "data.train=[x, y]", "steps=7"])
    assert (config.losses.mel, config.optimizer.lr, config.compile, config.steps) == (2.0, 1e-4, True, 7)
    assert config.data.train == (Source("x"), Source("y"))
    assert config.data.validation == (Source("b"),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bach_size=3", "nearest known one is batch_size"),
        ("losses.mell=3", "nearest known one is losses.mel"),
        ("steps=many", "steps is 'many', expected a whole number"),
        ("steps=0", "steps is 0, expected 1 or more"),
        ("losses.mel=-1", "losses.mel is -1.0, expected 0 or more"),
        ("optimizer.lr=0", "optimizer.lr is 0.0, expected more than 0"),
        ("optimizer.beta1=1", "optimizer.beta1 is 1.0, expected 0 or more and less than 1"),
        ("compile=1", "compile is 1, expected true or false"),
        ("precision=fp16", "precision is 'fp16', expected 'bf16' or 'fp32'"),
        ("losses=3", "losses is 3, expected a section"),
        ("losses.asr_every=0", "losses.asr_every is 0, expected 1 or more"),
        ("losses.diversity_temperature=0", "losses.diversity_temperature is 0.0, expected more than 0"),
        ("steps", "expected key=value"),
        ("model_dir=", "set MODEL_DIR"),
        ("data.train=[]", "data.train is empty"),
    ],
)
def test_what_cannot_be_run_is_refused_with_key_value_and_expectation(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, [override])
    assert message in str(error.value)


def test_a_file_that_is_not_there_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")


def test_a_written_configuration_reads_back_the_same(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["losses.l1=0.25"])
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


def test_a_checkpoint_of_another_configuration_is_refused_with_the_keys(file: Path) -> None:
    before = dump_config(load_config(file))
    check_same_run(
        before,
        dump_config(load_config(file, ["steps=5", "save_every=9", "activation_checkpointing=true", "accumulate=2"])),
    )
    with pytest.raises(ConfigError, match=r"losses\.mel \(4\.0 there, 2\.0 now\), seed \(0 there, 1 now\)"):
        check_same_run(before, dump_config(load_config(file, ["losses.mel=2", "seed=1"])))


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_old_name_of_a_setting_is_refused_with_the_new_one(file: Path, old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{old} was renamed: write {new}")):
        load_config(file, [f"{old}=0"])


def test_a_checkpoint_with_the_old_names_of_settings_is_the_same_run(file: Path) -> None:
    now = dump_config(load_config(file))
    before = now
    for old, new in RENAMED.items():
        before = before.replace(f" {new.rpartition('.')[2]}:", f" {old.rpartition('.')[2]}:")
    assert before != now
    check_same_run(before, now)


def test_a_crop_has_to_fit_into_the_teachers_window(file: Path) -> None:
    window = ["losses.asr_context_seconds=3", "data.crop_seconds=4"]
    assert load_config(file, window).losses.asr == 0
    with pytest.raises(ConfigError, match=r"data\.crop_seconds is 4\.0, expected at most .* 3\.0"):
        load_config(file, [*window, "losses.asr=1"])


def test_a_file_changes_the_settings_of_its_base(file: Path) -> None:
    file.with_name("other.yaml").write_text("base: run.yaml\nlosses:\n  mel: 2\ndata:\n  train: [c]\n")
    config = load_config(file.with_name("other.yaml"))
    assert (config.model_dir, config.losses.mel, config.losses.stft) == ("somewhere", 2.0, 1.0)
    assert config.data.train == (Source("c"),)
    assert config.data.validation == (Source("b"),)


def test_a_base_that_is_not_there_is_named(file: Path) -> None:
    file.write_text("base: gone.yaml\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        load_config(file)


@pytest.mark.parametrize("path", sorted(Path("configs").rglob("*.yaml")), ids=str)
def test_every_file_of_settings_can_be_read(path: Path) -> None:
    speech = [] if "v3" in path.name else ["data.train=a", "data.validation=b"]
    assert load_config(path, ["model_dir=somewhere", *speech]).steps > 0
