"""Speech, from files on disk to batches of crops."""

from data.clips import BadClipError, DataError, decode, open_clips
from data.crops import Crops, Stream, crop_loader, derive_seed, fixed_clips

__all__ = [
    "BadClipError",
    "Crops",
    "DataError",
    "Stream",
    "crop_loader",
    "decode",
    "derive_seed",
    "fixed_clips",
    "open_clips",
]
