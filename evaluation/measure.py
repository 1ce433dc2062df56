"""One whole evaluation: loads the encoders, scores them and their references, compares them, and measures the speed."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from codec import Codec, ReleaseError, load_release
from codec.checkpoint import codec_fingerprint, read_training, with_encoder
from data import DataError
from data.pairs import Pairs
from data.reference import SAMPLE_RATE
from evaluation.arguments import JudgeOptions
from evaluation.codes import read_presets
from evaluation.comparison import compare
from evaluation.judges.available import NAMES
from evaluation.judges.judge import first_line
from evaluation.judges.pool import open_judge_pool
from evaluation.pairs import PairResults, add_likeness, add_second_pass, score_pairs, spoken_halves
from evaluation.provenance import machine, release_files, sha256, versions
from evaluation.results import Results
from evaluation.scoring import (
    ORIGINAL,
    Progress,
    Scores,
    add_agreement,
    add_judge_scores,
    score_encoding,
    unscored_originals,
)
from evaluation.speech import RESAMPLER, Problem, Speech, read_speech
from evaluation.speed import measure_speed
from evaluation.statistics import DRAWS, resampled
from losses.mel import RESOLUTIONS
from losses.shaping import voices_target
from losses.speaker import PUBLISHED
from system.environment import expand_home

UNNAMED = "encoder"
RESERVED = (ORIGINAL, "against", "untrained", "target")  # names of other columns and histograms


@dataclass(frozen=True, kw_only=True)
class Options(JudgeOptions):
    """What to measure. `encoders` maps a name to a file, or to None for the release's own encoder; the first one is the
    main one. `clips` is 0 for all. `without` may also name "speed". `pairs` are shards of pairs, or folders of
    them."""

    release: Path
    encoders: Mapping[str, str | None]
    data: Sequence[str]
    against: str | None = None
    clips: int = 0
    pairs: Sequence[str] = ()


class ExtraSystem(ABC):
    """A system whose codes come from no encoder. `settings` are stored with the results."""

    name: str
    settings: Mapping[str, Any]

    @abstractmethod
    def prepare(self, codec: Codec, options: Options) -> None:
        """Loads what the system needs. Called before anything is encoded, so that an error comes early."""

    @abstractmethod
    def codes(self, speech: Sequence[Speech], progress: Progress) -> tuple[list[Tensor | None], list[Problem]]:
        """The codes [37, F] of every clip, None for a clip without; and the reasons why clips have none."""


def measure(options: Options, extra: Sequence[ExtraSystem] = ()) -> tuple[Results, Codec]:
    """Measures the encoders and the extra systems. Returns the results and the codec with the main encoder. Raises
    ReleaseError for a bad release or encoder, DataError for bad data, and JudgeError if the judges fail."""
    codecs = {name: load_encoder(options.release, file, options.device) for name, file in options.encoders.items()}
    codec = next(iter(codecs.values()))
    other = load_encoder(options.release, options.against, options.device) if options.against else None
    speech, unreadable, notes = read_speech(options.data, options.cache, options.clips)
    voices = options.release / "voice_embedding"
    presets, target = read_presets(voices, codec.config.embedding_dim), voices_target(codec, voices)
    pairs = read_pairs(codec, options.pairs) if options.pairs else None
    for system in extra:
        system.prepare(codec, options)

    def score(codec: Codec, name: str, codes: Sequence[Tensor | None] | None = None) -> Scores:
        return score_encoding(
            codec, speech, name=name, presets=presets, target=target, codes=codes, progress=show_progress
        )

    with open_judge_pool(
        [name for name in NAMES if name not in options.without],
        options.jobs,
        whisper=options.whisper,
        language=options.language,
        speaker_model=options.speaker_model,
        cache=options.cache,
        device=options.device,
    ) as judges:
        results = Results(
            settings=settings(options, extra, speech),
            speech=speech,
            encoders=[score(each, name) for name, each in codecs.items()],
            originals=unscored_originals(speech),
            target=target,
            presets=presets,
            levels=codec.config.acoustic_codebook_size,
            missing=dict(judges.missing),
            problems=unreadable,
            notes=notes,
            about=about_encoders(options),
        )
        for system in extra:
            codes, problems = system.codes(speech, show_progress)
            results.problems += problems
            if any(found is not None for found in codes):
                results.extra.append(score(codec, system.name, codes))
        if other is not None:
            results.other = score(other, "against")
            untrained = untrained_encoder(options.release, options.device, options.seed)
            results.untrained = score(untrained, "untrained")
        add_judge_scores(codec, [*results.systems, results.originals], judges, show_progress)
    if pairs:
        with_encoders = codecs | ({"against": other, "untrained": untrained} if other is not None else {})
        results.pairs = measure_pairs(with_encoders, results.systems, pairs)
    if results.other is not None and results.untrained is not None:
        for scores in results.systems:
            add_agreement(codec, scores, results.other)
        for scores in results.judged:
            results.comparisons[scores.name] = compare(scores, results.other, results.untrained, options.seed)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for kind in devices if "speed" not in options.without else ():
        try:
            results.speed[kind] = measure_speed(codec, speech[0], torch.device(kind))
        except RuntimeError as error:  # the memory is too small for another codec beside the judges
            results.missing[f"speed on {kind}"] = first_line(error)
    return results, codec


def read_pairs(codec: Codec, files: Sequence[str]) -> Pairs:
    """The pairs of a release. Raises DataError for pairs of another one."""
    return Pairs(files, codec.config, codec_fingerprint(codec))


def measure_pairs(codecs: Mapping[str, Codec], systems: Sequence[Scores], pairs: Pairs) -> PairResults:
    """Scores the encoders on pairs, and adds to the systems' scores of speech what the pairs say of their codes."""
    spoken, expected = spoken_halves(pairs)
    for scores in systems:
        if scores.name in codecs:
            add_second_pass(codecs[scores.name], scores, show_progress)
        add_likeness(scores, spoken)
    found = [score_pairs(codec, pairs, name, progress=show_progress) for name, codec in codecs.items()]
    about, measured = pairs.about(), found[0][1]
    return PairResults(
        files=[str(shard.path) for shard in pairs.shards],
        count=len(pairs),
        hours=pairs.hours,
        sources=pairs.sources,
        voices=[about[index].voice for index in measured],
        encoders=[scores for scores, _ in found],
        expected=expected,
    )


def show_progress(items: Iterable[Any], work: str, count: int) -> Iterable[Any]:
    """A progress bar, if standard error is a terminal."""
    return tqdm(items, desc=work, total=count, disable=not sys.stderr.isatty())


def named_encoders(given: Sequence[str], reserved: Collection[str] = ()) -> dict[str, str | None]:
    """Reads NAME=FILE, or FILE alone, into name -> file. Without any, the release's own encoder: None. Raises DataError
    for a name that is reserved, malformed or used twice."""
    named: dict[str, str | None] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or Path(text).exists():
            name, file = UNNAMED, text
        if not re.fullmatch(r"[\w.-]+", name) or name in (*RESERVED, *reserved):
            raise DataError(f"--encoder {text}: {name!r} cannot be an encoder's name: choose another one, NAME=FILE")
        if name in named:
            raise DataError(f"--encoder {text}: another one is called {name!r} too: give each a name, NAME=FILE")
        named[name] = expand_home(file)
    return named or {UNNAMED: None}


def load_encoder(folder: Path, file: str | None, device: torch.device) -> Codec:
    """The release in bfloat16 with the encoder of a file, or with its own. Raises ReleaseError if it has none."""
    codec = load_release(folder, device=device)
    if file:
        return with_encoder(codec, Path(file))
    if not codec.has_encoder:
        raise ReleaseError(f"{folder} has no encoder: give one with --encoder, or inject it (inject_encoder.py)")
    return codec


def untrained_encoder(folder: Path, device: torch.device, seed: int) -> Codec:
    """The release with an encoder that has seen no speech, the 0 % of "recovered". Its layers mirror the decoder's or
    are random. (The recipe starts nearer: as the decoder's inverse, `init`.)"""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = load_release(folder, torch.float32).with_new_encoder("mirror")
    return codec.to(device, torch.bfloat16).requires_grad_(False)


def about_encoders(options: Options) -> dict[str, dict[str, Any]]:
    """By name each encoder's file, its SHA-256, and how long it was trained, if the file says so."""
    return {
        name: {"file": file, "sha256": sha256(Path(file)), **read_training(Path(file))}
        for name, file in {**options.encoders, "against": options.against}.items()
        if file
    }


def settings(options: Options, extra: Sequence[ExtraSystem], speech: Sequence[Speech]) -> dict[str, Any]:
    """Everything that the scores depend on."""
    files = options.encoders
    return {
        "release": str(options.release),
        "release_files": release_files(options.release),
        "encoder": next(iter(files.values())) or f"the encoder of {options.release}",
        "encoders": [name if file is None else f"{name}: {file}" for name, file in files.items()],
        "against": str(options.against or ""),
        "data": list(options.data),
        "clips": options.clips or "all",
        "without": list(options.without),
        "extra_systems": {system.name: dict(system.settings) for system in extra},
        "arithmetic": f"bf16 on {options.device.type}, one clip at a time, hard codes",
        "machine": machine(options.device),
        "seed": options.seed,
        "bootstrap_draws": DRAWS,
        "bootstrap_over": resampled([clip.speaker for clip in speech]),
        "resampler": f"{RESAMPLER}, to {SAMPLE_RATE} Hz and from it; for ECAPA torchaudio's, for ESTOI pystoi's",
        "mel_resolutions": [list(resolution) for resolution in RESOLUTIONS],
        "whisper": options.whisper,
        "speaker_model": options.speaker_model or PUBLISHED,
        "language": options.language,
        "versions": versions(),
    }
