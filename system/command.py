"""How every program of this project ends: with an exit status, and with one sentence on standard error if it failed."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from system.environment import expand_home, from_environment
from system.memory import full_memory
from system.names import printable
from system.signals import EndingSignals, RaisedSignals, StoppedError


class UserError(Exception):
    """Something that the user can mend. The message is one sentence: what is wrong, where, and what to do."""


def exit_status(
    command: Callable[[], int], when_interrupted: str, when_refused: str = "nothing was changed", at_once: bool = False
) -> int:
    """Runs `command` and returns its exit status. On UserError, OSError or full memory it prints one sentence on
    standard error and returns 2; on Ctrl-C or SIGTERM a sentence and 128 plus the signal's number. `when_interrupted`
    and `when_refused` say what state a signal or a refusal leaves: they end the sentence. `at_once` is for a command
    that has nothing to tidy up after a signal: it ends the process where it is, even in a library that would first
    finish a download.

    Printing never fails: what standard output and standard error cannot encode is printed as `\\udce9` or `\\u58f0`.
    Names of files and voices may hold bytes that are no UTF-8, and the locale may know nothing but ASCII. In the
    sentence of an error, characters that would control the terminal are printed as `\\x1b`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signals = EndingSignals(when_interrupted) if at_once else RaisedSignals()
    try:
        with signals:
            return command()
    except StoppedError as stopped:
        print(f"{stopped}: repeat the command to resume", file=sys.stderr)
        return stopped.status
    except (Exception, KeyboardInterrupt) as failure:
        status = 2
        if signals.number or isinstance(failure, KeyboardInterrupt):  # a library may raise an error of its own then
            sentence, status = f"interrupted: {when_interrupted}", 128 + (signals.number or signal.SIGINT)
        elif isinstance(failure, UserError):
            sentence = str(failure)
        elif refusal := _refusal(failure):
            sentence = f"{refusal}; {when_refused}" if when_refused else refusal
        else:
            raise
    shown = "\n".join(printable(line) for line in sentence.split("\n"))
    print(f"error: {shown}", file=sys.stderr)
    return status


def _refusal(failure: BaseException) -> str:
    """What the system refused, empty if the failure is a bug."""
    if isinstance(failure, OSError):
        stated = f"{failure.filename}: {failure.strerror}" if failure.filename else str(failure)
        return stated or type(failure).__name__
    reason = full_memory(failure)
    return f"the memory is full ({reason}): end other programs, or use a machine with more" if reason else ""


def model_folder(given: str | None) -> Path:
    """The release's folder: the one given, or else the one that MODEL_DIR names. Raises UserError if there is none."""
    name = expand_home(given or "") or from_environment("MODEL_DIR")
    if not name:
        raise UserError("no release given: pass --model-dir DIR, or set MODEL_DIR to the checkpoint's folder")
    if not Path(name).is_dir():
        raise UserError(f"{name} is not a folder: give the release's folder (--model-dir or MODEL_DIR)")
    return Path(name)
