"""Speech, from files on disk and data sets of the hub to batches of crops."""

from data.clips import BadClipError, DataError, JoinedClips, decode
from data.crops import Crops, Stream, crop_loader, fixed_clips
from data.order import Order, Shuffled
from data.seeds import derive_seed
from data.sources import Source, open_clips, open_sources, order_of

__all__ = [
    "BadClipError",
    "Crops",
    "DataError",
    "JoinedClips",
    "Order",
    "Shuffled",
    "Source",
    "Stream",
    "crop_loader",
    "decode",
    "derive_seed",
    "fixed_clips",
    "open_clips",
    "open_sources",
    "order_of",
]
