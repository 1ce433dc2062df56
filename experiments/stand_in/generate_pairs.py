"""Pairs that the stand-in's language model speaks, in plain PyTorch: `speak_pairs.py` without a server.

    python -m experiments.stand_in.generate_pairs OUT --hours 10                     # the release's preset voices
    python -m experiments.stand_in.generate_pairs OUT --prompts CODES --speakers 5   # voices of clips
    python -m experiments.stand_in.generate_pairs OUT --seed 1                       # other texts, voices and noise

The texts are sentences from the closed vocabulary (sentences.py), none of the dev or test split. CODES is a folder of
code_statistics.py: the codes of many speakers' clips, by any encoder. OUT gets shards (data/pairs.py), which
`data.pairs` takes. Every sentence has noise of its own. What is no speech is left out and counted, as in
`speak_pairs.py`. A run can be added to a folder with another seed, on another GPU at the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.checkpoint import codec_fingerprint, load_release
from codec.voices import read_voices
from data.clips import DataError
from data.pairs import SHARD_PAIRS, About, Pair, write_shard
from data.seeds import derive_seed
from data.speaking import REASONS, Job, Plan, choose_voices, fault
from experiments.runs import DEMO, ExperimentError, experiment_status
from experiments.stand_in.letters import letter_ids
from experiments.stand_in.sentences import sentences
from language_model import LanguageModel, Prompt, generate, load_language_model
from system.device import open_device

PROMPT_FRAMES = (20, 70)  # of clips that lend their voices: what the language model was trained with
TEXT_SEED = 1000  # the first; plan_speech.py has 1
NOISE = -9  # the noise's random numbers are not those of the jobs


class Voice(NamedTuple):
    name: str
    prompt: Tensor
    """Codes [37, N], or the rows of a preset."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model-dir", type=Path, default=DEMO / "release", help="default: the demo's release")
    parser.add_argument("--hours", type=float, default=1.0, help="how much to speak (default: %(default)s)")
    parser.add_argument("--voices", nargs="+", default=[], metavar="NAME", help="presets (default: all)")
    parser.add_argument("--prompts", type=Path, metavar="CODES", help="speak in the voices of these clips instead")
    parser.add_argument("--split", default="train", help="of CODES (default: %(default)s)")
    parser.add_argument("--speakers", type=int, default=0, metavar="N", help="of CODES, drawn by --seed (default: all)")
    parser.add_argument("--clips", type=int, default=0, metavar="N", help="of each speaker (default: all)")
    parser.add_argument("--cfg-alpha", type=float, default=1.2, help="guidance (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=20_000, metavar="N", help="different ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of texts, voices and noise (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="texts spoken at once (default: %(default)s)")
    parser.add_argument("--shard-texts", type=int, default=SHARD_PAIRS, help="texts of a file (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=12.0, help="of a text's speech (default: %(default)s)")
    options = parser.parse_args(argv)
    return experiment_status(lambda: speak(options), f"{options.out} holds the shards written so far")


def speak(options: argparse.Namespace) -> int:
    if any(options.out.glob(f"pairs_{options.seed}_*.safetensors")):
        raise DataError(f"{options.out} has shards of seed {options.seed} already: name another folder or seed")
    device = open_device()
    model = load_language_model(options.model_dir, device)
    codec = load_release(options.model_dir)
    fingerprint = codec_fingerprint(codec)
    voices = voices_of_clips(options) if options.prompts else preset_voices(options, model.config.dim)
    plan = Plan(
        texts=tuple(sentences("train", options.texts, TEXT_SEED + options.seed)),
        voices=(),
        prompts=len(voices),
        cfg_alpha=(options.cfg_alpha, options.cfg_alpha),
        seed=options.seed,
        shard_jobs=options.shard_texts,
        repeat=True,
    )
    speakers = len({voice.name for voice in voices})
    print(f"{len(voices)} prompts of {speakers} voices", flush=True)
    left_out, began, spoken, pairs = Counter[str](), time.monotonic(), 0.0, 0
    for shard in count():
        said: dict[int, Pair] = {}
        for job, pair, ended in of_jobs(model, plan.jobs(shard), voices, options, codec.frame_rate):
            reason = fault(pair.codes, ended, job.text, codec.frame_rate)
            if reason:
                left_out[reason] += 1
            else:
                said[job.number] = pair
        if not said:
            raise ExperimentError(f"none of {options.shard_texts} texts became speech: does this language model speak?")
        kept = []
        for number in sorted(said):
            if spoken >= 3600 * options.hours:
                break
            kept.append(said[number])
            spoken += said[number].codes.shape[1] / codec.frame_rate
        write_shard(options.out / f"pairs_{options.seed}_{shard:05}.safetensors", kept, fingerprint)
        pairs += len(kept)
        print(f"{pairs} pairs, {spoken / 3600:.2f} hours in {time.monotonic() - began:.0f} s", flush=True)
        if spoken >= 3600 * options.hours:
            break
    for reason, times in left_out.most_common():
        print(f"left out {times} times: {REASONS[reason]}")
    return 0


def of_jobs(
    model: LanguageModel, jobs: Sequence[Job], voices: Sequence[Voice], options: argparse.Namespace, frame_rate: float
) -> Iterator[tuple[Job, Pair, bool]]:
    """Each job, what was spoken, and whether it ended. Texts of similar length go together, because a batch takes as
    long as its longest speech."""
    most = math.ceil(options.max_seconds * frame_rate)
    jobs = sorted(jobs, key=lambda job: len(job.text))
    for first in range(0, len(jobs), options.batch):
        some = jobs[first : first + options.batch]
        prompts = [Prompt(voices[job.prompt].prompt, letter_ids(job.text)) for job in some]
        seeds = [derive_seed(options.seed, job.number, NOISE) for job in some]
        for job, seed, speech in zip(
            some, seeds, generate(model, prompts, most, options.cfg_alpha, seeds=seeds), strict=True
        ):
            about = About(job.text, voices[job.prompt].name, "en", seed, options.cfg_alpha)
            yield job, Pair(speech.codes, about), speech.ended


def preset_voices(options: argparse.Namespace, dim: int) -> list[Voice]:
    wanted = choose_voices(options.model_dir, options.voices)
    rows = read_voices(options.model_dir / "voice_embedding", dim)
    return [Voice(name, rows[name]) for name in wanted]


def voices_of_clips(options: argparse.Namespace) -> list[Voice]:
    """The clips in `options.prompts` that are neither too short nor too long for a prompt. Raises DataError if there
    are none, or fewer speakers than asked for."""
    arrays = np.load(options.prompts / f"{options.split}.npz")
    rows = json.loads((options.prompts / f"{options.split}.json").read_text(encoding="utf-8"))
    semantic, acoustic, lengths = arrays["semantic"], arrays["acoustic"], arrays["lengths"].astype(int)
    starts = np.cumsum(lengths) - lengths
    random = np.random.default_rng(options.seed)
    clips_of: dict[str, list[int]] = {}
    for clip in random.permutation(np.flatnonzero((lengths >= PROMPT_FRAMES[0]) & (lengths <= PROMPT_FRAMES[1]))):
        clips_of.setdefault(rows[clip][1], []).append(int(clip))
    if len(clips_of) < max(1, options.speakers):
        low, high = PROMPT_FRAMES
        raise DataError(
            f"{options.prompts} has clips of {low} to {high} frames of {len(clips_of)} speakers, "
            f"expected {max(1, options.speakers)}: name another folder or fewer --speakers"
        )
    names = sorted(clips_of)
    names = [names[i] for i in random.permutation(len(names))[: options.speakers or None]]
    voices = []
    for name in names:
        for clip in clips_of[name][: options.clips or None]:
            own = slice(starts[clip], starts[clip] + lengths[clip])
            codes = np.concatenate([semantic[own][None].astype(np.int64), acoustic[own].T.astype(np.int64)])
            voices.append(Voice(name, torch.from_numpy(codes)))
    return voices


if __name__ == "__main__":
    sys.exit(main())
