"""The documents agree with the code: settings, links, and the programs and options that their commands name."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config import RENAMED, Config, Data, Discriminator, Losses, Optimizer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "docs/audio", "experiments", "experiments/results", "data/demo")
    for path in (ROOT / folder).glob("*.md")
)
SECTIONS = {"data": Data, "losses": Losses, "discriminator": Discriminator, "optimizer": Optimizer}
COMMAND = re.compile(r"(?:python|torchrun)\b[^\n`]*?(?:-m ([\w.]+)|(\w[\w/]*\.py))((?:\\\n|[^\n`])*)")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def defaults() -> dict[str, Any]:
    own = {field.name: field.default for field in fields(Config) if field.name not in SECTIONS}
    for section, cls in SECTIONS.items():
        assert is_dataclass(cls)
        own |= {f"{section}.{field.name}": field.default for field in fields(cls)}
    return own


def test_every_setting_is_documented_with_its_default_and_the_recipes_value() -> None:
    table = [line.split("|") for line in text("docs/settings.md").splitlines() if line.startswith("| `")]
    rows = {row[1].strip(" `"): [cell.strip(" `") for cell in row[2:4]] for row in table if len(row) == 6}
    expected = defaults()
    assert rows.keys() == expected.keys()
    recipe = yaml.safe_load(text("configs/v3.yaml"))
    for name, default in expected.items():
        shown, changed = rows[name]
        if isinstance(default, tuple):  # sources
            assert shown == "none"
            continue
        assert ("" if shown == "empty" else yaml.safe_load(shown)) == default, name
        value: Any = recipe
        for key in name.split("."):
            value = value.get(key, default) if isinstance(value, dict) else default
        assert value == (yaml.safe_load(changed) if changed else default), name


def test_every_renamed_setting_is_documented() -> None:
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{new}` |" in text("docs/settings.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


@pytest.mark.parametrize("page", PAGES)
def test_every_command_names_a_program_and_its_options(page: str) -> None:
    for module, script, rest in COMMAND.findall(text(page)):
        if module in ("venv", "pip"):
            continue
        file = ROOT / (f"{module.replace('.', '/')}.py" if module else script)
        if not file.exists():  # `python -m` of a package
            file = file.with_suffix("") / "__main__.py"
        assert file.exists(), file
        source = file.read_text(encoding="utf-8")
        if "import evaluate_encoder" in source:  # it has all options of that program, too
            source += text("evaluate_encoder.py")
        if "import add_judge_options" in source:
            source += text("evaluation/arguments.py")
        for option in re.findall(r"\s(--[a-z][\w-]*)", rest.split(" && ")[0].split("#")[0]):
            assert f'"{option}"' in source, f"{file.name} has no option {option}"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_the_documents_exists(page: str) -> None:
    folders = "codec|configs|data|docs|evaluation|examples|experiments|losses|release|system|tests|training"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text(page)):
        assert (ROOT / path).exists() or (ROOT / page).parent.joinpath(path).exists(), path


def test_every_file_of_the_architectures_tables_exists_and_every_file_has_a_row() -> None:
    tables = re.findall(
        r"^\| (file|helper) in `([\w/]+)/` \|.*\n\|---\|---\|\n((?:\|.*\n)+)", text("ARCHITECTURE.md"), re.M
    )
    assert len(tables) >= 10
    for kind, folder, rows in tables:
        cells = [row.split("|")[1] for row in rows.splitlines()]
        named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
        for name in named:
            assert (ROOT / folder / name).exists(), f"{folder}/{name}"
        files = (ROOT / folder).rglob("*.py") if kind == "file" else (ROOT / folder).glob("*.py")
        for file in sorted(files):
            path = file.relative_to(ROOT / folder).as_posix()
            known = any(path == name or (name.endswith("/") and path.startswith(name)) for name in named)
            assert known or path.endswith("__init__.py") or path.startswith("test_"), f"{file} is in no table"


def test_every_test_that_the_architecture_names_exists() -> None:
    for name in re.findall(r"`(?:tests/)?((?:serving/)?test_\w+\.py)`", text("ARCHITECTURE.md")):
        assert (ROOT / "tests" / name).exists(), name


def test_the_readme_can_be_read_in_ten_minutes() -> None:
    assert len(text("README.md").encode()) <= 9500
