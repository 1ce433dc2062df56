"""Runs configs/v3.yaml at the release's dimensions for some steps; shows its speed, its memory and all that it logs.

    python -m experiments.recipe_speed [--gpus 1 2] --speech SPEECH --whisper MODEL [key=value ...]

Several numbers of GPUs are run one after the other, each GPU with as many crops as the only one has (weak scaling).
The release and a speaker network of the published one's size have random weights: what is measured does not depend on
them. SPEECH is what `data.train` takes, MODEL a Whisper by name or file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from experiments.random_release import REAL, random_codec, write_release
from losses.speaker import HYPERPARAMETERS, WEIGHTS, SpeakerNetwork

ROOT = Path(__file__).parent.parent
STEPS, LINE = 80, 20
# of speechbrain/spkrec-ecapa-voxceleb
PUBLISHED_SIZE = """\
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 80
    channels: [1024, 1024, 1024, 1024, 3072]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 128
    lin_neurons: 192
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", required=True)
    parser.add_argument("--whisper", required=True)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="measure_recipe_") as work:
        release = write_release(Path(work) / "release", random_codec(REAL), with_encoder=False)
        settings = (
            *(f"steps={STEPS}", f"log_every={LINE}", f"validate_every={STEPS}", f"save_every={STEPS}"),
            *(f"data.train={options.speech}", f"data.validation={options.speech}", f"model_dir={release}"),
            *(f"losses.asr_teacher={options.whisper}", f"losses.speaker_model={speaker(Path(work) / 'speaker')}"),
            *options.overrides,
        )
        medians = []
        for gpus in options.gpus:
            lines = run(gpus, Path(work) / f"run_{gpus}", settings)
            print("\n".join(report(gpus, lines)), flush=True)
            medians.append(statistics.median(speeds(lines)))
    for gpus, median in zip(options.gpus[1:], medians[1:], strict=True):
        print(f"{gpus} GPUs: {median / medians[0]:.2f} times the speed of {options.gpus[0]}")
    return 0


def run(gpus: int, folder: Path, settings: tuple[str, ...]) -> list[dict[str, float]]:
    """The lines of metrics of a run, one by one shown as it goes on."""
    launched = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}") if gpus > 1 else ()
    script = ("train_encoder.py", "--config", "configs/v3.yaml")
    subprocess.run([sys.executable, *launched, *script, *settings, f"output_dir={folder}"], cwd=ROOT, check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "mel" in line]


def speaker(folder: Path) -> Path:
    folder.mkdir()
    (folder / HYPERPARAMETERS).write_text(PUBLISHED_SIZE, encoding="utf-8")
    torch.manual_seed(0)
    torch.save(SpeakerNetwork(folder / HYPERPARAMETERS).embedding.state_dict(), folder / WEIGHTS)
    return folder


def speeds(lines: list[dict[str, float]]) -> list[float]:
    """Of every stretch but the first, which compiles."""
    return [line["audio_seconds_per_second"] for line in lines[1:]]


def report(gpus: int, lines: list[dict[str, float]]) -> list[str]:
    """The last line of metrics, and the speed."""
    shown = [f"{name:32}{value:.4g}" for name, value in lines[-1].items()]
    found = speeds(lines)
    median = f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
    return [*shown, f"{gpus} GPUs: audio seconds a second, median of {len(found)} stretches of {LINE} steps: {median}"]


if __name__ == "__main__":
    sys.exit(main())
