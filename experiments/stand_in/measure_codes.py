"""What do encoders' codes say to somebody who knows the withheld encoder's codes only?

    python -m experiments.stand_in.measure_codes OUT.json --encoder NAME=FILE ... --unseen NAME=SPEECH ... --codes CODES

Every encoder encodes the same clips. For each clip OUT.json has

- the share of codes that equal the withheld encoder's, of acoustic ones up to one level, and the embeddings' cosine,
  also without what all rows have in common: a trained table's rows are alike, so any codes have a cosine of a half;
- the losses that the release's own language model has of the codes, given the clip's text and, as the voice, another
  clip of the speaker by the same encoder;
- its losses of the withheld encoder's codes, where only the voice is by the encoder: what it hears in such a prompt.

And for each encoder: the equal error rate of listeners (experiments/listener.py) that were trained on CODES, a folder
of code_statistics.py with the withheld encoder's codes of many speakers, and how often the right speaker is nearest.

Three systems more are measured: `withheld`, `second_pass` (the withheld encoder of its own decoded sound: the ceiling
of what pairs can teach), and `untrained`. `other_speaker` has the voice's losses for a voice of another speaker, by the
withheld encoder. Losses and listeners need two clips or more of every speaker; a set with fewer has the agreement only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.checkpoint import load_release, with_encoder
from codec.codec import Codec
from data import decode, open_clips
from evaluation.codes import agreement, mean_embedding_row
from evaluation.judges.judge import Metric
from evaluation.measure import untrained_encoder
from experiments.listener import STEPS, Listener, Trials, equal_error_rate, hear, train
from experiments.runs import DEMO, experiment_status, named
from experiments.stand_in.code_statistics import encode_clips
from experiments.stand_in.letters import letter_ids
from language_model import Example, LanguageModel, collate, load_language_model
from system.device import open_device

WITHHELD, SECOND_PASS, UNTRAINED, OTHER_SPEAKER = "withheld", "second_pass", "untrained", "other_speaker"
PROMPT_FRAMES = 70  # of the longest voice: as long as in the language model's training
LISTENERS = 3  # seeds
BATCH = 32  # clips that the language model reads at once
DRAWS = 16  # of the flow matching's noise and time: the loss of a single clip varies much
METRICS = (
    Metric("semantic", "semantic codes equal", "higher", "share equal to the withheld encoder's", 1, True),
    Metric("acoustic", "acoustic codes equal", "higher", "share equal to the withheld encoder's", 1, True),
    Metric("within_one", "acoustic, within one level", "higher", "share up to one level away", 1, True),
    Metric("cosine", "embedding, cosine", "higher", "cosine of each embedding row with the withheld encoder's"),
    Metric("centred", "the same, centred", "higher", "without the mean row of the withheld encoder's codes"),
    Metric("cross_entropy", "cross entropy", "lower", "the language model's of semantic codes, in nats", 2),
    Metric("flow", "flow matching loss", "lower", "the language model's of acoustic codes", 3),
    Metric("voice_cross_entropy", "cross entropy, only voice", "lower", "of the withheld encoder's codes", 3),
    Metric("voice_flow", "flow matching, only voice", "lower", "of the withheld encoder's codes", 4),
    Metric("nearest", "right speaker nearest", "higher", "to the listener, of all speakers", 1, True),
    Metric("error_rate", "equal error rate", "lower", "the listener's, of the own speaker against others", 1, True),
)


@dataclass(frozen=True)
class Speech:
    """Clips of one set. `waveforms` are [T], int16."""

    waveforms: list[Tensor]
    speakers: list[str]
    texts: list[str]

    @classmethod
    def read(cls, source: str, most: int) -> Speech:
        clips = open_clips([source])
        chosen = np.unique(np.linspace(0, len(clips) - 1, most or len(clips)).round().astype(int))
        read = [clips.read(int(i)) for i in chosen]
        waveforms = [decode(clip, 24_000, resample=True)[0] for clip in read]
        whole = [(waveform * 32768).round().clamp(-32768, 32767).to(torch.int16) for waveform in waveforms]
        return cls(whole, [clip.speaker for clip in read], [clip.text for clip in read])

    def another(self) -> list[int] | None:
        """For each clip, the next one of its speaker; None if a speaker has only one."""
        numbers = np.arange(len(self.speakers))
        found = np.empty(len(numbers), int)
        for speaker in set(self.speakers):
            own = numbers[[each == speaker for each in self.speakers]]
            found[own] = np.roll(own, -1)
        return None if (found == numbers).any() else found.tolist()

    def of_another_speaker(self) -> list[int]:
        """For each clip, a clip of another speaker."""
        names = sorted(set(self.speakers))
        first = {name: self.speakers.index(name) for name in names}
        following = dict(zip(names, names[1:] + names[:1], strict=True))
        return [first[following[speaker]] for speaker in self.speakers]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", nargs="+", required=True, type=named, metavar="NAME=FILE")
    parser.add_argument("--unseen", nargs="+", required=True, type=named, metavar="NAME=SPEECH")
    parser.add_argument("--codes", required=True, type=Path, help="the withheld encoder's, to train the listeners")
    parser.add_argument("--model-dir", type=Path, default=DEMO / "release", help="default: the demo's release")
    parser.add_argument(
        "--against", type=Path, default=DEMO / "withheld_encoder.safetensors", help="default: the demo's withheld one"
    )
    parser.add_argument("--clips", type=int, default=0, help="of each set, spread over all (default: all)")
    parser.add_argument("--listener-steps", type=int, default=STEPS, help="default: %(default)s")
    options = parser.parse_args(argv)
    return experiment_status(lambda: measure(options), "nothing was written")


def measure(options: argparse.Namespace) -> int:
    device = open_device()
    release = options.model_dir
    model = load_language_model(release, device)
    listeners = trained_listeners(options, load_release(release, torch.bfloat16, device))
    sets = {name: Speech.read(source, options.clips) for name, source in options.unseen}
    found: dict[str, dict[str, Any]] = {
        name: {"speakers": speech.speakers, "frames": [], "systems": {}} for name, speech in sets.items()
    }
    known: dict[str, list[Tensor]] = {}
    for system, codec in systems(options, device):
        for name, speech in sets.items():
            if system == WITHHELD:
                known[name] = encode_clips(codec, speech.waveforms)
                found[name]["frames"] = [codes.shape[1] for codes in known[name]]
            codes = known[name] if system == WITHHELD else encoded(system, codec, speech, known[name])
            scores = agreements(codec, codes, known[name])
            another = speech.another()
            if another is not None:
                scores |= model_losses(model, speech, codes, known[name], another)
                scores |= heard(listeners, speech, codes, known[name])
                if system == WITHHELD:
                    voices = [codes[i] for i in speech.of_another_speaker()]
                    losses = losses_of(model, voices, speech.texts, codes)
                    found[name]["systems"][OTHER_SPEAKER] = {f"voice_{each}": losses[each] for each in losses}
            found[name]["systems"][system] = scores
        print(f"{system}: {len(known)} sets measured", flush=True)
    options.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return 0


def trained_listeners(options: argparse.Namespace, codec: Codec) -> list[Listener]:
    arrays = np.load(options.codes / "train.npz")
    rows = json.loads((options.codes / "train.json").read_text(encoding="utf-8"))
    codes = np.concatenate([arrays["semantic"][None].astype(np.int64), arrays["acoustic"].T.astype(np.int64)])
    clips = list(torch.from_numpy(codes).split(arrays["lengths"].tolist(), dim=1))
    speakers = [row[1] for row in rows]
    return [
        train(clips, speakers, codec.config, seed, options.listener_steps, device=codec.device)
        for seed in range(LISTENERS)
    ]


def systems(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Codec]]:
    """The withheld encoder comes first."""

    def loaded(encoder: str | Path) -> Codec:
        return with_encoder(load_release(options.model_dir, torch.bfloat16, device), Path(encoder))

    yield WITHHELD, loaded(options.against)
    yield SECOND_PASS, loaded(options.against)
    yield UNTRAINED, untrained_encoder(options.model_dir, device, seed=0)
    for name, encoder in options.encoder:
        yield name, loaded(encoder)


def encoded(system: str, codec: Codec, speech: Speech, known: Sequence[Tensor]) -> list[Tensor]:
    if system != SECOND_PASS:
        return encode_clips(codec, speech.waveforms)
    found = []
    for codes, waveform in zip(known, speech.waveforms, strict=True):
        sound = codec.decode(codes[None].to(codec.device))[..., : len(waveform)]
        found.append(codec.encode(sound.clamp(-1, 1))[0].cpu())
    return found


def agreements(codec: Codec, codes: Sequence[Tensor], known: Sequence[Tensor]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {name: [] for name in ("semantic", "acoustic", "within_one", "cosine", "centred")}
    mean_row = mean_embedding_row(codec, known)
    for own, theirs in zip(codes, known, strict=True):
        values = agreement(codec, own, theirs, mean_row).values
        scores["semantic"].append(values["equal_semantic"].value)
        scores["acoustic"].append(values["equal_acoustic"].value)
        scores["within_one"].append(float(((own - theirs)[1:].abs() <= 1).float().mean()))
        scores["cosine"].append(values["embedding_agreement"].value)
        scores["centred"].append(values["embedding_centred"].value)
    return scores


def model_losses(
    model: LanguageModel, speech: Speech, codes: Sequence[Tensor], known: Sequence[Tensor], another: Sequence[int]
) -> dict[str, list[float]]:
    voices = [codes[i] for i in another]
    own, only_voice = (losses_of(model, voices, speech.texts, each) for each in (codes, known))
    return {**own, **{f"voice_{name}": values for name, values in only_voice.items()}}


@torch.inference_mode()
def losses_of(
    model: LanguageModel, voices: Sequence[Tensor], texts: Sequence[str], speech: Sequence[Tensor]
) -> dict[str, list[float]]:
    """Of each clip, with the same noise for all encoders."""
    examples = [
        Example(voice[:, :PROMPT_FRAMES], letter_ids(text), codes)
        for voice, text, codes in zip(voices, texts, speech, strict=True)
    ]
    found: dict[str, list[float]] = {"cross_entropy": [], "flow": []}
    for first in range(0, len(examples), BATCH):
        batch = collate(examples[first : first + BATCH], model.config).to(model.device)
        generator = torch.Generator(model.device).manual_seed(first)
        losses = model.loss(batch, draws=DRAWS, generator=generator, by_sequence=True)
        found["cross_entropy"] += losses["semantic"].tolist()
        found["flow"] += losses["acoustic"].tolist()
    return found


def heard(
    listeners: Sequence[Listener], speech: Speech, codes: Sequence[Tensor], known: Sequence[Tensor]
) -> dict[str, Any]:
    trials: list[Trials] = [hear(listener, known, codes, speech.speakers) for listener in listeners]
    rate, draws = equal_error_rate(trials)
    return {
        "nearest": np.mean([each.nearest for each in trials], axis=0).tolist(),
        "error_rate": rate.value,
        "error_rate_draws": draws.round(5).tolist(),
    }


def averaged(found: Mapping[str, Any], runs: Sequence[str], metric: str) -> np.ndarray | None:
    """A metric's values, mean over several systems (the seeds of a configuration): of each clip, or of each draw of the
    bootstrap for the error rate, its own value first. None if one of them has none."""
    of_runs = [found["systems"].get(run, {}) for run in runs]
    if any(metric not in each for each in of_runs):
        return None
    if metric == "error_rate":
        return np.mean([[each["error_rate"], *each["error_rate_draws"]] for each in of_runs], axis=0)
    return np.mean([each[metric] for each in of_runs], axis=0)


if __name__ == "__main__":
    sys.exit(main())
