"""Speaks a text in the voice of a clip. Asks a server whose release has an encoder.

    python examples/clone_voice.py clip.wav "Text to speak." out.wav
    python examples/clone_voice.py --voice anna "Text to speak." out.wav      # a named voice of the server
    python examples/clone_voice.py clip.wav "Text to speak." out.wav --url http://127.0.0.1:8000

The clip is checked and prepared before it is sent: an empty or broken clip would stop the server for all users. Speech
is written to the file while it arrives. Exit status: 0 if the file was written, 2 with the reason if not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds the repository's packages from any folder

if __name__ == "__main__":  # Ctrl-C during the imports below
    from system.signals import end_on_signals

    end_on_signals()

from data.reference import prepare, read_clip
from data.speech_server import SpeechError, base_url, request_by_clip, request_by_name, speak
from system.command import exit_status


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return exit_status(lambda: run(arguments), "no speech was written", "no speech was written")


def run(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    if arguments.clip and out.exists() and Path(arguments.clip).exists() and out.samefile(arguments.clip):
        raise SpeechError(f"{out} is the clip itself: name another file to write")
    body = request(arguments)
    try:
        timing = speak(arguments.url, body, out)
    except OSError as error:
        raise SpeechError(f"{out} cannot be written ({error.strerror}): check the folder and its disk") from error
    print(
        f"wrote {out}: {timing.speech:.1f} s of speech in {timing.took:.1f} s, the first of it after "
        f"{timing.first:.1f} s"
    )
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", help="3 to 25 s of one speaker: wav, flac, mp3 or ogg")
    parser.add_argument("text")
    parser.add_argument("out", help="the wav file to write")
    parser.add_argument("--voice", metavar="NAME", help="a named voice instead of a clip")
    parser.add_argument("--trim", action="store_true", help="cut the silence at the clip's ends")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    arguments = parser.parse_intermixed_args(argv)  # the clip is optional, and options may stand between the others
    if arguments.clip and arguments.voice:
        parser.error("give a clip or --voice NAME, not both: the server would use the name and ignore the clip")
    if not arguments.clip and not arguments.voice:
        parser.error("give CLIP TEXT OUT, or --voice NAME TEXT OUT: something is missing")
    if not arguments.text.strip():
        parser.error("the text is empty")
    for name in ("text", "voice"):
        if any("\ud800" <= letter <= "\udfff" for letter in getattr(arguments, name) or ""):
            parser.error(f"the {name} is no UTF-8")
    try:
        base_url(arguments.url)
    except SpeechError as error:
        parser.error(f"--url {error}")
    return arguments


def request(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request's body. Raises BadClipError if the clip must not be sent."""
    if arguments.voice:
        return request_by_name(arguments.text, arguments.voice)
    reference = prepare([read_clip(arguments.clip)], arguments.trim)
    for note in reference.notes:
        print(f"note: {note.sentence}")
    return request_by_clip(arguments.text, reference)


if __name__ == "__main__":
    sys.exit(main())
