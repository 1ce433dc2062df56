"""Speaks a text in the voice of a clip. Asks a server whose release has an encoder.

    python examples/clone_voice.py clip.wav "Text to speak." out.wav
    python examples/clone_voice.py --voice anna "Text to speak." out.wav      # a named voice of the server
    python examples/clone_voice.py clip.wav "Text to speak." out.wav --url http://127.0.0.1:8000

The clip is checked and prepared before it is sent: an empty or broken clip would stop the server for all users. Speech
is written to the file while it arrives. Exit status: 0 if the file was written, 2 with the reason if not.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds the repository's packages from any folder

from data.reference import SAMPLE_RATE, prepare, read_clip
from system.command import UserError, exit_status
from system.files import written_whole

SAMPLE_BYTES = 2  # the server's "pcm" is 16 bits, one channel
PIECE = 4096  # bytes read at a time
URL = re.compile(r"https?://(\[[0-9a-f:]+\]|[^\s/:]+)(:\d+)?(/\S*)?", re.IGNORECASE)
TIMEOUT = 600  # seconds without a byte


class SpeechError(UserError):
    """There is no speech. The message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return exit_status(lambda: run(arguments), "no speech was written", "no speech was written")


def run(arguments: argparse.Namespace) -> int:
    speak(arguments.url, request(arguments), Path(arguments.out))
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
    if not URL.fullmatch(arguments.url):
        parser.error(f"--url {arguments.url}: expected one such as http://127.0.0.1:8000")
    return arguments


def request(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request's body. Raises BadClipError if the clip must not be sent."""
    body = {"input": arguments.text, "response_format": "pcm", "stream_format": "audio"}
    if arguments.voice:
        return body | {"voice": arguments.voice}
    reference = prepare([read_clip(arguments.clip)], arguments.trim)
    for note in reference.notes:
        print(f"note: {note.sentence}")
    return body | {"ref_audio": f"data:audio/wav;base64,{base64.b64encode(reference.wav()).decode()}"}


def speak(url: str, body: dict[str, Any], out: Path) -> None:
    """Sends the request and writes the speech to `out`. The file appears when it is whole. Raises SpeechError."""
    headers = {"Content-Type": "application/json"}
    posted = urllib.request.Request(f"{url.rstrip('/')}/v1/audio/speech", json.dumps(body).encode(), headers)
    started, first = time.monotonic(), None
    try:
        if out.is_dir():
            raise SpeechError(f"{out} is a folder: name a wav file to write")
        with written_whole(out) as partial:
            with (
                partial.open("wb") as opened,  # before the request: if it cannot be written, the server need not speak
                urllib.request.urlopen(posted, timeout=TIMEOUT) as answer,
                wave.open(opened, "wb") as file,
            ):
                file.setparams((1, SAMPLE_BYTES, SAMPLE_RATE, 0, "NONE", "not compressed"))
                while piece := answer.read1(PIECE):
                    first = first or time.monotonic() - started
                    file.writeframesraw(piece)
                seconds = file.tell() / SAMPLE_RATE
            if first is None:
                raise SpeechError("the server sent no speech: its log says why")
    except urllib.error.HTTPError as error:
        raise SpeechError(explained(error.code, error.read().decode(errors="replace"), body.get("voice"))) from error
    except urllib.error.URLError as error:
        start = "start one with `vllm serve $MODEL_DIR --omni`, or name another with --url"
        raise SpeechError(f"no server answers at {url} ({error.reason}): {start}") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise SpeechError(
            "the server closed the connection in the middle: its log says why; restart it if it stopped"
        ) from error
    except OSError as error:
        raise SpeechError(f"{out} cannot be written ({error.strerror}): check the folder and its disk") from error
    took = time.monotonic() - started
    print(f"wrote {out}: {seconds:.1f} s of speech in {took:.1f} s, the first of it after {first:.1f} s")


def explained(status: int, answer: str, voice: str | None) -> str:
    """What an error status means, and what to do."""
    try:
        message = str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.strip()[:300]
    if "encoder weights" in message:
        return "the served release has no encoder: inject one with inject_encoder.py and restart the server"
    if message.startswith("Invalid speaker"):
        known = message.partition("Supported:")[2].strip() or "none"
        return (
            f"the server has no voice {voice!r}, only {known}: add it with patch_tokenizer.py --voice {voice}=CLIP "
            "and restart the server"
        )
    if status >= 500 and voice:
        return (
            f"the server failed with status {status} for the voice {voice!r} ({message}): python patch_tokenizer.py "
            "--check says whether the release names it everywhere; see also the server's log"
        )
    if status >= 500:
        return f"the server failed with status {status} ({message}): its log says why; it may have to be restarted"
    return f"the server refused with status {status}: {message}"


if __name__ == "__main__":
    sys.exit(main())
