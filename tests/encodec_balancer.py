"""EnCodec's own balancer, for comparison: the published `audiocraft/losses/balancer.py` and its parts of flashy.

The two packages import far more than these files need, so the files are loaded one by one, unchanged. They ask Dora for
the rank and the number of processes: here torch.distributed answers.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist

PACKAGES = "audiocraft==1.3.0 flashy==0.0.2"


def encodec_balancer() -> Any:
    """The class. Skips the test if the packages are not installed."""
    dora, flashy = ModuleType("dora"), ModuleType("flashy")
    answers = ModuleType("dora.distrib")
    answers.__dict__.update(
        rank=lambda: dist.get_rank() if dist.is_initialized() else 0,
        world_size=lambda: dist.get_world_size() if dist.is_initialized() else 1,
        init=None,
    )
    with patch.dict(sys.modules, {"dora": dora, "dora.distrib": answers, "flashy": flashy}):
        flashy.__dict__["averager"] = _published("flashy", "flashy/utils.py").averager
        flashy.__dict__["distrib"] = _published("flashy", "flashy/distrib.py")
        return _published("audiocraft", "audiocraft/losses/balancer.py").Balancer


def _published(package: str, path: str) -> Any:
    """A file of an installed package, loaded as a module of its own."""
    try:
        file = distribution(package).locate_file(path)
    except PackageNotFoundError:
        pytest.skip(
            f"{package} is not installed, so nothing is compared with EnCodec: pip install --no-deps {PACKAGES}"
        )
    spec = importlib.util.spec_from_file_location(f"published_{package}", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
