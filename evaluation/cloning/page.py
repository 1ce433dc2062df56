"""The page to listen to: reference clips beside what the systems made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.cloning.results import CloningResults, described
from evaluation.cloning.speaking import CLIP
from evaluation.report.page import ABOUT_JUDGES, Shown, headlines, score_rows, sounding_version, write_page
from evaluation.speech import spread

HEADLINES = ("failed", "wer", "speaker_resemblyzer", "nearest_resemblyzer", "distillmos")  # at the top
FACTS = ("servers", "voices", "list", "data", "texts", "prompts", "longest", *ABOUT_JUDGES)  # settings listed


def write_page_of(folder: Path, results: CloningResults, shown: int) -> Path:
    """Writes `folder`/index.html, with `shown` texts to listen to. Returns its path."""
    return write_page(
        folder,
        "cloning.html",
        results,
        tiles=headlines(results, HEADLINES),
        shown=[_shown(results, index) for index in _order(results, shown)],
        facts=FACTS,
        described=described(results),
    )


def _order(results: CloningResults, count: int) -> Sequence[int]:
    """`count` texts, evenly spread over all that a system spoke, ordered by the main system's character errors and
    then by its similarity to the clip, the best first."""

    def rank(index: int) -> tuple[float, float]:
        values = results.main.clips[index].values
        errors = values["cer"].value if "cer" in values else float("inf")
        similarity = [value.value for name, value in values.items() if name.startswith("speaker_")]
        return errors, -sum(similarity)

    spoken = [i for i in range(len(results.speech)) if any(_sounds(results, name, i) for name in results.spoken)]
    order = sorted(spoken, key=rank)
    return [order[i] for i in spread(count, len(order))]


def _sounds(results: CloningResults, system: str, index: int) -> bool:
    utterance = results.spoken[system].utterances[index]
    return utterance is not None and not utterance.failed


def _shown(results: CloningResults, index: int) -> Shown:
    prompt = results.speech[index]
    versions = []
    if prompt.seconds:
        clip = results.originals.clips[index]
        versions.append(sounding_version(CLIP, prompt.waveform, prompt.waveform, clip.transcript))
    systems = [scores for scores in results.systems if _sounds(results, scores.name, index)]
    for scores in systems:
        utterance = results.spoken[scores.name].utterances[index]
        assert utterance is not None
        audio = utterance.waveform()
        loudness = prompt.waveform if prompt.seconds else audio
        versions.append(sounding_version(scores.name, audio, loudness, scores.clips[index].transcript))
    rows = score_rows(results, index, systems)
    if not prompt.seconds:
        rows = [[row[0], *row[2:]] for row in rows]  # without the clip's column
    return Shown(prompt.name, prompt.speaker, prompt.seconds, prompt.text, versions, rows)
