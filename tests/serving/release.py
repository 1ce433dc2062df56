"""The demo's release, which the server serves: a trained codec, a language model that speaks, and preset voices."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path

import inject_encoder
import patch_tokenizer
from release.changes import STATE

DEMO = Path("data/demo")
WITHHELD_ENCODER = DEMO / "withheld_encoder.safetensors"


def write_served_release(folder: Path) -> Path:
    """Copies the demo's release, which has no encoder."""
    return Path(shutil.copytree(DEMO / "release", folder))


def fingerprints(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file of the release, without the state of patch_tokenizer.py."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items() if not name.startswith(STATE)}


def inject(folder: Path, *arguments: str) -> None:
    assert inject_encoder.main(["--model-dir", str(folder), "--encoder", str(WITHHELD_ENCODER), *arguments]) == 0


def patch(folder: Path, *arguments: str) -> int:
    return patch_tokenizer.main(["--model-dir", str(folder), *arguments])
