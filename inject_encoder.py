"""Puts a trained encoder into a Voxtral TTS release, so that it clones voices, and takes it out again.

    python inject_encoder.py                                  # $OUTPUT_DIR/encoder.safetensors into $MODEL_DIR
    python inject_encoder.py --model-dir DIR --encoder FILE   # the same, named
    python inject_encoder.py --merge                          # into the checkpoint's own file
    python inject_encoder.py --merge --output NEW_DIR         # into a new folder, the release stays as it is
    python inject_encoder.py --check                          # exit status 0: has an encoder, 1: has none, 2: wrong
    python inject_encoder.py --remove                         # back to a release without encoder

With --dry-run it says what it would write. The server reads every `consolidated*.safetensors` of the folder, so by
default the encoder becomes a file of its own, `consolidated_encoder.safetensors`, and the 8 GB beside it are not
touched. Programs that read `consolidated.safetensors` alone need --merge. Killed at any moment, either leaves the
release as it was or as asked for; the next run clears away what was half written.
"""

from __future__ import annotations

import argparse
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
from release.splice import (
    CHUNK,
    CONVERTIBLE,
    Step,
    TensorFile,
    Write,
    apply,
    apply_to_copy,
    clear_partials,
    read_tensor_file,
    readable,
    sole_use,
)
from system.command import exit_status, model_folder
from system.environment import from_environment


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return exit_status(lambda: run(arguments), "the release is as it was or as asked for, --check tells which")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument("--encoder", metavar="FILE", help="default: encoder.safetensors in OUTPUT_DIR")
    parser.add_argument("--output", metavar="DIR", help="with --merge: a new, complete folder instead of in place")
    parser.add_argument("--any-codec", action="store_true", help="take an encoder trained against another codec")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, change nothing")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--merge", action="store_true", help="write into the checkpoint's own file")
    what.add_argument("--check", action="store_true", help="say whether the release has a right encoder")
    what.add_argument("--remove", action="store_true", help="take the encoder out, in whichever form it is there")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    folder = model_folder(arguments.model_dir)
    output = output_folder(arguments.output, folder) if arguments.output else None
    if output and not arguments.merge:
        raise ReleaseError("--output goes with --merge: only a merged encoder makes a new folder")
    with sole_use(folder):
        release = read_release(folder)
        if arguments.check:
            return check(release)
        if arguments.remove:
            steps = removal(release)
        else:
            encoder = trained_encoder(encoder_file(arguments.encoder), release, arguments.any_codec)
            steps = merged(release, encoder) if arguments.merge else beside(release, encoder)
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
    output = Path(given).resolve()
    if output.is_relative_to(folder.resolve()):
        raise ReleaseError(f"{output} lies in the release itself: name a folder outside of {folder} with --output")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ReleaseError(f"{output} exists and is not an empty folder: name a new one with --output")
    if not output.parent.is_dir():
        raise ReleaseError(f"{output.parent} is not a folder: make it first, or name another with --output")
    return output


def encoder_file(given: str | None) -> Path:
    runs = from_environment("OUTPUT_DIR")
    if not given and not runs:
        raise ReleaseError("no encoder given: pass --encoder FILE, or set OUTPUT_DIR to what train_encoder.py wrote")
    path = Path(given) if given else Path(runs) / "encoder.safetensors"
    if not path.is_file():
        raise ReleaseError(
            f"{path} is not a file: give the encoder.safetensors that train_encoder.py wrote (--encoder)"
        )
    return path


def trained_encoder(path: Path, release: Release, any_codec: bool) -> TensorFile:
    """The encoder in `path`, as BF16. Raises ReleaseError with all that keeps it from being this release's."""
    file = read_tensor_file(path)
    tensors = {name: replace(t, to_bf16=t.stored_as in CONVERTIBLE) for name, t in file.tensors.items()}
    wrong = misfits(tensors, expected_encoder(release.config), values=True)
    if wrong:
        raise ReleaseError(f"{path} is no encoder for {release.folder}, nothing was changed: {wrong}")
    other = sorted({tensor.stored_as for tensor in file.tensors.values()} - {"BF16"})
    if other:
        print(f"note: {path} holds {' and '.join(other)}; written as BF16, which the server needs")
    stated, actual = (file.metadata or {}).get("codec_fingerprint"), codec_fingerprint(release)
    if stated is None:
        print(f"note: {path} does not say which codec it was trained against; only names and shapes were compared")
    elif stated != actual and not any_codec:
        raise ReleaseError(
            f"{path} was trained against another codec (its fingerprint is {stated}, the release's {actual}), to which "
            "its codes belong: train one against this release, or inject it all the same with --any-codec"
        )
    return TensorFile(tensors, {"format": "pt"} | (file.metadata or {}))


def codec_fingerprint(release: Release) -> str:
    """The hash of the release's codec that an encoder trained against it carries."""
    buffer = bytearray(CHUNK)
    tensors = {name: tensor for file in release.files.values() for name, tensor in file.tensors.items()}
    return fingerprint({name: tensor.chunks(buffer) for name, tensor in tensors.items()})


def check(release: Release) -> int:
    """Says what encoder the release has: 0 for a right one, 1 for none. Raises ReleaseError where anything is wrong."""
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
        todo = "inject it again, or take it out with --remove"
        raise ReleaseError(f"the encoder of {release.folder} is not right: {'; '.join(wrong)}: {todo}")
    print(f"{release.folder} has {f'a right encoder, in {listed(where)}' if where else 'no encoder'}")
    return 0 if where else 1


def foretell(steps: Sequence[Step], folder: Path) -> int:
    """What would be done, for --dry-run."""
    for step in steps:
        size = f" ({step.nbytes} bytes)" if isinstance(step, Write) else ""
        print(f"would {'write' if size else 'delete'} {folder / step.target.name}{size}")
    needed = sum(step.nbytes for step in steps if isinstance(step, Write))
    disk = folder if folder.is_dir() else folder.parent
    free = shutil.disk_usage(disk).free
    print(f"needs {readable(needed)} on the disk, of which {readable(free)} are free" if steps else "nothing to do")
    return 0


def report(steps: Sequence[Step], folder: Path, seconds: float) -> None:
    """What was done: every file once, though an index may have been written twice."""
    for step in {step.target: step for step in steps}.values():
        if isinstance(step, Write):
            print(f"wrote {folder / step.target.name}: {readable(step.nbytes)}, read back and compared")
        else:
            print(f"deleted {folder / step.target.name}")
    print(f"done in {seconds:.1f} s" if steps else f"nothing to do: {folder} has no encoder")


def suggest(release: Release, removed: bool, output: Path | None) -> None:
    """The next commands, and the way back."""
    folder = shlex.quote(str(output or release.folder))
    if removed:
        return
    print(f"next: python patch_tokenizer.py --model-dir {folder}\n      vllm serve {folder} --omni")
    if output:
        print(f"undo: delete {folder}; {release.folder} is as it was")
    else:
        print(f"undo: python inject_encoder.py --model-dir {folder} --remove")
        if release.merged or release.own:
            print("      (the encoder that was there before has been replaced)")


if __name__ == "__main__":
    sys.exit(main())
