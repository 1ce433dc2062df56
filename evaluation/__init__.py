"""How good an encoder is: measured as the server computes it, compared, and shown."""

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
