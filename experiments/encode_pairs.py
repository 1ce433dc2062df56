"""Pairs from an encoder's codes of speech, where no language model speaks: a stand-in for those of speak_pairs.py.

    python -m experiments.encode_pairs OUT SPEECH ... --model-dir DIR --encoder FILE
    python -m experiments.encode_pairs runs/pairs_demo data/demo/seen.parquet
    python -m experiments.encode_pairs OUT SPEECH --speakers 5 --hours 1

A language model learns to speak the codes of the encoder that its codec was trained with. If that encoder is known, as
the stand-in's withheld one is, its codes of training speech show nearly the same way of using the codes. SPEECH is
anything that `data.train` takes. OUT gets shards (data/pairs.py) whose metadata names the encoder as their source, so
nobody takes them for spoken ones. Clips are encoded as the server encodes them, in bf16 and one at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from codec.checkpoint import codec_fingerprint, load_release, with_encoder
from codec.codec import Codec
from data import BadClipError, DataError, decode, open_clips
from data.clips import Clips
from data.pairs import SHARD_PAIRS, About, Pair, write_shard
from experiments.runs import DEMO, experiment_status
from system.device import open_device
from system.environment import from_environment


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("speech", nargs="+")
    parser.add_argument("--model-dir", type=Path, default=DEMO / "release", help="default: the demo's release")
    parser.add_argument(
        "--encoder", type=Path, default=DEMO / "withheld_encoder.safetensors", help="default: the demo's withheld one"
    )
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so much speech (default: all)")
    parser.add_argument("--speakers", type=int, default=0, metavar="N", help="clips of N speakers only (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of speakers and the order of clips")
    options = parser.parse_args(argv)
    return experiment_status(lambda: encode(options), f"{options.out} holds the shards written so far")


def encode(options: argparse.Namespace) -> int:
    if options.out.is_dir() and any(options.out.glob("*.safetensors")):
        raise DataError(f"{options.out} has shards already: name another folder, or delete them")
    device = open_device()
    codec = with_encoder(load_release(options.model_dir, torch.bfloat16, device), options.encoder)
    fingerprint = codec_fingerprint(codec)
    clips = open_clips(options.speech, from_environment("HF_CACHE"))
    source = f"encoder {options.encoder.name}, in place of a language model"
    waiting: list[Pair] = []
    count, frames, shards = 0, 0, 0

    def write() -> None:
        nonlocal shards
        write_shard(options.out / f"pairs_{shards:05}.safetensors", waiting, fingerprint, source)
        shards += 1
        waiting.clear()

    chosen = choose(clips, options.speakers, options.seed)
    for pair in encoded(codec, clips, tqdm(chosen, unit="clip", disable=not sys.stderr.isatty())):
        waiting.append(pair)
        count, frames = count + 1, frames + pair.codes.shape[1]
        if len(waiting) == SHARD_PAIRS:
            write()
        if frames / codec.frame_rate >= 3600 * options.hours:
            break
    if waiting:
        write()
    if not count:
        raise DataError(f"{', '.join(options.speech)}: no clip could be encoded")
    print(f"{count} pairs, {frames / codec.frame_rate / 3600:.2f} hours, in {shards} shards: {options.out}")
    return 0


def choose(clips: Clips, speakers: int, seed: int) -> list[int]:
    """The clips to encode, in a random order: of `speakers` random speakers, or of all if it is 0. Raises DataError if
    there are fewer."""
    random, of_clip = np.random.default_rng(seed), clips.speakers()
    known = np.unique(of_clip)
    if speakers > len(known):
        raise DataError(f"--speakers is {speakers}, but the clips have {len(known)}")
    kept = np.isin(of_clip, random.permutation(known)[: speakers or len(known)])
    return [int(index) for index in random.permutation(np.flatnonzero(kept))]


def encoded(codec: Codec, clips: Clips, indices: Iterable[int]) -> Iterator[Pair]:
    """A pair for each of these clips. A clip that cannot be read is named on standard error."""
    for index in indices:
        try:
            clip = clips.read(index)
            waveform = decode(clip, codec.sample_rate, resample=True)
        except BadClipError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        codes = codec.encode(waveform[None].to(codec.device))[0].cpu()
        yield Pair(codes, About(clip.text, clip.speaker, clip.language))


if __name__ == "__main__":
    sys.exit(main())
