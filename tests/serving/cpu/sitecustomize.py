"""Python runs this before anything else in a process with this folder in PYTHONPATH: every process of the server.

PyPI's torchvision, torchaudio and torchcodec bring binaries for CUDA, which cannot be loaded beside PyTorch for CPUs.
The server imports the packages and, for this model, calls none of them. So the operators that torchvision describes as
it is imported are declared here, torchaudio is told that it has no binaries, and torchcodec is not found.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

OPERATORS = ("nms", "qnms")  # boxes are no speech


class WithoutCuda(MetaPathFinder):
    """Comes before Python's own finders, and leaves nearly everything to them."""

    declared = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self.declared is None:
            import torch

            self.declared = torch.library.Library("torchvision", "FRAGMENT")
            for operator in OPERATORS:
                self.declared.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        if name == "torchaudio._extension":
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name("no_torchaudio_binaries.py"))
        return None


sys.modules["torchcodec"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
sys.meta_path.insert(0, WithoutCuda())
