"""The Voxtral codec: 24 kHz speech as 37 codes a frame, 12.5 frames a second.

`Codec` and `load_release` are imported when they are first asked for: they need torch, and what only reads and moves
a release's bytes does without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codec.config import CodecConfig, ReleaseError

if TYPE_CHECKING:
    from codec.checkpoint import load_release
    from codec.codec import Codec

__all__ = ["Codec", "CodecConfig", "ReleaseError", "load_release"]

_WITH_TORCH = {"Codec": "codec.codec", "load_release": "codec.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
