"""Prepares a Voxtral TTS release for voice cloning, and adds named voices that every client can use.

    python patch_tokenizer.py                                 # checks $MODEL_DIR, repairs what can be repaired safely
    python patch_tokenizer.py --model-dir DIR --check         # only prints faults and their effect in the server
    python patch_tokenizer.py --voice anna=clip.wav           # then `voice: "anna"` works without a clip
    python patch_tokenizer.py --voice anna=one.wav,two.flac   # clips of one speaker, joined
    python patch_tokenizer.py --list
    python patch_tokenizer.py --remove anna
    python patch_tokenizer.py --undo                          # undoes the last change, byte by byte

Exit status: 0 if the release can clone voices; 1 if it cannot (this prints why); 2 if the command failed, and then
nothing was changed. A clip is encoded as the server encodes `ref_audio`, at the level it has. If this is killed, at any
moment, the release can still be served, and the next run finishes the change. It edits no installed package.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import io
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from codec import load_release
from codec.codec import Codec
from codec.config import CodecConfig, ReleaseError, read_params
from codec.files import listed, shortened
from data.reference import NAME, SAMPLE_RATE, Reference, prepare, read_clip
from release import changes
from release.named_voices import MAX_INDEX, NamedVoices, embedding_files, read_named_voices, restored, steps
from release.splice import locked
from release.voice_checks import (
    Finding,
    copy_findings,
    embedding,
    end_of_audio_row,
    has_encoder,
    key_findings,
    release_tensors,
    tensor_findings,
    tokenizer_findings,
    voice_findings,
)
from system.command import exit_status, model_folder
from system.environment import expand_home


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    interrupted = "the release can be served; the next run finishes the change"
    return exit_status(lambda: run(arguments), interrupted)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument("--trim", action="store_true", help="with --voice: cut the silence at the ends of each clip")
    parser.add_argument("--force", action="store_true", help="also replace or remove presets")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--voice", metavar="NAME=CLIP[,CLIP]", action="append", help="add a voice, or replace one")
    what.add_argument("--remove", metavar="NAME", action="append", help="remove a voice")
    what.add_argument("--list", action="store_true", help="print all voices")
    what.add_argument("--check", action="store_true", help="print what is wrong, change nothing")
    what.add_argument("--undo", action="store_true", help="restore what the last change replaced")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    if arguments.trim and not arguments.voice:
        raise ReleaseError("--trim goes with --voice: it cuts the clips' silence")
    folder = model_folder(arguments.model_dir)
    wanted = named_clips(arguments.voice or [])
    references = {name: prepare([read_clip(path) for path in clips], arguments.trim) for name, clips in wanted.items()}
    with locked(folder, to_change=not (arguments.check or arguments.list)):
        if arguments.check or arguments.list:
            if changes.interrupted(folder):
                print("note: a change was interrupted; the next run without --check or --list finishes it")
            release = examine(folder)
            return show(release) if arguments.list else report(release)
        if changes.recover(folder):
            print("finished the change that a killed run left unfinished")
        if arguments.undo:
            return undo(folder)
        release = examine(folder)
        if arguments.remove:
            return remove(release, arguments.remove, arguments.force)
        if arguments.voice:
            return add(release, wanted, references, arguments.force)
        return repair(release)


def named_clips(given: Iterable[str]) -> dict[str, list[str]]:
    """Arguments NAME=A.wav,B.wav -> the clips of each name. Raises ReleaseError for other forms."""
    clips: dict[str, list[str]] = {}
    for text in given:
        name, equals, paths = text.partition("=")
        parts = clip_paths(paths)
        if not equals or not all(parts):
            raise ReleaseError(f"--voice {shortened(text)}: expected NAME=CLIP, such as anna=clip.wav")
        if not NAME.fullmatch(name):
            raise ReleaseError(
                f"--voice {shortened(name)!r}: a name is lower case letters, digits, _ and -, at most 64 of them"
            )
        clips.setdefault(name, []).extend(parts)
    return clips


def clip_paths(text: str) -> list[str]:
    """A.wav,B.wav -> both; but one path if a file of this name, with its commas, exists."""
    with suppress(OSError):  # the text can be too long for a file's name
        if Path(expand_home(text)).is_file():
            return [expand_home(text)]
    return [expand_home(path) for path in text.split(",")]


@dataclass(frozen=True)
class CheckedRelease:
    """A release, its voices and its faults, and both as they would be after repairing."""

    folder: Path
    config: CodecConfig
    encoder: bool
    voices: NamedVoices
    findings: list[Finding]
    repaired: NamedVoices
    repairs: list[str]
    remaining: list[Finding]  # the faults that repairing leaves

    @property
    def presets(self) -> set[str]:
        return (self.voices.indices.keys() | self.voices.counts.keys()) - self.voices.added.keys()


def examine(folder: Path) -> CheckedRelease:
    """Checks a release. Raises ReleaseError if the folder is no release at all."""
    config = CodecConfig.from_params(read_params(folder))
    tensors, voices, files = release_tensors(folder), read_named_voices(folder), embedding_files(folder)
    end_row = end_of_audio_row(folder, config, tensors)
    judged = {name: embedding(path, end_row) for name, path in files.items()}
    sound = {name: rows for name, (rows, faults) in judged.items() if rows is not None and not faults}
    repaired, repairs = voices.repaired(config, sound)
    unrepairable = [*copy_findings(folder), *tensor_findings(config, tensors)]
    # mistral-common loads the file itself, unless keys are added to it: counts of voices do not matter here
    unrepairable += tokenizer_findings(repaired, config, folder / "tekken.json" if repaired is voices else None)
    findings = [*unrepairable, *key_findings(voices, config), *voice_findings(voices, files, end_row)]
    remaining = [*unrepairable, *voice_findings(repaired, files, end_row)]
    return CheckedRelease(folder, config, has_encoder(tensors), voices, findings, repaired, repairs, remaining)


def report(release: CheckedRelease) -> int:
    """Prints the faults of the release as it is. Returns the exit status."""
    return summarize(release.folder, release.encoder, release.voices, release.findings)


def repair(release: CheckedRelease) -> int:
    if release.repairs:
        changes.change(release.folder, steps(release.voices, release.repaired))
        for done in release.repairs:
            print(f"repaired {done}")
    return summarize(release.folder, release.encoder, release.repaired, release.remaining)


def summarize(folder: Path, encoder: bool, voices: NamedVoices, findings: Sequence[Finding]) -> int:
    """Prints each finding in a line, then in one line what the release can do. Returns the exit status."""
    for finding in findings:
        print(f"{'note' if finding.harmless else 'problem'}: {finding}")
    problems = [finding for finding in findings if not finding.harmless]
    ill = dict.fromkeys(finding.voice for finding in problems if finding.voice and not finding.repairable)
    if ill:
        print(
            f"to do for {listed(ill)}: download a preset's file again, or remove the voice with --remove NAME --force, "
            "or replace it with --voice NAME=CLIP --force"
        )
    broken = {finding.voice for finding in problems}
    good = [name for name in voices.indices if name not in broken]
    added = sum(name in voices.added for name in good)
    speaks = f"{len(good)} named voices, of which {added} were added"
    if any(finding.concerns_all for finding in problems):
        print(f"{folder} cannot be served: see the problems above")
    elif not encoder:
        print(f"{folder} speaks with {speaks}; ref_audio gets status 400 until inject_encoder.py gives it an encoder")
    else:
        print(f"{folder} clones voices: it takes ref_audio, and has {speaks}")
    return 1 if problems or not encoder else 0


def show(release: CheckedRelease) -> int:
    voices = release.voices
    for name in voices.indices | voices.counts:
        source = f"from {listed(voices.added[name])}" if name in voices.added else "preset"
        count = voices.counts.get(name)
        known = count if isinstance(count, int) and 0 < count < MAX_INDEX else None
        seconds = f"{(known - 1) / release.config.frame_rate:.1f} s" if known else "?"
        problems = [str(finding) for finding in release.findings if finding.voice == name and not finding.harmless]
        print("  ".join([f"{shortened(name):24}", f"{seconds:>7}", source, *problems]))
    return 0


def add(release: CheckedRelease, wanted: dict[str, list[str]], references: dict[str, Reference], force: bool) -> int:
    folder, voices = release.folder, release.repaired
    if not release.encoder:
        raise ReleaseError(f"{folder} has no encoder, which makes the voices: inject one with inject_encoder.py first")
    stopped = [str(finding) for finding in release.remaining if finding.concerns_all and finding.voice not in wanted]
    if stopped:
        raise ReleaseError(f"{folder} cannot be served, so no voice was added: {'; '.join(stopped)}")
    protected = sorted((release.presets | embedding_files(folder).keys() - voices.added.keys()) & wanted.keys())
    if protected and not force:
        raise ReleaseError(f"{listed(protected)} already exists: take another name, or replace it with --force")
    codec = load_release(folder)
    if codec.sample_rate != SAMPLE_RATE:
        raise ReleaseError(f"{folder} is for {codec.sample_rate} Hz, but clips are prepared for {SAMPLE_RATE} Hz")
    done = [f"repaired {repair}" for repair in release.repairs]
    for name, reference in references.items():
        for note in reference.notes:
            print(f"note: {note.sentence}")
        rows = embed(codec, reference, name)
        replaced = "replaced" if name in voices.indices else "added"
        done.append(f"{replaced} voice {name}: {reference.seconds:.1f} s of {listed(wanted[name])}, {len(rows)} tokens")
        voices = voices.with_voice(name, len(rows), as_file(rows), [Path(clip).name for clip in wanted[name]])
    changes.change(folder, steps(release.voices, voices))
    print("\n".join(done))
    advise(folder)
    return 0


def embed(codec: Codec, reference: Reference, name: str) -> torch.Tensor:
    """The rows [N, dim], bfloat16, that the server's encoder makes of the clip. Raises ReleaseError if they are not
    what the server expects."""
    rows = codec.embed(codec.encode(reference.waveform[None]))[0].to(torch.bfloat16)
    if not torch.isfinite(rows).all():
        raise ReleaseError(f"voice {name}: the encoder gives values that are not finite: inject another encoder")
    expected = math.ceil(reference.waveform.shape[-1] / codec.frame_size) + 1
    if len(rows) != expected:
        raise ReleaseError(f"voice {name}: the encoder gives {len(rows)} rows, expected {expected}")
    return rows


def as_file(rows: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(rows.clone(), file)  # torch.save would save the whole tensor that a view belongs to
    return file.getvalue()


def remove(release: CheckedRelease, names: Sequence[str], force: bool) -> int:
    voices, there = release.voices, release.voices.indices.keys() | release.voices.counts.keys()
    unknown = sorted(set(names) - there)
    if unknown:
        raise ReleaseError(f"{release.folder} has no voice {listed(unknown)}: --list shows those it has")
    protected = sorted(release.presets & set(names))
    if protected and not force:
        raise ReleaseError(f"{listed(protected)} is a preset, not added by this tool: remove it with --force")
    for name in names:
        voices = voices.without_voice(name)
    changes.change(release.folder, steps(release.voices, voices))
    print(f"removed {listed(names)}")
    advise(release.folder)
    return 0


def undo(folder: Path) -> int:
    now = read_named_voices(folder)
    before = changes.last_change(folder)
    changes.change(folder, steps(now, restored(now, before)), undoable=False)
    print(f"restored {listed(sorted(target for target in before if not target.startswith(changes.STATE)))}")
    return 0


def advise(folder: Path) -> None:
    print("restart a running server to see the change")
    print(f"undo: python patch_tokenizer.py --model-dir {shlex.quote(str(folder))} --undo")


if __name__ == "__main__":
    sys.exit(main())
