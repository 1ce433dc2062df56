"""Whether what a language model spoke is speech of its text. Words are judged in words.py."""

from __future__ import annotations

import torch
from torch import Tensor

# Limits of speech, generous: people speak 10 to 20 characters a second, in every language that the model speaks.
FASTEST, SLOWEST = 40.0, 3.0  # characters a second
PAUSES = 3.0  # seconds that a short text may take longer
LONGEST_PERIOD = 25  # frames (2 s) of a group of codes that is repeated
LOOP_SECONDS, LOOP_ROUNDS = 2.0, 3  # so long, and so many rounds of the group, is a loop
NO_END, LENGTH, LOOP, WORDS = "no end", "length", "loop", "words"
REASONS = {
    NO_END: "the model did not say the end of audio",
    LENGTH: "the text cannot take so long or so short a time",
    LOOP: "a code or a group of codes came again and again",
    WORDS: "Whisper heard other words",
}


def fault(codes: Tensor, ended: bool, text: str, frame_rate: float) -> str:
    """Why codes [37, F] are no speech of the text, a key of REASONS, or an empty text. `ended` is whether the model
    said the end of audio. Words are judged elsewhere."""
    if not ended:
        return NO_END
    seconds = codes.shape[1] / frame_rate
    if not len(text) / FASTEST <= seconds <= len(text) / SLOWEST + PAUSES or not seconds:
        return LENGTH
    return LOOP if loops(codes[0], frame_rate) else ""


def loops(semantic: Tensor, frame_rate: float) -> bool:
    """Whether semantic codes [F] repeat a code or a group of up to LONGEST_PERIOD codes for long."""
    for period in range(1, min(LONGEST_PERIOD, len(semantic) // 2) + 1):
        same = semantic[period:] == semantic[:-period]
        # the longest run of equal codes: between two unequal ones
        breaks = torch.cat([torch.tensor([-1]), (~same).nonzero().flatten().cpu(), torch.tensor([len(same)])])
        longest = int(breaks.diff().max()) - 1 + period
        if longest >= max(LOOP_SECONDS * frame_rate, LOOP_ROUNDS * period):
            return True
    return False
