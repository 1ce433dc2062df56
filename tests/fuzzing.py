"""Fuzzing with the same cases every time: numbered seeds, as many as fit into the time.

FUZZ_SECONDS says how long each fuzz test goes on, by default a few seconds: `FUZZ_SECONDS=120 make test`.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = float(os.environ.get("FUZZ_SECONDS", "2"))
LONGEST = 5.0  # seconds of the processor for one case: it does not depend on how busy the machine is
WAITING = 60  # seconds by the clock: a case that waits, as for a pipe, takes no processor
MEMORY = 1 << 30  # bytes that all cases of a test may add to this process

# what is odd in many formats: signs of YAML and JSON, numbers at limits, names that no file system takes
ODD = [
    *(
        "",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\0",
        "\ufeff",
        "\u2028",
        "é",
        "声",
        "\udce9",
        "\ud800",
        "\\",
        "/",
        "..",
        "~",
        "~x/y",
    ),
    *("[", "]", "{", "}", "[[[[", "{{", "}}", "*", "&a", "*a", "!", "!!int x", "!!python/name:os", "|", ">-", "'"),
    *(
        '"',
        "#",
        " #",
        ":",
        ": ",
        "-",
        "- ",
        "?",
        "? ",
        "%",
        "%YAML 9.9",
        "@",
        "`",
        ",",
        "=",
        "<<",
        "---",
        "...",
        "null",
    ),
    *("null", "true", "nan", ".nan", "inf", "-.inf", "1e999", "-1", "0", "1e-400", "9" * 30, "9" * 5000, "0x1F", "1_0"),
    *("2026", "2026-03-01", "12:30:45", "\\U00110000", "\\ud800", '"\\UFFFFFFFF"', "x" * 300, "/" * 5000, "../" * 50),
    *("base", "base: run.yaml", "steps", "losses", "data.train", "\x1b[31m", "\x7f", "$HOME", "%s%n", "{0}", "NaN"),
]


def cases() -> Iterator[random.Random]:
    """A random generator for each case, from seed 0 on, until the time is over."""
    before, ends, seed = _memory(), time.monotonic() + SECONDS, 0
    while time.monotonic() < ends or seed < 20:
        yield random.Random(seed)
        seed += 1
    assert _memory() - before < MEMORY
    print(f"{seed} cases", file=sys.stderr)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """The content after a few changes: bytes overwritten, cut out, put twice, or odd ones put in."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content) + 1)
        length = dice.choice([1, 1, 2, 8, 100])
        odd = dice.choice(ODD).encode("utf-8", "surrogatepass")
        content = dice.choice(
            [
                content[:at] + bytes(dice.randrange(256) for _ in range(length)) + content[at + length :],
                content[:at] + content[at + length :],
                content[:at],
                content[:at] + content[at : at + length] * dice.choice([2, 3, 50]) + content[at + length :],
                content[:at] + odd + content[at:],
                content[:at] + odd * dice.choice([2, 100]) + content[at:],
                content[:at] + b"\0" * length + content[at + length :],
            ]
        )
    return content


@contextmanager
def bounded() -> Iterator[None]:
    """Fails if the block takes the processor longer than LONGEST, or waits longer than WAITING."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"one case took more than {LONGEST} s, or waits for ever")

    before = [signal.signal(number, fail) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def refused_or_taken(call: Callable[[], object], refusal: type[Exception]) -> object:
    """What the call returns, or the refusal that it raises, which has to be one short sentence. Everything else fails:
    another exception, a hang."""
    with bounded():
        try:
            return call()
        except refusal as error:
            text = str(error)
    assert text.strip()
    assert len(text) < 3000
    return None


def _memory() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
