"""The Voxtral codec: 24 kHz speech as 37 codes a frame, 12.5 frames a second."""

from codec.checkpoint import load_release
from codec.codec import Codec
from codec.config import CodecConfig, ReleaseError

__all__ = ["Codec", "CodecConfig", "ReleaseError", "load_release"]
