"""What the two helper scripts share as commands: the release they work on, and errors as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from codec.config import ReleaseError
from system.environment import from_environment


def exit_status(
    command: Callable[[], int], when_interrupted: str, errors: tuple[type[Exception], ...] = (ReleaseError,)
) -> int:
    """The status of a command; 2, and one sentence on standard error, where it raises one of `errors`, the operating
    system refuses something, or it is interrupted."""
    try:
        return command()
    except errors as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"cannot read {error.filename or 'a file'} ({error.strerror}): nothing was changed"
    except KeyboardInterrupt:
        sentence = f"interrupted: {when_interrupted}"
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def model_folder(given: str | None) -> Path:
    """The release's folder, given or named by MODEL_DIR. Raises ReleaseError where there is none."""
    name = given or from_environment("MODEL_DIR")
    if not name:
        raise ReleaseError("no release given: pass --model-dir DIR, or set MODEL_DIR to the checkpoint's folder")
    if not Path(name).is_dir():
        raise ReleaseError(f"{name} is not a folder: give the release's folder (--model-dir or MODEL_DIR)")
    return Path(name)
