"""Speech, from files on disk and data sets of the hub to batches of crops.

sources.py        what `data.train` names: folders, parquet files, hub names; their shares
hub.py            downloads data sets of the hub
audio.py          audio files, judged by their headers and decoded in bounded memory
clips.py          clips in folders
tables.py         clips in parquet files and other tables
bandwidth.py      finds clips with nothing above 8 kHz
order.py          which clip comes at which position
crops.py          random crops in batches, and the fixed validation clips
speaking/         a language model speaks pairs: texts and voices, the engine, what is no speech
pairs.py          pairs of codes and text that a release's language model spoke, and crops of them
seeds.py          random seeds derived from numbers
export.py         writes any source as WAV files
reference.py      checks and prepares a reference clip for a voice
speech_server.py  asks a server to speak in the voice of a clip
demo/             the stand-in: a small release, its withheld encoder, and speech
"""

from system.signals import end_on_signals, runs_as_module

if runs_as_module():  # Ctrl-C during the imports of `python -m data.export`
    end_on_signals()

from data.audio import BadClipError, decode
from data.clips import DataError, JoinedClips
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
