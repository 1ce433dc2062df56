"""How fast is configs/v3.yaml at the release's dimensions, and how much memory does it take?

    python -m experiments.recipe_speed --speech SPEECH --whisper MODEL [--gpus 1 2] [key=value ...]

Trains some steps and shows the speed, the memory and everything else that the run logs. Several numbers of GPUs are
measured one after the other, with the same number of crops on each GPU (weak scaling). The release and the speaker
network (of the published one's size) have random weights, on which speed and memory do not depend.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from experiments.random_release import REAL, random_codec, write_release
from experiments.runs import experiment_status, require_gpu, run_shown, spread, training_metrics
from experiments.stand_in.speaker_network import PUBLISHED, write_random_network

STEPS, LOG_EVERY = 80, 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", required=True, help="what `data.train` takes: files, a folder or a hub name")
    parser.add_argument("--whisper", required=True, help="name or file of the teacher")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help="numbers of GPUs (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")
    options = parser.parse_intermixed_args()
    return experiment_status(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    require_gpu()
    with tempfile.TemporaryDirectory(prefix="recipe_speed_") as folder:
        work = Path(folder)
        release = write_release(work / "release", random_codec(REAL), with_encoder=False)
        speaker = write_random_network(work / "speaker", PUBLISHED)
        settings = (
            *(f"steps={STEPS}", f"log_every={LOG_EVERY}", f"validate_every={STEPS}", f"save_every={STEPS}"),
            *(f"data.train={options.speech}", f"data.validation={options.speech}", f"model_dir={release}"),
            *(f"losses.asr_teacher={options.whisper}", f"losses.speaker_model={speaker}"),
            *options.overrides,
        )
        medians = []
        for gpus in options.gpus:
            lines = train(gpus, work / f"run_{gpus}", settings)
            speeds = [line["audio_seconds_per_second"] for line in lines[1:]]  # the first interval compiles
            medians.append(statistics.median(speeds))
            for name, value in lines[-1].items():
                print(f"{name:32}{value:.4g}")
            print(
                f"{gpus} GPUs: audio seconds per second, median of {len(speeds)} intervals of {LOG_EVERY} steps: "
                f"{spread(speeds)}",
                flush=True,
            )
    for gpus, median in zip(options.gpus[1:], medians[1:], strict=True):
        print(f"{gpus} GPUs: {median / medians[0]:.2f} times the speed of {options.gpus[0]}")
    return 0


def train(gpus: int, folder: Path, settings: tuple[str, ...]) -> list[dict[str, float]]:
    """The lines of metrics of a run on so many GPUs."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}") if gpus > 1 else ()
    run_shown(*launcher, "train_encoder.py", "--config", "configs/v3.yaml", *settings, f"output_dir={folder}")
    return training_metrics(folder)


if __name__ == "__main__":
    sys.exit(main())
