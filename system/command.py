"""How every program of this project ends: with an exit status, and with one sentence on standard error if it failed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from system.environment import from_environment
from system.signals import StoppedError


class UserError(Exception):
    """Something that the user can mend. The message is one sentence: what is wrong, where, and what to do."""


def exit_status(command: Callable[[], int], when_interrupted: str, when_refused: str = "nothing was changed") -> int:
    """Runs `command` and returns its exit status. On UserError, OSError or Ctrl-C it prints one sentence on standard
    error and returns 2. `when_interrupted` and `when_refused` say what state Ctrl-C or an OSError leaves: they end the
    sentence. On StoppedError it returns the status that belongs to the signal."""
    try:
        return command()
    except StoppedError as stopped:
        print(f"{stopped}: repeat the command to resume", file=sys.stderr)
        return stopped.status
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        refusal = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        sentence = f"{refusal}; {when_refused}" if when_refused else refusal
    except KeyboardInterrupt:
        sentence = f"interrupted: {when_interrupted}"
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def model_folder(given: str | None) -> Path:
    """The release's folder: the one given, or else the one that MODEL_DIR names. Raises UserError if there is none."""
    name = given or from_environment("MODEL_DIR")
    if not name:
        raise UserError("no release given: pass --model-dir DIR, or set MODEL_DIR to the checkpoint's folder")
    if not Path(name).is_dir():
        raise UserError(f"{name} is not a folder: give the release's folder (--model-dir or MODEL_DIR)")
    return Path(name)
