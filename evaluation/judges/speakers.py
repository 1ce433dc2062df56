"""Speaker similarity: cosine of the speaker embeddings of reconstruction and original, by three networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from urllib.request import urlopen

import torch
from torch import Tensor
from torch.nn import functional as F

from data.reference import SAMPLE_RATE
from evaluation.judges.judge import (
    Measurements,
    Metric,
    MissingJudgeError,
    first_line,
    library,
    refuse_short,
    refuse_silence,
)
from evaluation.speech import Speech, at_rate
from losses.resampling import JUDGE_RATE
from losses.speaker import HYPERPARAMETERS, PUBLISHED, SpeakerDistance, SpeakerModelError
from system.names import printable

WAVLM = "microsoft/wavlm-base-plus-sv"


class SpeakerJudge(ABC):
    """A speaker-embedding network. It embeds each original only once."""

    name: str
    metrics: tuple[Metric, ...]
    absolute = False

    def __init__(self) -> None:
        self.originals: dict[Speech, Tensor] = {}

    @abstractmethod
    def embed(self, waveform: Tensor) -> Tensor:
        """[T] at 24 kHz -> [E]."""

    @torch.no_grad()
    def listen(self, audio: Tensor) -> Measurements:
        refuse_short(audio)
        refuse_silence(audio)
        return Measurements(embeddings={self.metrics[0].name: self.embed(audio).tolist()})

    @torch.no_grad()
    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        found = Measurements()
        refuse_short(audio)
        refuse_silence(audio)
        if clip not in self.originals:
            self.originals[clip] = self.embed(clip.waveform)
        found.set(self.metrics[0].name, float(F.cosine_similarity(self.embed(audio), self.originals[clip], dim=0)))
        return found


class Resemblyzer(SpeakerJudge):
    """GE2E (Wan et al. 2018). The package contains the weights. It is the independent judge: no loss of this project
    trains against it."""

    name = "resemblyzer"
    metrics = (
        Metric(
            "speaker_resemblyzer", "speaker, Resemblyzer", "higher", "cosine of GE2E embeddings (package resemblyzer)"
        ),
    )

    def __init__(self, device: torch.device):
        super().__init__()
        package = library("resemblyzer")
        self.network = package.VoiceEncoder(device, verbose=False)
        self.trim_silence = package.preprocess_wav
        # derives from Exception directly; a judge may raise only RuntimeError and ValueError
        self.error = library("librosa").ParameterError

    def embed(self, waveform: Tensor) -> Tensor:
        try:
            voiced = self.trim_silence(at_rate(waveform, JUDGE_RATE))
            if not len(voiced):
                raise ValueError("its voice detection finds no speech")
            return torch.from_numpy(self.network.embed_utterance(voiced))
        except self.error as error:
            raise ValueError(first_line(error)) from error


class Ecapa(SpeakerJudge):
    """ECAPA-TDNN, the network of the speaker loss. Its score is too high for an encoder trained with that loss."""

    name = "ecapa"
    metrics = (Metric("speaker_ecapa", "speaker, ECAPA", "higher", "cosine of ECAPA-TDNN embeddings (speechbrain)"),)

    def __init__(self, source: str, cache: str, device: torch.device):
        super().__init__()
        source = source or PUBLISHED
        require_hub(source, HYPERPARAMETERS, cache)
        try:
            self.network = SpeakerDistance(source, SAMPLE_RATE, cache).to(device)
        except SpeakerModelError as error:
            raise MissingJudgeError(f"{source} cannot be loaded: {error.__cause__}") from error
        self.device = device

    def embed(self, waveform: Tensor) -> Tensor:
        return self.network.embed(waveform[None, None].to(self.device))[0].cpu()


class WavLM(SpeakerJudge):
    """WavLM for speaker verification, from the hub."""

    name = "wavlm"
    metrics = (Metric("speaker_wavlm", "speaker, WavLM", "higher", f"cosine of x-vectors of {WAVLM}"),)

    def __init__(self, cache: str, device: torch.device):
        super().__init__()
        package = library("transformers")
        require_hub(WAVLM, "config.json", cache)
        try:
            self.network = package.WavLMForXVector.from_pretrained(WAVLM, cache_dir=cache or None).eval().to(device)
        except (OSError, ImportError, RuntimeError) as error:
            raise MissingJudgeError(f"{WAVLM} cannot be loaded: {str(error).splitlines()[0]}") from error
        self.device = device

    def embed(self, waveform: Tensor) -> Tensor:
        return self.network(torch.from_numpy(at_rate(waveform, JUDGE_RATE))[None].to(self.device)).embeddings[0].cpu()


def require_hub(source: str, file: str, cache: str) -> None:
    """Raises MissingJudgeError if `source` is no folder, not in the cache, and the hub does not answer. The hub is
    asked once; its own client would retry for half a minute."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if Path(source).is_dir() or isinstance(try_to_load_from_cache(source, file, cache_dir=cache or None), str):
            return
    except (HFValidationError, OSError) as error:
        raise MissingJudgeError(f"{printable(source)} is neither a folder nor a name on the hub") from error
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        urlopen(f"{constants.ENDPOINT}/api/models/{source}", timeout=10).close()
    except OSError as error:
        raise MissingJudgeError(f"{source} is not in the cache and the hub does not answer: {error}") from error
