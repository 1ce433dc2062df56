"""Injects a trained encoder into a Voxtral TTS release, so that the release clones voices, and removes it again.

    python inject_encoder.py                                  # $OUTPUT_DIR/encoder.safetensors into $MODEL_DIR
    python inject_encoder.py --model-dir DIR --encoder FILE   # this encoder into this release
    python inject_encoder.py --merge                          # into the checkpoint's own file
    python inject_encoder.py --merge --output NEW_DIR         # into a new folder; the release stays as it is
    python inject_encoder.py --check                          # exit status 0: an encoder, 1: none, 2: one with faults
    python inject_encoder.py --remove                         # removes the encoder

--dry-run only prints what would be written. The server reads every `consolidated*.safetensors` in the folder. So by
default the encoder gets its own file, `consolidated_encoder.safetensors`, and the 8 GB file beside it does not change.
Programs that read only `consolidated.safetensors` need --merge. If this is killed, at any moment, the release has the
old encoder or the new one, whole; the next run deletes half-written files.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from codec.config import ReleaseError
from codec.files import INDEX_NAME, listed
from codec.tensors import expected_encoder, fingerprint
from release.injection import (
    OWN_NAME,
    Release,
    beside,
    encoder_part,
    merged,
    misfits,
    read_release,
    removal,
)
from release.links import leads_out
from release.splice import (
    CHUNK,
    CONVERTIBLE,
    Relink,
    Step,
    TensorFile,
    Write,
    apply,
    apply_to_copy,
    carried_files,
    clear_partials,
    locked,
    read_tensor_file,
    readable,
    relinked,
)
from system.command import exit_status, model_folder
from system.environment import expand_home, from_environment


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return exit_status(lambda: run(arguments), "the release has either the old encoder or the new one: see --check")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument(
        "--encoder", type=expand_home, metavar="FILE", help="default: encoder.safetensors in OUTPUT_DIR"
    )
    parser.add_argument(
        "--output", type=expand_home, metavar="DIR", help="with --merge: a new, complete folder instead of in place"
    )
    parser.add_argument("--any-codec", action="store_true", help="accept an encoder trained against another codec")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, change nothing")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--merge", action="store_true", help="write into the checkpoint's own file")
    what.add_argument("--check", action="store_true", help="check the release's encoder, change nothing")
    what.add_argument("--remove", action="store_true", help="remove the encoder, its own file or the merged one")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    folder = model_folder(arguments.model_dir)
    for option in ("output", "encoder"):
        if getattr(arguments, option) == "":  # an unset variable of the shell
            raise ReleaseError(f"--{option} is empty: name a path, or leave the option out")
    output = output_folder(arguments.output, folder) if arguments.output else None
    if output and not arguments.merge:
        raise ReleaseError("--output needs --merge: only a merged encoder goes to a new folder")
    with locked(folder, to_change=not (arguments.check or arguments.dry_run)):
        release = read_release(folder)
        if release.copies:
            print(f"note: {release.copies}: move a copy out of the folder")
        if arguments.check:
            return check(release)
        if arguments.remove:
            steps = removal(release)
        else:
            encoder = trained_encoder(encoder_file(arguments.encoder), release, arguments.any_codec)
            steps = merged(release, encoder) if arguments.merge else beside(release, encoder)
        if output:
            note_foreign_links(folder)
        else:
            steps = [relinked(step) for step in steps]
        if arguments.dry_run:
            return foretell(steps, output or folder)
        started = time.monotonic()
        if output:
            apply_to_copy(folder, steps, output, leave_out={OWN_NAME})
        else:
            clear_partials(folder)
            apply(folder, steps)
        report(steps, output or folder, time.monotonic() - started)
        suggest(release, arguments.remove, output)
    return 0


def output_folder(given: str, folder: Path) -> Path:
    output = Path(os.path.realpath(given))
    if output.is_relative_to(os.path.realpath(folder)):
        raise ReleaseError(f"{output} is inside the release: give --output a folder outside of {folder}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ReleaseError(f"{output} exists and is not an empty folder: give --output a new one")
    if not output.parent.is_dir():
        raise ReleaseError(f"{output.parent} is not a folder: create it first, or give another --output")
    return output


def note_foreign_links(folder: Path) -> None:
    """Prints which files a copy of the release would get from elsewhere. Whoever made the release chose the links."""
    foreign = [str(name) for name in carried_files(folder, set()) if leads_out(folder, folder / name)]
    if foreign:
        print(f"note: {listed(foreign)} of {folder} are links to files outside of it; the new folder has their content")


def encoder_file(given: str | None) -> Path:
    runs = from_environment("OUTPUT_DIR")
    if not given and not runs:
        raise ReleaseError("no encoder given: pass --encoder FILE, or set OUTPUT_DIR to train_encoder.py's output_dir")
    path = Path(given) if given else Path(runs) / "encoder.safetensors"
    if not path.is_file():
        raise ReleaseError(
            f"{path} is not a file: give the encoder.safetensors that train_encoder.py wrote (--encoder)"
        )
    return path


def trained_encoder(path: Path, release: Release, any_codec: bool) -> TensorFile:
    """The encoder in `path`, as BF16. Raises ReleaseError, with all reasons, if it is no encoder for this release."""
    file = read_tensor_file(path)
    tensors = {name: replace(t, to_bf16=t.stored_as in CONVERTIBLE) for name, t in file.tensors.items()}
    wrong = misfits(tensors, expected_encoder(release.config), values=True)
    if wrong:
        raise ReleaseError(f"{path} is no encoder for {release.folder}, nothing was changed: {wrong}")
    other = sorted({tensor.stored_as for tensor in file.tensors.values()} - {"BF16"})
    if other:
        print(f"note: {path} holds {' and '.join(other)}; it is written as BF16, which the server needs")
    stated, actual = (file.metadata or {}).get("codec_fingerprint"), codec_fingerprint(release)
    if stated is None:
        print(f"note: {path} does not say which codec it was trained against; only names and shapes were compared")
    elif stated != actual and not any_codec:
        raise ReleaseError(
            f"{path} was trained against another codec (fingerprint {stated}, the release's is {actual}), so its codes "
            "do not fit this one: train an encoder against this release, or inject this one anyway with --any-codec"
        )
    return TensorFile(tensors, {"format": "pt"} | (file.metadata or {}))


def codec_fingerprint(release: Release) -> str:
    """The hash of the release's codec. An encoder trained against it has the same hash in its metadata."""
    buffer = bytearray(CHUNK)
    tensors = {name: tensor for file in release.files.values() for name, tensor in file.tensors.items()}
    return fingerprint({name: tensor.chunks(buffer) for name, tensor in tensors.items()})


def check(release: Release) -> int:
    """Prints which encoder the release has. Returns 0 for an encoder, 1 for none. Raises ReleaseError for faults."""
    wrong, where = [], [path.name for path in release.merged]
    tensors = {name: tensor for part in release.merged.values() for name, tensor in part.items()}
    if release.own is not None:
        if where:
            wrong.append(f"there are two, one in {OWN_NAME} and one in {listed(where)}")
        if not release.own_is_served:
            wrong.append(f"{INDEX_NAME} does not list {OWN_NAME}, so the server does not read it")
        tensors, where = release.own.tensors, [OWN_NAME]
    if release.own_damage:
        wrong.append(release.own_damage)
    elif where:
        wrong += filter(None, [misfits(tensors, expected_encoder(release.config), values=True)])
    if release.index is not None and not wrong:
        named = encoder_part(release.index["weight_map"])
        if named != {name: tensor.path.name for name, tensor in tensors.items()}:
            wrong.append(f"{INDEX_NAME} does not name the files its tensors are in")
    if wrong:
        todo = release.foreign or "inject it again, or remove it with --remove"
        raise ReleaseError(f"the encoder of {release.folder} has faults: {'; '.join(wrong)}: {todo}")
    print(f"{release.folder} has {f'an encoder without faults, in {listed(where)}' if where else 'no encoder'}")
    return 0 if where else 1


def foretell(steps: Sequence[Step], folder: Path) -> int:
    """Prints what would be done, for --dry-run. Returns the exit status."""
    for step in steps:
        target = folder / step.target.name
        if isinstance(step, Write):
            print(f"would write {target} ({step.nbytes} bytes)")
        else:
            print(f"would {'make it a link again: ' if isinstance(step, Relink) else 'delete '}{target}")
    needed = sum(step.nbytes for step in steps if isinstance(step, Write))
    disk = folder if folder.is_dir() else folder.parent
    free = shutil.disk_usage(disk).free
    print(f"needs {readable(needed)}; the disk has {readable(free)} free" if steps else "nothing to do")
    return 0


def report(steps: Sequence[Step], folder: Path, seconds: float) -> None:
    """Prints what was done: every file once, though an index may have been written twice."""
    for step in {step.target: step for step in steps}.values():
        if isinstance(step, Write):
            print(f"wrote {folder / step.target.name}: {readable(step.nbytes)}, read back and compared")
        elif isinstance(step, Relink):
            print(f"{folder / step.target.name} is the link again that it was")
        else:
            print(f"deleted {folder / step.target.name}")
    print(f"done in {seconds:.1f} s" if steps else f"nothing to do: {folder} has no encoder")


def suggest(release: Release, removed: bool, output: Path | None) -> None:
    """Prints the next commands, and how to undo."""
    folder = shlex.quote(str(output or release.folder))
    if removed:
        return
    print(f"next: python patch_tokenizer.py --model-dir {folder}\n      vllm serve {folder} --omni")
    if output:
        print(f"undo: delete {folder}; {release.folder} is as it was")
    else:
        print(f"undo: python inject_encoder.py --model-dir {folder} --remove")
        if release.merged or release.own:
            print("      (it does not bring back the encoder that was replaced)")


if __name__ == "__main__":
    sys.exit(main())
