"""The whole way on the small stand-in in data/demo: train the missing encoder, inject it, measure it, clone voices.

    python -m examples.demo [OUTPUT_DIR]          # from the repository's root; `make demo` installs and does this

Each step prints and runs the command that a user runs on the real release. Only the server is another one: that of
examples/speech_server.py, in plain PyTorch. The exit status is 1 if the new encoder recovers less than three quarters
of the withheld encoder's mel distance, or if its codes differ from those of the server's own class.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from codec import load_release
from codec.checkpoint import with_encoder
from codec.config import SAMPLE_RATE
from data import decode, open_clips
from evaluation.server_codec import load_server_codec
from losses.asr.whisper_weights import CACHE, WeightsError, fetch
from system.command import UserError, exit_status

DEMO = Path("data/demo")
WITHHELD = DEMO / "withheld_encoder.safetensors"  # the encoder that the stand-in was trained with
RECOVERED = 0.75  # of the withheld encoder's mel distance; the decoder's inverse, where training starts, has about 0.7
MEASURED_CLIPS, CLONED_CLIPS = 10, 5
COMPARED_EVERY, WAV_EVERY = 3, 2  # of the unseen clips; of those that are compared
COLUMNS = {
    "mel": "mel",
    "sem_util": "sem_util",
    "wer": "word errors",
    "speaker_resemblyzer": "speaker",
    "embedding_agreement": "embedding",
    "equal_acoustic": "acoustic codes",
    "equal_semantic": "semantic codes",
}
CLONED_COLUMNS = {
    "wer": "word errors",
    "speaker_resemblyzer": "speaker",
    "others_resemblyzer": "other speakers",
    "nearest_resemblyzer": "right speaker",
    "length": "length",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default="runs/demo", help="(default: %(default)s)")
    output = parser.parse_args().output
    return exit_status(lambda: demo(output), f"what is finished is in {output}", f"what is finished is in {output}")


def demo(output: Path) -> int:
    started = time.monotonic()
    release = fresh_release(output)
    whisper = whisper_base()

    print("1. Train an encoder against the release's frozen decoder (configs/demo.yaml)", flush=True)
    train(release, output, whisper)

    print("\n2. Inject it into the release", flush=True)
    python("inject_encoder.py", "--model-dir", release, "--encoder", output / "encoder.safetensors")

    print("\n3. Measure it on unseen speakers, beside an untrained encoder and the withheld one", flush=True)
    figures = measure(release, output, whisper)
    print(f"\n{table(figures)}\n")

    print("4. Compare its codes with those of the server's own class (vllm-omni), loaded from the injected release")
    same = compare_with_server(release, output / "wav")

    print(
        "\n5. Speak new sentences in the voices of unseen speakers, with this encoder and with the withheld one",
        flush=True,
    )
    page = clone(release, output, whisper)

    print(f"\nOriginals and reconstructions: {output / 'wav'}\nInjected release: {release}")
    print(f"Pages to listen to: {output / 'report' / 'index.html'} and {page}")
    print(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")
    failures = shortcomings(figures, same)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def train(release: Path, output: Path, whisper: Path | None) -> None:
    speech = output / "speech"  # each clip is used forty times; decoding it each time would be a quarter of a step
    python("-m", "data.export", speech, DEMO / "seen.parquet")
    paths = (f"model_dir={release}", f"output_dir={output}", f"data.train={speech}", f"hf_cache={output / 'cache'}")
    asr = ("losses.asr=1", f"losses.asr_teacher={whisper}") if whisper else ()
    python("train_encoder.py", "--config", "configs/demo.yaml", *paths, *asr)


def measure(release: Path, output: Path, whisper: Path | None) -> dict[str, Any]:
    """Returns what evaluate_encoder.py wrote."""
    found = output / "figures.json"
    encoders = ("--model-dir", release, "--against", WITHHELD, "--clips", MEASURED_CLIPS)
    judges = ("--jobs", 2, "--speaker-model", DEMO / "speaker", "--without", "wavlm", "quality")
    files = ("--json", found, "--report", output / "report", "--metrics", output / "metrics.jsonl")
    python("evaluate_encoder.py", *encoders, *judges, *words(whisper), *files)
    return read(found)


def words(whisper: Path | None) -> tuple[str | Path, ...]:
    """The options that judge words; without Whisper `words` is one more name after --without."""
    return ("--whisper", whisper) if whisper else ("words",)


def compare_with_server(release: Path, wavs: Path) -> list[bool]:
    """Whether the server's class computes the same codes, for some unseen clips. Writes some of these and what two
    encoders make of them to the new folder `wavs`."""
    clips = unseen_clips()[::COMPARED_EVERY]
    trained, server = load_release(release), load_server_codec(release)
    codes = [trained.encode(clip) for clip in clips]
    same = [torch.equal(server._tokenize_audio(c.bfloat16()), code) for c, code in zip(clips, codes, strict=True)]
    total = sum(code.numel() for code in codes)
    print(
        f"   {total} codes of {len(clips)} clips: {'all equal' if all(same) else f'{same.count(False)} clips differ'}"
    )
    withheld = with_encoder(load_release(DEMO / "release"), WITHHELD)
    wavs.mkdir()
    for i in range(0, len(clips), WAV_EVERY):
        waveforms = {
            "original": clips[i],
            "trained": trained.decode(codes[i]),
            "withheld": withheld.decode(withheld.encode(clips[i])),
        }
        for name, waveform in waveforms.items():
            samples = waveform[0, 0, : clips[i].shape[-1]].clamp(-1, 1)
            soundfile.write(wavs / f"{i:02}_{name}.wav", samples, trained.sample_rate)
    return same


def clone(release: Path, output: Path, whisper: Path | None) -> Path:
    """Returns the page to listen to."""
    other, cloned = output / "release_withheld", output / "cloned"
    shutil.copytree(DEMO / "release", other)
    python("inject_encoder.py", "--model-dir", other, "--encoder", WITHHELD)
    logs = output / "server.log", output / "server_withheld.log"
    with serving(release, logs[0]) as trained, serving(other, logs[1]) as withheld:
        servers = ("--server", f"trained={trained}", f"withheld={withheld}")
        speech = ("--data", DEMO / "unseen.parquet", "--texts", DEMO / "sentences.txt", "--clips", CLONED_CLIPS)
        judges = ("--jobs", 2, "--without", "ecapa", "wavlm", "quality", *words(whisper))
        python("evaluate_cloning.py", *servers, *speech, "--output", cloned, *judges)
    print(f"\n{cloning_table(read(cloned / 'figures.json'))}")
    return cloned / "index.html"


@contextmanager
def serving(release: Path, log: Path) -> Iterator[str]:
    """Runs a server of a release on this machine, and gives its address. Raises UserError if it does not start."""
    command = ["-m", "examples.speech_server", "--model-dir", str(release), "--port", "0"]
    print(f"   $ python {' '.join(command)} &", flush=True)
    with (
        log.open("w") as errors,
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            address = next((word for word in server.stdout.readline().split() if word.startswith("http")), "")
            if not address:
                raise UserError(f"the server did not start: {log} says why")
            yield address.rstrip(".")
        finally:
            server.terminate()


def read(figures: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return found


def python(*arguments: object) -> None:
    """Prints and runs a command. Raises UserError if it fails."""
    command = [str(argument) for argument in arguments]
    print(f"   $ python {' '.join(command)}", flush=True)
    status = subprocess.run([sys.executable, *command], check=False).returncode
    if status:
        raise UserError(f"{command[0]} ended with status {status}: its output above says why")


def fresh_release(output: Path) -> Path:
    """Copies the stand-in, which lacks its encoder, to `output`/release. Deletes what an earlier demo left in `output`;
    raises UserError if something else is in there."""
    if not DEMO.is_dir():
        raise UserError(f"{DEMO} is not here: run the demo from the repository's root")
    release = output / "release"
    if output.exists() and any(output.iterdir()) and not release.is_dir():
        raise UserError(f"{output} has other files than a demo's: give an empty or a new folder")
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(DEMO / "release", release)
    return release


def whisper_base() -> Path | None:
    """The weights of Whisper base, which teaches the words and judges them: 145 MB, downloaded once. None if they
    cannot be had; the demo then goes on without."""
    try:
        return fetch(CACHE)
    except WeightsError as error:
        print(f"   The demo goes on without Whisper, so the words are neither taught nor judged: {error}")
        return None


def unseen_clips() -> list[Tensor]:
    """Whole clips [1, 1, T] at 24 kHz of speakers that no encoder was trained on: synthetic ones, then people."""
    clips = open_clips([str(DEMO / "unseen.parquet")])
    return [decode(clips.read(i), SAMPLE_RATE)[None] for i in range(len(clips))]


def table(found: dict[str, Any]) -> str:
    """A line for each encoder, and one for what the trained one recovered of the withheld one.

    `found` is what evaluate_encoder.py --json writes; a dash stands for what was not measured.
    """
    names = {"untrained": "untrained", "encoder": "trained", "against": "withheld"}
    rows = [[shown, *values(found["totals"][name], COLUMNS)] for name, shown in names.items()]
    shares = [(found["compared"].get(column) or {}).get("recovered") for column in COLUMNS]
    rows.append(["recovered", *(f"{share['value']:.0%}" if share else "–" for share in shares)])
    return aligned([["encoder", *COLUMNS.values()], *rows])


def cloning_table(found: dict[str, Any]) -> str:
    """A line for each encoder that gave the prompts, and one for the clips themselves. `found` is the figures.json of
    evaluate_cloning.py."""
    rows = [[name, *values(found["totals"][name], CLONED_COLUMNS)] for name in found["totals"]]
    return aligned([["prompts by", *CLONED_COLUMNS.values()], *rows])


def values(totals: dict[str, Any], columns: Iterable[str]) -> list[str]:
    return [f"{totals[column]['value']:.3f}" if column in totals else "–" for column in columns]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"   {name:<12}" + "".join(f"{cell:>16}" for cell in cells) for name, *cells in rows)


def shortcomings(found: dict[str, Any], same: Sequence[bool]) -> list[str]:
    """What went wrong, in sentences. `found` is the evaluation; `same` says of each clip whether the server's class
    computes the same codes."""
    failures = []
    recovered = found["compared"]["mel"]["recovered"]  # None if the untrained and the withheld encoder are as good
    if recovered is None or recovered["value"] < RECOVERED:
        failures.append(f"The new encoder recovered less than {RECOVERED:.0%} of the withheld one's mel distance.")
    if not all(same):
        failures.append("The server's own class computes other codes.")
    return failures


if __name__ == "__main__":
    sys.exit(main())
