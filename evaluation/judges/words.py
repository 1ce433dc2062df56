"""Whether the words are still there: errors of a speech recogniser, Whisper, on the reconstruction."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from data.reference import SAMPLE_RATE
from evaluation.judges.judge import Metric, MissingJudgeError, Verdict, library
from evaluation.speech import Speech, at_rate

RATE = 16000  # Hz
MOST_TOKENS = 224  # of a 30 s window: Whisper's own limit
SURE = 0.8  # of another language's probability, from which on a clip counts as spoken in it

WER = Metric("wer", "word errors", "lower", "Whisper's words against the transcript", percent=True)
CER = Metric("cer", "character errors", "lower", "the same by characters", percent=True)
WER_ORIGINAL = Metric(
    "wer_to_original", "word errors, to original", "lower", "against Whisper's words of the original", percent=True
)
CER_ORIGINAL = Metric(
    "cer_to_original", "character errors, to original", "lower", "the same by characters", percent=True
)


class Words:
    """Whisper at temperature 0, each clip by itself; both texts go through its own normaliser. Totals are errors a
    word, over all clips. `whisper` is the name of a published model, which may be downloaded, or a file."""

    name = "words"
    metrics = (WER, CER, WER_ORIGINAL, CER_ORIGINAL)
    absolute = True

    def __init__(self, whisper: str, language: str, device: torch.device):
        package = library("whisper")
        library("jiwer")
        self.language, self.device = language, device
        self.log_mel, self.pad = package.log_mel_spectrogram, package.pad_or_trim
        try:
            self.model = package.load_model(whisper, device=device)
        except (OSError, RuntimeError, KeyError, pickle.UnpicklingError, EOFError) as error:
            reason = str(error).strip().splitlines()[0]
            raise MissingJudgeError(
                f"Whisper {whisper!r} cannot be loaded ({reason}): name a file of weights with --whisper"
            ) from error
        normalizers = library("whisper.normalizers")
        english = language == "en"
        self.normalize = normalizers.EnglishTextNormalizer() if english else normalizers.BasicTextNormalizer()
        self.originals: dict[Speech, str] = {}

    def score(self, clip: Speech, audio: Tensor) -> Verdict:
        verdict = Verdict()
        if clip not in self.originals:
            self._check_language(clip)
            self.originals[clip] = self.transcribe(clip.waveform)
        original = self.originals[clip]
        verdict.heard = original if audio is clip.waveform else self.transcribe(audio)
        for suffix, reference in (("", clip.text), ("_to_original", original)):
            words, characters = errors(self.normalize(reference), self.normalize(verdict.heard))
            for name, found in (("wer", words), ("cer", characters)):
                if found is None:
                    what = "Whisper hears no words in the original" if suffix else "there is no transcript"
                    verdict.failed[name + suffix] = what
                else:
                    verdict.set(name + suffix, *found)
        return verdict

    def transcribe(self, waveform: Tensor) -> str:
        result = self.model.transcribe(
            at_rate(waveform, RATE),
            language=self.language,
            temperature=0.0,
            condition_on_previous_text=False,
            fp16=self.device.type == "cuda",
            # on garbage it may repeat a phrase until its window is full; nobody says more than 8 tokens a second
            sample_len=min(MOST_TOKENS, 10 + round(8 * waveform.shape[-1] / SAMPLE_RATE)),
        )
        return str(result["text"]).strip()

    def _check_language(self, clip: Speech) -> None:
        """Raises ValueError for a clip that is surely spoken in another language."""
        if not self.model.is_multilingual:
            return
        mel = self.log_mel(self.pad(at_rate(clip.waveform, RATE)), self.model.dims.n_mels).to(self.device)
        if self.device.type == "cuda":
            mel = mel.to(next(self.model.parameters()).dtype)
        _, found = self.model.detect_language(mel)
        likely = max(found, key=found.get)
        if likely != self.language and found[likely] > SURE:
            raise ValueError(f"sounds like language {likely!r} ({found[likely]:.0%}), expected {self.language!r}")


def errors(reference: str, heard: str) -> tuple[tuple[float, int] | None, tuple[float, int] | None]:
    """Word and character errors of normalised texts: each (share, length of the reference), None where the reference
    holds no word."""
    import jiwer

    if not reference.strip():
        return None, None
    words = jiwer.process_words(reference, heard)
    characters = jiwer.process_characters(reference, heard)
    return (words.wer, len(words.references[0])), (characters.cer, len(characters.references[0]))
