"""Seeds derived from numbers: every epoch, clip and step has its own."""

from __future__ import annotations


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers: 64 bits, well spread (splitmix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state - (1 << 63)
