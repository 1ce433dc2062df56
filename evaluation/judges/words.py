"""Word and character error rate of a speech recognizer, Whisper, on the reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from data.reference import SAMPLE_RATE
from evaluation.judges.judge import Measurements, Metric, MissingJudgeError, library
from evaluation.speech import Speech, at_rate
from losses.resampling import JUDGE_RATE
from system.names import printable
from system.torch_files import LOAD_ERRORS, reason_of

MAX_TOKENS = 224  # in a 30 s window: Whisper's own limit
TOKENS_A_SECOND = 8  # nobody speaks faster
OTHER_LANGUAGE = 0.8  # from this probability of another language on, a clip counts as spoken in it

WER = Metric("wer", "word errors", "lower", "Whisper's words against the transcript", percent=True)
CER = Metric("cer", "character errors", "lower", "Whisper's characters against the transcript", percent=True)
WER_ORIGINAL = Metric(
    "wer_to_original", "word errors, to original", "lower", "against Whisper's words of the original", percent=True
)
CER_ORIGINAL = Metric(
    "cer_to_original",
    "character errors, to original",
    "lower",
    "against Whisper's characters of the original",
    percent=True,
)


class Words:
    """Whisper at temperature 0, one clip at a time. Both texts go through Whisper's own normalizer. Totals are errors
    per word or per character, over all clips. `whisper` is the name of a published model, which may be downloaded, or a
    file."""

    name = "words"
    metrics = (WER, CER, WER_ORIGINAL, CER_ORIGINAL)
    absolute = True

    def __init__(self, whisper: str, language: str, device: torch.device):
        package = library("whisper")
        library("jiwer")
        self.language, self.device = language, device
        self.log_mel, self.pad = package.log_mel_spectrogram, package.pad_or_trim
        from losses.asr.teacher import load_whisper  # imports whisper

        try:
            self.model = load_whisper(whisper, device)
        except LOAD_ERRORS as error:
            failed = f"Whisper {printable(whisper)!r} cannot be loaded ({reason_of(error)})"
            raise MissingJudgeError(f"{failed}: name a file of weights with --whisper") from error
        self.normalize = text_normalizer(language)
        self.originals: dict[Speech, str] = {}

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        found = Measurements()
        if clip not in self.originals:
            self._check_language(clip)
            self.originals[clip] = self.transcribe(clip.waveform)
        original = self.originals[clip]
        found.transcript = original if audio is clip.waveform else self.transcribe(audio)
        for suffix, reference in (("", clip.text), ("_to_original", original)):
            words, characters = errors(self.normalize(reference), self.normalize(found.transcript))
            for name, rate in (("wer", words), ("cer", characters)):
                if rate is None:
                    reason = "Whisper finds no words in the original" if suffix else "there is no transcript"
                    found.failed[name + suffix] = reason
                else:
                    found.set(name + suffix, *rate)
        return found

    def listen(self, audio: Tensor) -> Measurements:
        return Measurements(transcript=self.transcribe(audio))

    def transcribe(self, waveform: Tensor) -> str:
        """[T] at 24 kHz to text."""
        result = self.model.transcribe(
            at_rate(waveform, JUDGE_RATE),
            language=self.language,
            temperature=0.0,
            condition_on_previous_text=False,
            fp16=self.device.type == "cuda",
            # on garbage, Whisper may repeat a phrase until its window is full
            sample_len=min(MAX_TOKENS, 10 + round(TOKENS_A_SECOND * waveform.shape[-1] / SAMPLE_RATE)),
        )
        return str(result["text"]).strip()

    def _check_language(self, clip: Speech) -> None:
        """Raises ValueError if the clip is clearly spoken in another language."""
        if not self.model.is_multilingual:
            return
        mel = self.log_mel(self.pad(at_rate(clip.waveform, JUDGE_RATE)), self.model.dims.n_mels).to(self.device)
        if self.device.type == "cuda":
            mel = mel.to(next(self.model.parameters()).dtype)
        _, found = self.model.detect_language(mel)
        likely = max(found, key=found.get)
        if likely != self.language and found[likely] > OTHER_LANGUAGE:
            raise ValueError(f"sounds like language {likely!r} ({found[likely]:.0%}), expected {self.language!r}")


def text_normalizer(language: str) -> Callable[[str], str]:
    """Whisper's own: lower case, no punctuation, and for English one spelling and digits for numbers. Raises
    MissingJudgeError if the package is missing."""
    normalizers = library("whisper.normalizers")
    normalizer = normalizers.EnglishTextNormalizer() if language == "en" else normalizers.BasicTextNormalizer()
    return cast(Callable[[str], str], normalizer)


def errors(reference: str, transcript: str) -> tuple[tuple[float, int] | None, tuple[float, int] | None]:
    """Word and character errors of two normalized texts. Each is (error rate, length of the reference), or None if the
    reference has no words."""
    import jiwer

    if not reference.strip():
        return None, None
    words = jiwer.process_words(reference, transcript)
    characters = jiwer.process_characters(reference, transcript)
    return (words.wer, len(words.references[0])), (characters.cer, len(characters.references[0]))
