"""Metrics of cloning, from what the judges found in the speech and in the reference clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.cloning.prompts import Prompt
from evaluation.cloning.speaking import CLIP, Spoken, System, Utterance
from evaluation.judges.judge import Measurements, Metric
from evaluation.judges.words import CER, WER, errors
from evaluation.provenance import fingerprint
from evaluation.scoring import ClipScores, Scores, add_values
from evaluation.speech import Problem, Speech

FAILED = Metric(
    "failed", "failed requests", "lower", "requests without speech; no other metric counts them", percent=True
)
RATE = Metric("rate", "characters a second", "", "letters and digits of the text for each second of speech", 1)
LENGTH = Metric(
    "length",
    "length, to expected",
    "",
    "seconds of speech over what the text takes at the clip's characters a second",
    2,
)
FIRST = Metric("first_sound", "first sound, s", "lower", "seconds from the request to the first bytes of speech", 2)
SPEED = Metric("rtf", "real-time factor", "lower", "seconds from the request to its end, for each second of speech", 2)
OWN, OTHERS, NEAREST = "speaker_", "others_", "nearest_"  # begin the names of a speaker network's metrics


@dataclass(frozen=True)
class Judged:
    """What the judges found: in each recording by its fingerprint, and by which metrics. `normalize` is the text
    normalizer of the word errors, None if no judge hears words."""

    found: Mapping[str, Measurements]
    metrics: Sequence[Metric]
    normalize: Callable[[str], str] | None = None

    @property
    def networks(self) -> list[Metric]:
        """The metrics of the speaker networks."""
        return [metric for metric in self.metrics if metric.name.startswith(OWN)]

    def __contains__(self, name: str) -> bool:
        return any(metric.name == name for metric in self.metrics)


class References:
    """The reference clips' embeddings by one speaker network. A clip of unknown speaker is a speaker of its own."""

    def __init__(self, network: Metric, clips: Sequence[Speech], judged: Judged):
        self.network = network
        embeddings = {
            name: judged.found[name].embeddings[network.name]
            for name in map(fingerprint, (clip.waveform for clip in clips))
            if network.name in judged.found[name].embeddings
        }
        self.names = list(embeddings)
        self.rows = np.array([_unit(each) for each in embeddings.values()])
        speakers = {fingerprint(clip.waveform): clip.speaker for clip in clips}
        self.speakers = np.array([speakers[name] or name for name in self.names])

    def score(self, embedding: Sequence[float], own: Speech, itself: bool = False) -> dict[str, float]:
        """The similarity of speech to the clip `own`, its mean similarity to the other speakers' clips, and 1 if the
        nearest of all clips is of the own speaker, else 0. With `itself`, the speech is the clip: it is compared with
        the same speaker's other clips. What cannot be computed is left out."""
        name, suffix = fingerprint(own.waveform), self.network.name.removeprefix(OWN)
        if name not in self.names:
            return {}
        position = self.names.index(name)
        similar = self.rows @ _unit(embedding)
        mine = self.speakers == self.speakers[position]
        theirs = similar[~mine]
        if itself:
            mine[position] = False
        found = {}
        if mine.any():
            found[OWN + suffix] = float(similar[mine].mean() if itself else similar[position])
        if len(theirs):
            found[OTHERS + suffix] = float(theirs.mean())
        if mine.any() and len(theirs):
            found[NEAREST + suffix] = float(similar[mine].max() > theirs.max())
        return found


def _unit(embedding: Sequence[float]) -> np.ndarray:
    row = np.array(embedding)
    return row / np.linalg.norm(row)


def metrics(judged: Judged, speakers: int) -> tuple[Metric, ...]:
    """All metrics of a system. `speakers` is the number of speakers of the reference clips."""
    found = [FAILED]
    if judged.normalize:
        found += [
            replace(WER, definition="Whisper's words against the text"),
            replace(CER, definition="the same, by characters"),
        ]
    for network in judged.networks:
        suffix, title = network.name.removeprefix(OWN), network.title.removeprefix("speaker, ")
        found.append(
            replace(network, title=f"speaker, {title}", definition=f"similarity to the clip: {network.definition}")
        )
        if speakers > 1:
            found += [
                Metric(OTHERS + suffix, f"other speakers, {title}", "", "mean similarity to the other speakers' clips"),
                Metric(
                    NEAREST + suffix,
                    f"right one of {speakers}, {title}",
                    "higher",
                    "how often the nearest of all clips is of the right speaker",
                    percent=True,
                ),
            ]
    found += [metric for metric in judged.metrics if metric.name == "distillmos"]
    return (*found, RATE, LENGTH, FIRST, SPEED)


def score_system(system: System, prompts: Sequence[Prompt], spoken: Spoken, judged: Judged) -> Scores:
    """The scores of what a system spoke."""
    clips = reference_clips(prompts, [system])
    references = [References(network, clips, judged) for network in judged.networks]
    scores = Scores(system.name, metrics(judged, speaker_count(prompts)), [], [])
    for prompt, utterance in zip(prompts, spoken.utterances, strict=True):
        scored = ClipScores(prompt.speech)
        scores.clips.append(scored)
        if utterance is None:
            continue
        found = Measurements()
        found.set(FAILED.name, float(bool(utterance.failed)))
        if utterance.failed:
            scores.problems.append(Problem(prompt.name, "sound", utterance.failed, system.name))
        else:
            measured = judged.found[utterance.sha256]
            own = system.reference if system.voice else prompt.clip
            found.add(_words_and_sound(measured, prompt.text, judged))
            if own:
                _add_similarity(found, measured, references, own)
            _add_timing(found, prompt, utterance, own)
        add_values(scores, scored, found)
    return scores


def score_clips(prompts: Sequence[Prompt], judged: Judged) -> Scores:
    """The same scores of the reference clips themselves: what natural speech gets. Their text is what they say; their
    speaker is compared with the same speaker's other clips."""
    references = [References(network, reference_clips(prompts), judged) for network in judged.networks]
    scores = Scores(CLIP, metrics(judged, speaker_count(prompts)), [], [])
    for prompt in prompts:
        scored = ClipScores(prompt.speech)
        scores.clips.append(scored)
        if prompt.clip is None:
            continue
        measured = judged.found[fingerprint(prompt.clip.waveform)]
        found = _words_and_sound(measured, prompt.clip.text, judged)
        _add_similarity(found, measured, references, prompt.clip, itself=True)
        if characters(prompt.clip.text):
            found.set(RATE.name, characters(prompt.clip.text) / prompt.clip.seconds)
        found.failed = {}  # a reference clip without a score is no fault of a server
        add_values(scores, scored, found)
    return scores


def _words_and_sound(measured: Measurements, text: str, judged: Judged) -> Measurements:
    """What the judges found in speech: word errors against `text`, and the scores that need nothing else."""
    found = Measurements(transcript=measured.transcript)
    found.values |= measured.values
    found.failed |= {
        name: why for name, why in measured.failed.items() if name in judged and not name.endswith("_original")
    }
    if judged.normalize and WER.name not in measured.failed:
        words, letters = errors(judged.normalize(text), judged.normalize(measured.transcript))
        for metric, rate in ((WER, words), (CER, letters)):
            if rate is None:
                found.failed[metric.name] = "the text has no words"
            else:
                found.set(metric.name, *rate)
    return found


def _add_similarity(
    found: Measurements, measured: Measurements, references: Sequence[References], own: Speech, itself: bool = False
) -> None:
    for each in references:
        embedding = measured.embeddings.get(each.network.name)
        if embedding is None:
            continue  # the judge said why
        scores = each.score(embedding, own, itself)
        for name, value in scores.items():
            found.set(name, value)
        if each.network.name not in scores:
            found.failed[each.network.name] = "the reference clip could not be judged"


def _add_timing(found: Measurements, prompt: Prompt, utterance: Utterance, own: Speech | None) -> None:
    """Speaking rate and speed. Without speech of some length there is no rate."""
    assert utterance.timing is not None
    seconds, count = utterance.timing.speech, characters(prompt.text)
    if count and seconds:
        found.set(RATE.name, count / seconds)
        if own and characters(own.text):
            found.set(LENGTH.name, seconds / (count * own.seconds / characters(own.text)))
    if seconds:
        found.set(SPEED.name, utterance.timing.took / seconds)
    found.set(FIRST.name, utterance.timing.first)


def characters(text: str) -> int:
    """The number of letters and digits."""
    return sum(map(str.isalnum, text))


def reference_clips(prompts: Sequence[Prompt], systems: Sequence[System] = ()) -> list[Speech]:
    """The clips of the prompts and of the systems' voices, each once."""
    clips = [each.reference for each in systems if each.reference] + [prompt.clip for prompt in prompts if prompt.clip]
    return list({fingerprint(clip.waveform): clip for clip in clips}.values())


def speaker_count(prompts: Sequence[Prompt]) -> int:
    """How many speakers the prompts' clips have."""
    return len({clip.speaker or fingerprint(clip.waveform) for clip in reference_clips(prompts)})
