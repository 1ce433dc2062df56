"""Replaces `torchaudio._extension`, which loads torchaudio's binaries: here there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_IS_TORCHAUDIO_EXT_AVAILABLE = _IS_ALIGN_AVAILABLE = False


def fail_if_no_align(function: Callable[..., Any]) -> Callable[..., Any]:
    def unavailable(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError(f"{function.__name__} needs torchaudio's binaries")

    return unavailable
