"""Measures `inject_encoder.py --merge` against copying the file, and what reading a release's codec takes.

    python -m experiments.merge_speed                  # a release of 4 GB: 13 GB of disk, two minutes
    python -m experiments.merge_speed --gigabytes 8    # of the real size

Makes a release with the codec at its real dimensions and random weights as its language model, in a temporary folder
that it removes. Then it copies the checkpoint (`cp`, then fsync) and merges an encoder into it, each first in every
other round, both with the source in the page cache. Memory is the peak of the process, as the system counts it: that
includes the pages of the file that are mapped. Exit status 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Nothing heavy is imported up here: a child's peak counts from its parent's size on.
ROOT = Path(__file__).parent.parent
ROUNDS = 5  # odd, so that what is left at the end is a merged release
LIMIT_MERGE = 1000  # MB
LIMIT_LOAD = 1500  # MB above the imports
LIMIT_RATIO = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--folder", type=Path, help="where to make it (default: the system's temporary folder)")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, int(arguments.gigabytes * 1e9))
        return 0
    work = Path(tempfile.mkdtemp(prefix="measure_merge_", dir=arguments.folder))
    try:
        return measure(work, arguments.gigabytes)
    finally:
        shutil.rmtree(work)


def measure(work: Path, gigabytes: float) -> int:
    measured("-m", "experiments.merge_speed", "--make", str(work), "--gigabytes", str(gigabytes))
    checkpoint = work / "release" / "consolidated.safetensors"
    size, encoder = checkpoint.stat().st_size / 1e9, (work / "encoder.safetensors").stat().st_size / 1e9
    print(f"a checkpoint of {size:.2f} GB, an encoder of {encoder:.2f} GB, {os.cpu_count()} CPU cores, in {work}\n")

    starting, imports = measured("-c", "import inject_encoder")
    copying, merging, peaks = [], [], []
    for number in range(1 + ROUNDS):
        for what in ("copy", "merge") if number % 2 else ("merge", "copy"):
            shutil.rmtree(work / "merged", ignore_errors=True)
            settle(checkpoint)
            if what == "copy":
                copying.append(copied(checkpoint, work / "copy"))
            else:
                seconds, peak = merged_into_a_copy(work)
                merging.append(seconds)
                peaks.append(peak)

    # The first round is not counted: a virtual machine's memory is slow where it was never used before.
    copying, merging = copying[1:], merging[1:]
    ratio = statistics.median(merging) / statistics.median(copying)
    each = sorted(merge / copy for merge, copy in zip(merging, copying, strict=True))
    print(f"cp and fsync      {spread(copying)}")
    print(f"--merge           {spread(merging)}, of which {starting:.1f} s are Python's start and imports")
    print(f"  time            {ratio:.2f} times the copy ({each[0]:.2f} to {each[-1]:.2f}; limit {LIMIT_RATIO})")
    print(
        f"  peak memory     {max(peaks):.0f} MB (limit {LIMIT_MERGE}), {max(peaks) - imports:.0f} MB above the imports"
    )

    _, imports = measured("-c", "import codec.checkpoint")
    seconds, peak = measured(
        "-c", "import codec, sys; assert codec.load_release(sys.argv[1]).has_encoder", str(work / "merged")
    )
    above = peak - imports
    print(f"load_release      {seconds:.1f} s, {peak:.0f} MB, {above:.0f} MB above the imports (limit {LIMIT_LOAD})")
    return int(ratio > LIMIT_RATIO or max(peaks) > LIMIT_MERGE or above > LIMIT_LOAD)


def copied(checkpoint: Path, copy: Path) -> float:
    """Copies with `cp` and forces the copy to the disk: seconds."""
    started = time.monotonic()
    subprocess.run(["cp", "--reflink=never", checkpoint, copy], check=True)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    copy.unlink()
    return seconds


def merged_into_a_copy(work: Path) -> tuple[float, float]:
    """Merges into `work`/merged, a folder of links to the release: seconds, and peak memory in MB."""
    target = work / "merged"
    target.mkdir()
    for name in ("params.json", "consolidated.safetensors"):
        (target / name).hardlink_to(work / "release" / name)
    return measured(
        "inject_encoder.py", "--merge", "--model-dir", str(target), "--encoder", str(work / "encoder.safetensors")
    )


def measured(*arguments: str) -> tuple[float, float]:
    """Runs Python with these arguments: seconds, and peak memory in MB."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.monotonic() - started, usage.ru_maxrss * 1024 / 1e6


def settle(checkpoint: Path) -> None:
    """What was written before is on the disk, and the source is in memory."""
    os.sync()
    with checkpoint.open("rb") as file:
        while file.read(1 << 24):
            pass


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f} in {len(seconds)} runs)"


def make(folder: Path, size: int) -> None:
    """A release without encoder and an encoder for it. The language model's part is one random block over and over."""
    from collections.abc import Iterator

    from codec.checkpoint import save_encoder
    from experiments.random_release import REAL, random_codec, write_release
    from release.splice import CHUNK, Stored, read_tensor_file

    block = os.urandom(CHUNK)

    class Noise(Stored):
        def chunks(self, buffer: bytearray) -> Iterator[memoryview]:
            for begin in range(0, self.size, CHUNK):
                yield memoryview(block)[: min(CHUNK, self.size - begin)]

    codec = random_codec(REAL)
    save_encoder(folder / "encoder.safetensors", codec, {})
    small = write_release(folder / "small", codec, with_encoder=False) / "consolidated.safetensors"
    release = folder / "release"
    release.mkdir()
    (small.parent / "params.json").rename(release / "params.json")
    shape = (9216, 3072)
    bytes_each = 2 * shape[0] * shape[1]
    layers = range(max(0, size - small.stat().st_size) // bytes_each + 1)
    noise = {f"layers.{i}.feed_forward.w1.weight": Noise(small, 0, bytes_each, shape, "BF16") for i in layers}
    with (release / "consolidated.safetensors").open("xb") as file:
        for piece in read_tensor_file(small).spliced(noise).chunks(bytearray(CHUNK)):
            file.write(piece)
    shutil.rmtree(small.parent)


if __name__ == "__main__":
    sys.exit(main())
