"""One whole evaluation of cloning: lets the servers speak, asks the judges, scores and compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from data import DataError
from evaluation.arguments import JudgeOptions
from evaluation.cloning.listening import listen
from evaluation.cloning.prompts import Prompt, pair, read_list, read_texts
from evaluation.cloning.results import CloningResults
from evaluation.cloning.scoring import Judged, reference_clips, score_clips, score_system
from evaluation.cloning.speaking import Spoken, System, read_systems, speak_all
from evaluation.comparison import compare
from evaluation.judges.pool import open_judge_pool
from evaluation.judges.words import WER, text_normalizer
from evaluation.measure import show_progress
from evaluation.provenance import fingerprint, machine, sha256, versions
from evaluation.speech import RESAMPLER, Problem, read_speech
from evaluation.statistics import DRAWS, resampled
from losses.speaker import PUBLISHED

JUDGES = ("words", "resemblyzer", "ecapa", "wavlm", "quality")


@dataclass(frozen=True, kw_only=True)
class Options(JudgeOptions):
    """What to measure. Prompts are either the lines of `list_file`, or the clips of `data` with the lines of
    `texts_file`; without clips only `voices` speak. `limit` is the number of prompts or clips, 0 for all. `longest` is
    when a server stops speaking, in seconds of speech; None is the server's own limit. `folder` keeps what was spoken
    and judged."""

    servers: Sequence[str]
    voices: Sequence[str]
    folder: Path
    list_file: str = ""
    data: Sequence[str] = ()
    texts_file: str = ""
    per_clip: int = 1
    limit: int = 0
    longest: float | None = None


def measure_cloning(options: Options) -> CloningResults:
    """Raises DataError or BadClipError for bad prompts, NoServerError if a server does not answer at the start, and
    JudgeError if the judges fail."""
    prompts, problems, notes = read_prompts(options)
    with_clips = any(prompt.clip for prompt in prompts)
    systems = read_systems(options.servers, options.voices, with_clips, options.longest)
    spoken = speak_all(systems, prompts, options.folder / "spoken", show_progress)
    if not any(each and not each.failed for one in spoken.values() for each in one.utterances):
        reasons = [each.failed for one in spoken.values() for each in one.utterances if each]
        raise DataError(f"nothing was spoken; the first reason: {reasons[0]}")
    judge_options: dict[str, Any] = {
        "whisper": options.whisper,
        "language": options.language,
        "speaker_model": options.speaker_model,
    }
    names = [name for name in JUDGES if name not in options.without]
    with open_judge_pool(names, options.jobs, **judge_options, cache=options.cache, device=options.device) as judges:
        about = judge_options | {
            "whisper": sha256(Path(options.whisper)) if Path(options.whisper).is_file() else options.whisper,
            "judges": [judge.name for judge in judges.judges],
            "device": options.device.type,
            "versions": versions(),
        }
        recordings = to_judge(systems, prompts, spoken)
        found, earlier = listen(recordings, judges, about, options.folder / "judged", show_progress)
        hears = any(metric.name == WER.name for metric in judges.metrics)
        judged = Judged(found, judges.metrics, text_normalizer(options.language) if hears else None)
        missing = dict(judges.missing)
    kept = sum(one.kept for one in spoken.values())
    if kept or earlier:
        notes.append(f"from an earlier run: {kept} spoken texts, {earlier} judged recordings")
    notes += [
        f"{system.name} has no clip to compare its speaker with: --voice {system.voice}=CLIP gives one"
        for system in systems
        if system.voice and not system.reference
    ]
    scores = [score_system(system, prompts, spoken[system.name], judged) for system in systems]
    return CloningResults(
        settings=settings(options, prompts),
        speech=[prompt.speech for prompt in prompts],
        scores=scores,
        originals=score_clips(prompts, judged),
        spoken=spoken,
        folder=options.folder,
        comparisons={each.name: compare(each, scores[0], seed=options.seed) for each in scores[1:]},
        missing=missing,
        problems=problems,
        notes=notes,
    )


def read_prompts(options: Options) -> tuple[list[Prompt], list[Problem], list[str]]:
    """The prompts, a Problem for each line or clip that cannot be used, and notes about the clips."""
    if options.list_file:
        return read_list(Path(options.list_file), options.limit)
    texts = read_texts(Path(options.texts_file)) if options.texts_file else []
    if options.data:
        clips, problems, notes = read_speech(options.data, options.cache, options.limit)
        return pair(clips, texts, options.per_clip), problems, notes
    if not texts:
        raise DataError("there is nothing to speak: give --data, --list, or --voice with --texts")
    return [Prompt(f"text {i + 1}", text) for i, text in enumerate(texts[: options.limit or None])], [], []


def to_judge(
    systems: Sequence[System], prompts: Sequence[Prompt], spoken: dict[str, Spoken]
) -> dict[str, Callable[[], Tensor]]:
    """The recordings to judge, by their fingerprints: the reference clips, and what was spoken."""
    recordings: dict[str, Callable[[], Tensor]] = {}
    for clip in reference_clips(prompts, systems):
        recordings[fingerprint(clip.waveform)] = partial(getattr, clip, "waveform")
    for one in spoken.values():
        for utterance in one.utterances:
            if utterance is not None and not utterance.failed:
                recordings[utterance.sha256] = utterance.waveform
    return recordings


def settings(options: Options, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Everything that the scores depend on."""
    return {
        "servers": list(options.servers),
        "voices": list(options.voices),
        "list": options.list_file,
        "data": list(options.data),
        "texts": options.texts_file,
        "texts_per_clip": options.per_clip,
        "prompts": options.limit or "all",
        "longest": options.longest or "the server's own limit",
        "without": list(options.without),
        "machine": machine(options.device),
        "resampler": f"{RESAMPLER}; for ECAPA torchaudio's",
        "whisper": options.whisper,
        "language": options.language,
        "speaker_model": options.speaker_model or PUBLISHED,
        "seed": options.seed,
        "bootstrap_draws": DRAWS,
        "bootstrap_over": resampled([prompt.speech.speaker for prompt in prompts]),
        "versions": versions(),
    }
