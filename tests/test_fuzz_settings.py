"""Whatever is in a file of settings, on the command line or in the files of a run: a sentence, and no traceback."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from system.command import UserError
from tests.fuzzing import ODD, cases, mutated, refused_or_taken
from training.checkpoints import STATE, CheckpointError, load_newest
from training.config import Config, ConfigError, dump_config, load_config
from training.output_lock import HOLDER, _described, _holder
from training.progress import keep_lines, whole_lines
from training.same_run import check_same_run

KEYS = re.findall(r"^\| `([\w.]+)`", Path("docs/settings.md").read_text(encoding="utf-8"), re.M)
RECIPE = Path("configs/demo.yaml").read_bytes()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_DIR", "OUTPUT_DIR", "HF_CACHE"):
        monkeypatch.delenv(name, raising=False)


def odd_text(dice: random.Random) -> str:
    return "".join(dice.choice(ODD) for _ in range(dice.randint(1, 3)))


def odd_yaml(dice: random.Random, depth: int = 0) -> str:
    """YAML that may be valid: known and odd keys with known and odd values."""
    kind = dice.choice(["text", "list", "section", "alias"] if depth < 3 else ["text"])
    if kind == "list":
        return f"[{', '.join(odd_yaml(dice, depth + 1) for _ in range(dice.randint(0, 3)))}]"
    if kind == "section":
        keys = [dice.choice(KEYS).rpartition(".")[2] for _ in range(dice.randint(0, 3))]
        return "{" + ", ".join(f"{key}: {odd_yaml(dice, depth + 1)}" for key in keys) + "}"
    if kind == "alias":
        return dice.choice(["&a ", "*a", "&a [*a]", "!x "]) + dice.choice(ODD)
    return dice.choice(
        [odd_text(dice), json.dumps(odd_text(dice)), str(dice.uniform(-10, 10)), str(dice.randrange(100))]
    )


def check_taken(config: object, again: Path) -> None:
    """A configuration that was taken is written and read back the same."""
    if isinstance(config, Config):
        again.write_text(dump_config(config), encoding="utf-8")
        assert load_config(again) == config


def test_a_file_of_settings_is_taken_or_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for dice in cases():
        if dice.random() < 0.5:
            content = mutated(RECIPE, dice)
        else:
            lines = [f"{dice.choice(KEYS).rpartition('.')[2]}: {odd_yaml(dice)}" for _ in range(dice.randint(1, 5))]
            content = "\n".join(lines).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        check_taken(refused_or_taken(lambda: load_config(path), ConfigError), tmp_path / "again.yaml")


def test_a_command_line_is_taken_or_refused_in_a_sentence(tmp_path: Path) -> None:
    for dice in cases():
        overrides = []
        for _ in range(dice.randint(1, 3)):
            key = dice.choice(KEYS) if dice.random() < 0.8 else odd_text(dice)
            value = odd_text(dice) if dice.random() < 0.5 else odd_yaml(dice)
            overrides.append(dice.choice([f"{key}={value}", f"{key}.{value}", f"{key}={value}={value}", value]))
        config = refused_or_taken(lambda: load_config("configs/demo.yaml", overrides), ConfigError)  # noqa: B023
        check_taken(config, tmp_path / "again.yaml")


def test_the_configuration_of_a_checkpoint_is_taken_or_refused_in_a_sentence() -> None:
    now = dump_config(load_config("configs/demo.yaml"))
    for dice in cases():
        before = mutated(now.encode(), dice).decode(errors="replace")
        refused_or_taken(lambda: check_same_run(before, now, odd_text(dice)), ConfigError)  # noqa: B023


def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    parts = {name: {"weight": torch.ones(50)} for name in ("trained", "ema", "quantizer", "best")}
    whole: dict[str, Any] = {"step": 1, "config": "steps: 1", "clips_seen": 1, **parts}
    path = tmp_path / "step_0000001" / STATE
    path.parent.mkdir()
    torch.save(whole, path)
    content = path.read_bytes()
    for dice in cases():
        path.write_bytes(mutated(content, dice))
        state = refused_or_taken(lambda: load_newest(tmp_path), CheckpointError)
        assert state is None or (isinstance(state, dict) and state.keys() >= whole.keys())


def test_damaged_files_of_a_run_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"step": step, "mel": 1.0}) + "\n" for step in range(30))
    holder = json.dumps({"pid": "1", "host": "node7", "started": "2026-03-01 10:00:00", "job": ""})
    for dice in cases():
        (tmp_path / "metrics.jsonl").write_bytes(mutated(lines.encode(), dice))
        refused_or_taken(lambda: keep_lines(tmp_path / "metrics.jsonl", 20), UserError)
        kept = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]]
        assert all(0 <= step <= 20 for step in kept)
        refused_or_taken(lambda: whole_lines(tmp_path / "metrics.jsonl"), UserError)
        (tmp_path / HOLDER).write_bytes(mutated(holder.encode(), dice))
        assert refused_or_taken(lambda: _described(_holder(tmp_path)), UserError)
