"""What is spoken: texts, each with the clip whose voice it is spoken in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data import BadClipError, DataError
from data.reference import read_clip
from evaluation.speech import Problem, Speech, prepared_clip, spread
from system.names import printable
from system.untrusted import read_file

MAX_TEXTS = 64 << 20  # bytes of a file of sentences

FIELDS = "name|prompt text|prompt clip|text"
NO_CLIP = torch.empty(0)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text to speak. `clip` is the reference clip, None where only named voices speak; its `text` is what the clip
    says, empty if unknown."""

    name: str
    text: str
    clip: Speech | None = None

    @property
    def speech(self) -> Speech:
        """The prompt as a row of the results: its name and text, with the clip's speaker and sound."""
        clip = self.clip or Speech("", NO_CLIP)
        return Speech(self.name, clip.waveform, clip.speaker, self.text)


def read_list(path: Path, limit: int = 0) -> tuple[list[Prompt], list[Problem], list[str]]:
    """Reads a Seed-TTS-eval list: a line `name|prompt text|prompt clip|text` for each prompt. A clip's path is relative
    to the list's folder. A fifth field, a recording of the text, is not used. Returns the prompts, a Problem for each
    line that cannot be used, and notes about the clips. With a `limit`, reads that many lines, spread evenly over all.
    Raises DataError if no line can be used."""
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
    lines = [lines[i] for i in spread(limit or len(lines), len(lines))]
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    clips: dict[str, Speech] = {}
    notes: list[str] = []
    names = set()
    for number, line in lines:
        fields = [field.strip() for field in line.split("|")]
        try:
            if len(fields) not in (4, 5) or not fields[0] or not fields[3] or "\0" in line:
                raise DataError(f"expected {FIELDS}, found {line.strip()[:80]!r}")
            name, said, clip, text = printable(fields[0]), *fields[1:4]
            if name in names:
                raise DataError(f"an earlier line is called {name!r}, too")
            if clip not in clips:
                clips[clip], about = prepared_clip(read_clip(path.parent / clip), printable(clip))
                notes += about
            names.add(name)
            prompts.append(Prompt(name, text, replace(clips[clip], text=said)))
        except (DataError, BadClipError) as error:
            problems.append(Problem(f"line {number} of {path.name}", "clip", str(error)))
    if not prompts:
        reason = problems[0].reason if problems else "it is empty"
        raise DataError(f"no line of {path} can be used; the first: {reason}")
    return _with_speakers(prompts), problems, notes


def _with_speakers(prompts: Sequence[Prompt]) -> list[Prompt]:
    """A clip's folder is its speaker. If all clips are in one folder, each clip is a speaker of its own."""
    clips = [prompt.clip for prompt in prompts if prompt.clip]
    folders = {Path(clip.name).parent for clip in clips}
    named = []
    for prompt in prompts:
        assert prompt.clip is not None
        path = Path(prompt.clip.name)
        speaker = str(path.parent) if len(folders) > 1 else path.stem
        named.append(replace(prompt, clip=replace(prompt.clip, name=path.name, speaker=speaker)))
    return named


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError if there are none."""
    texts = [line.strip() for line in _lines(path) if line.strip()]
    if not texts:
        raise DataError(f"{path} has no text: expected a line for each sentence to speak")
    return texts


def _lines(path: Path) -> list[str]:
    try:
        return read_file(path, MAX_TEXTS).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): expected a text file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}): convert it") from error


def pair(clips: Sequence[Speech], texts: Sequence[str], per_clip: int = 1) -> list[Prompt]:
    """Each clip with `per_clip` texts, taken in turn. Without `texts`, a clip gets those that the clips after it say.
    Raises DataError if there are too few."""
    if texts:
        chosen = [[texts[(i * per_clip + k) % len(texts)] for k in range(per_clip)] for i in range(len(clips))]
        if per_clip > len(texts):
            raise DataError(f"--per-clip {per_clip}: --texts has only {len(texts)} texts")
    else:
        said = [clip.text for clip in clips]
        if not all(said) or len(clips) <= per_clip:
            raise DataError("--data has too few transcripts to speak: give the sentences with --texts FILE")
        chosen = [[said[(i + 1 + k) % len(said)] for k in range(per_clip)] for i in range(len(clips))]
    names = _unique([clip.name for clip in clips])
    return [
        Prompt(name if per_clip == 1 else f"{name} text {k + 1}", text, clip)
        for name, clip, own in zip(names, clips, chosen, strict=True)
        for k, text in enumerate(own)
    ]


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that occurred before."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
