"""How long does `inject_encoder.py --merge` take, compared with a copy of the file, and how much memory?

    python -m experiments.merge_speed                  # a release of 4 GB: needs 13 GB of disk, two minutes
    python -m experiments.merge_speed --gigabytes 8    # the real size

Makes a release in a temporary folder, which is removed at the end: the codec at its real dimensions, and random bytes
as the language model. Each round copies the checkpoint (`cp`, then fsync) and merges an encoder into it; which of the
two comes first alternates, and the source is in the page cache for both. Memory is the peak of the process as the
system counts it, including mapped pages of files. At the end, the same is measured of `load_release`. The exit status
is 1 if a limit is missed.
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

# Nothing heavy is imported here: a child's peak memory includes its parent's size.
from experiments.runs import ROOT, ExperimentError, experiment_status, spread

ROUNDS = 5  # odd, so that the last round leaves a merged release
LIMIT_MERGE = 1000  # MB
LIMIT_LOAD = 1500  # MB above the imports
LIMIT_RATIO = 2.0  # times the copy's duration


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make it (default: the system's temporary folder)")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:  # in a process of its own, see above
        write_large_release(arguments.make, int(arguments.gigabytes * 1e9))
        return 0

    def measure_in_temporary_folder() -> int:
        with tempfile.TemporaryDirectory(prefix="merge_speed_", dir=arguments.folder) as work:
            return measure(Path(work), arguments.gigabytes)

    return experiment_status(measure_in_temporary_folder)


def measure(work: Path, gigabytes: float) -> int:
    seconds_and_memory("-m", "experiments.merge_speed", "--make", str(work), "--gigabytes", str(gigabytes))
    checkpoint = work / "release" / "consolidated.safetensors"
    size, encoder = checkpoint.stat().st_size / 1e9, (work / "encoder.safetensors").stat().st_size / 1e9
    print(f"a checkpoint of {size:.2f} GB, an encoder of {encoder:.2f} GB, {os.cpu_count()} CPU cores, in {work}\n")

    starting, imports = seconds_and_memory("-c", "import inject_encoder")
    copying, merging, peaks = [], [], []
    for number in range(1 + ROUNDS):
        for what in ("copy", "merge") if number % 2 else ("merge", "copy"):
            shutil.rmtree(work / "merged", ignore_errors=True)
            sync_and_read(checkpoint)
            if what == "copy":
                copying.append(seconds_to_copy(checkpoint, work / "copy"))
            else:
                seconds, peak = merge_into_copy(work)
                merging.append(seconds)
                peaks.append(peak)

    # The first round is not counted: a virtual machine's memory is slow when it is used for the first time.
    copying, merging = copying[1:], merging[1:]
    ratio = statistics.median(merging) / statistics.median(copying)
    each = sorted(merge / copy for merge, copy in zip(merging, copying, strict=True))
    print(f"cp and fsync      {spread(copying, 's', 1)} in {ROUNDS} rounds")
    print(f"--merge           {spread(merging, 's', 1)}, of which {starting:.1f} s are Python's start and imports")
    print(f"  time            {ratio:.2f} times the copy ({each[0]:.2f} to {each[-1]:.2f}; limit {LIMIT_RATIO})")
    print(
        f"  peak memory     {max(peaks):.0f} MB (limit {LIMIT_MERGE}), {max(peaks) - imports:.0f} MB above the imports"
    )

    _, imports = seconds_and_memory("-c", "import codec.checkpoint")
    seconds, peak = seconds_and_memory(
        "-c", "import codec, sys; assert codec.load_release(sys.argv[1]).has_encoder", str(work / "merged")
    )
    above = peak - imports
    print(f"load_release      {seconds:.1f} s, {peak:.0f} MB, {above:.0f} MB above the imports (limit {LIMIT_LOAD})")
    return int(ratio > LIMIT_RATIO or max(peaks) > LIMIT_MERGE or above > LIMIT_LOAD)


def seconds_to_copy(checkpoint: Path, copy: Path) -> float:
    """Copies with `cp`, and waits until the copy is on the disk. The copy is deleted again."""
    started = time.monotonic()
    subprocess.run(["cp", "--reflink=never", checkpoint, copy], check=True)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    copy.unlink()
    return seconds


def merge_into_copy(work: Path) -> tuple[float, float]:
    """Merges into `work`/merged, whose files are links to the release's. Returns seconds, and peak memory in MB."""
    target = work / "merged"
    target.mkdir()
    for name in ("params.json", "consolidated.safetensors"):
        (target / name).hardlink_to(work / "release" / name)
    return seconds_and_memory(
        "inject_encoder.py", "--merge", "--model-dir", str(target), "--encoder", str(work / "encoder.safetensors")
    )


def seconds_and_memory(*arguments: str) -> tuple[float, float]:
    """Runs `python ARGUMENTS`. Returns seconds, and peak memory in MB. Raises ExperimentError if it fails."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise ExperimentError(f"`python {' '.join(arguments)}` failed: see its output above")
    return time.monotonic() - started, usage.ru_maxrss * 1024 / 1e6


def sync_and_read(checkpoint: Path) -> None:
    """Waits until everything written is on the disk, and reads the file into the page cache."""
    os.sync()
    with checkpoint.open("rb") as file:
        while file.read(1 << 24):
            pass


def write_large_release(folder: Path, size: int) -> None:
    """Writes a release without encoder, of `size` bytes, and an encoder for it. One random block, repeated, serves as
    the language model's weights."""
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
