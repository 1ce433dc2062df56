"""Measures how good an encoder is: in the server's arithmetic, compared with other encoders, as text, JSON and a page.

measure.py       one whole evaluation: encoders, judges, comparisons and speed, into a `Results`
speech.py        the clips to measure on
scoring.py       encodes and decodes every clip of an encoder, and scores it
codes.py         metrics of the codes themselves
judges/          metrics of the audio, by independent judges
comparison.py    one encoder against another: paired differences, and the share recovered
statistics.py    bootstrap confidence intervals
speed.py         latency and real-time factor
provenance.py    files, libraries and machine that scores depend on
results.py       everything that was measured, and its JSON
table.py         the table on the terminal
requirement.py   --require
arguments.py     options that the programs that evaluate have in common
report/          the HTML page
cloning/         the same for what a server speaks in the voice of a clip
server_codec.py  the server's own codec class, to compare codes with
"""

from evaluation.comparison import Compared, compare
from evaluation.judges.available import open_judges
from evaluation.scoring import Scores, add_agreement, evaluate, evaluate_originals
from evaluation.speech import Speech, read_speech

__all__ = [
    "Compared",
    "Scores",
    "Speech",
    "add_agreement",
    "compare",
    "evaluate",
    "evaluate_originals",
    "open_judges",
    "read_speech",
]
