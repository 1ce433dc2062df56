"""Python runs this first in every process that has this folder in PYTHONPATH: all processes of the server.

PyPI's torchvision, torchaudio and torchcodec bring binaries for CUDA, which cannot be loaded beside PyTorch for CPUs.
The server imports the packages but, for this model, calls none of them. So this file declares the operators that
torchvision needs when it is imported, makes torchaudio believe that it has no binaries, and hides torchcodec.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

OPERATORS = ("nms", "qnms")  # for boxes in images: speech needs none


class WithoutCuda(MetaPathFinder):
    """Runs before Python's own finders, and leaves nearly everything to them."""

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


sys.modules["torchcodec"] = None  # type: ignore[assignment]  # so Python says that there is no such module
sys.meta_path.insert(0, WithoutCuda())
