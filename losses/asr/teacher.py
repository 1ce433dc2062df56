"""A frozen Whisper as teacher. It gives the transcript of a clip, the alignment of its tokens, and hidden states."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import whisper
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from whisper.audio import HOP_LENGTH, N_FFT, mel_filters
from whisper.model import ModelDimensions, Whisper, disable_sdpa
from whisper.tokenizer import LANGUAGES, get_tokenizer

from codec.config import FRAME_SIZE, SAMPLE_RATE
from losses.asr.alignment import align
from losses.asr.distillation import DistillationTargets, TeacherError
from losses.asr.languages import whisper_language
from losses.asr.transcript_cache import TranscriptCache
from losses.resampling import band_limited_resample
from system.names import printable
from system.torch_files import LOAD_ERRORS, load_torch_file, reason_of

WHISPER_FRAME = 480  # samples: 20 ms, one frame after the encoder's second convolution
FRAME_RATE = SAMPLE_RATE // WHISPER_FRAME  # 50 Hz
WINDOW_SECONDS = 30.0  # the window that Whisper was trained with
# A transcript that is longer is taken for a loop. English is spoken at 4 to 5 tokens a second.
TOKENS_AT_LEAST, TOKENS_A_SECOND = 8, 10
# A clip has no speech if Whisper's own no-speech probability is above this. Whisper base gives silence and a noise
# floor 0.91 to 0.96 (and transcribes them as "you"), and crops of 1.28 s of speech 0.78 at most.
NO_SPEECH = 0.85
# (decoder layers, width) -> openai-whisper's name; large-v1 has the sizes of large-v2
SIZES = {(4, 384): "tiny", (6, 512): "base", (12, 768): "small", (24, 1024): "medium", (32, 1280): "large-v2"}
NEWER_VOCABULARY = 51866  # has one language more
NEWER_SIZES = {(4, 1280): "turbo", (32, 1280): "large-v3"}
UNKNOWN_LANGUAGE = -1
RECIPE = 1  # part of the cache's name; raise it when a code change changes transcripts


class Tokens(NamedTuple):
    """Transcripts of B clips, without prompt and end token."""

    tokens: Tensor  # [B, L], padded with the end token
    counts: Tensor  # [B]

    def rows(self) -> list[list[int]]:
        return [row[:count] for row, count in zip(self.tokens.tolist(), self.counts.tolist(), strict=True)]


class Teacher:
    """Makes distillation targets with a frozen Whisper. It is deliberately not a module: it is never trained or saved.

    language: of the clips that come without one ("en"). English-only models accept only "en".
    context_seconds: each clip is padded with silence to this window. Whisper was trained with 30 s. With a shorter
        window it misses ends and loops (measured by experiments/teacher_window.py), but saves time without a GPU.
    cache: the folder of the transcript cache, see TranscriptCache; None means no cache.

    Raises TeacherError for a language or a window that Whisper does not support.
    """

    def __init__(
        self,
        model: Whisper,
        language: str = "en",
        context_seconds: float = WINDOW_SECONDS,
        cache: Path | None = None,
    ):
        if not model.is_multilingual and whisper_language(language) != "en":
            raise TeacherError(f"losses.asr_language is {language!r}, but the teacher is English-only: expected 'en'")
        try:
            self.tokenizer = get_tokenizer(
                model.is_multilingual,
                num_languages=model.num_languages,
                language=whisper_language(language) or language,
                task="transcribe",
            )
        except ValueError as error:
            raise TeacherError(
                f"losses.asr_language is {language!r}, expected a language that Whisper knows: {error}"
            ) from error
        if not 0 < context_seconds <= WINDOW_SECONDS:
            raise TeacherError(f"losses.asr_context_seconds is {context_seconds}, expected more than 0 and at most 30")
        self.language = str(self.tokenizer.language or "en")
        # the token of each language that this model knows, which is the second one of the prompt
        codes = list(LANGUAGES)[: model.num_languages] if model.is_multilingual else []
        self.languages = {code: int(self.tokenizer.to_language_token(code)) for code in codes} or {"en": 0}
        self.warned: set[str] = set()
        self.model = model.eval().requires_grad_(False)
        self.device, self.dtype = model.device, model.encoder.conv1.weight.dtype
        self.width = model.dims.n_text_state
        self.context = round(context_seconds * FRAME_RATE)  # in frames of 20 ms
        self.resample = band_limited_resample(SAMPLE_RATE).to(self.device)
        self.mel_filters = mel_filters(self.device, model.dims.n_mels)
        self.mel_window = torch.hann_window(N_FFT, device=self.device)
        prompt = self.tokenizer.sot_sequence_including_notimestamps
        self.prompt, self.start = torch.tensor(prompt, device=self.device), prompt.index(self.tokenizer.sot)
        self.heads: list[tuple[int, int]] = [tuple(pair) for pair in model.alignment_heads.indices().T.tolist()]
        # allow only text and the end token: no special tokens, no timestamps, no symbols for music and noise
        forbidden = torch.zeros(model.dims.n_vocab, dtype=torch.bool, device=self.device)
        forbidden[self.tokenizer.eot + 1 :] = True
        forbidden[list(self.tokenizer.non_speech_tokens)] = True
        self.forbidden = forbidden
        self.cache = TranscriptCache(cache, self.fingerprint()) if cache else None

    @classmethod
    def load(
        cls, name: str, device: str | torch.device = "cpu", download_folder: Path | None = None, **options: Any
    ) -> Teacher:
        """Loads a teacher by name ("base", or the hub's "openai/whisper-base"; downloaded once) or from a `.pt` file in
        openai-whisper's format. It runs in float16 on a GPU and in float32 on the CPU. `options` go to the constructor.
        Raises TeacherError if the teacher cannot be loaded."""
        name = name.removeprefix("openai/whisper-")  # the hub's names of the same weights
        root = str(download_folder) if download_folder else None
        lock = (download_folder or Path.home() / ".cache" / "whisper") / "download.lock"
        try:
            if name in whisper.available_models():  # lock: processes must not download into one file at once
                lock.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(lock):
                    model = whisper.load_model(name, device="cpu", download_root=root)
            else:
                model = load_whisper(name)
                set_alignment_heads(model)
        except LOAD_ERRORS as error:
            raise TeacherError(
                f"the Whisper teacher {printable(name)!r} cannot be loaded ({reason_of(error)}): "
                "losses.asr_teacher is a name such as base, or the path of a .pt file in openai-whisper's format; "
                "losses.asr=0 switches the loss off"
            ) from error
        model = model.to(device)
        return cls(in_half(model) if model.device.type == "cuda" else model, **options)

    def numbered_languages(self, names: Sequence[str]) -> Tensor:
        """The languages [B] of clips as `targets` takes them, on the CPU. A name is a corpus's (`de`, `de-DE`,
        `German`); an empty one is the teacher's own language. A clip in a language that this Whisper does not know gets
        UNKNOWN_LANGUAGE and no targets; one warning names the language."""
        numbers = []
        for name in names:
            code = whisper_language(name) if name else self.language
            numbers.append(self.languages.get(code or "", UNKNOWN_LANGUAGE))
            if numbers[-1] == UNKNOWN_LANGUAGE and name not in self.warned:
                self.warned.add(name)
                warnings.warn(
                    f"the Whisper teacher does not know the language {printable(name)[:40]!r}: its clips train without "
                    "ASR distillation",
                    stacklevel=2,
                )
        return torch.tensor(numbers, dtype=torch.long)

    @torch.no_grad()
    def targets(
        self, waveform: Tensor, lengths: Tensor | None = None, languages: Tensor | None = None
    ) -> DistillationTargets:
        """The targets for waveforms [B, T] at 24 kHz in [-1, 1], over F = ceil(T / 1920) codec frames. `languages` [B]
        come from `numbered_languages`; without them all clips are in the teacher's own language.

        If clips are padded at the end, `lengths` [B] are their lengths in samples; without it all have T. Each clip
        gives the same targets as alone: samples after its length do not count. A clip gets no tokens if Whisper finds
        no speech in it or does not know its language, or if its transcript does not end. Raises ValueError for clips
        longer than the window or shorter than 0.1 s.

        On a GPU, without lengths and without a cache, this never waits for the device, so that a CUDA graph can record
        it. L is then the largest number of tokens that a transcript may have.
        """
        frames = math.ceil(waveform.shape[-1] / FRAME_SIZE)
        sizes = [waveform.shape[-1]] * len(waveform) if lengths is None else [int(length) for length in lengths]
        if max(sizes) > self.context * WHISPER_FRAME or min(sizes) < SAMPLE_RATE // 10:
            raise ValueError(
                f"clips are {min(sizes) / SAMPLE_RATE:.2f} to {max(sizes) / SAMPLE_RATE:.2f} s long, expected 0.1 to "
                f"{self.context / FRAME_RATE} s: see losses.asr_context_seconds"
            )
        if languages is None:
            languages = torch.full((len(waveform),), self.languages[self.language], device=self.device)
        languages = languages.to(self.device)
        if lengths is None:
            with torch.autocast(self.device.type, enabled=False):
                return self._targets_of_equal_length(waveform.to(self.device), languages)
        alignments: list[Tensor] = [waveform.new_empty(0)] * len(sizes)
        states, masks = alignments.copy(), alignments.copy()
        with torch.autocast(self.device.type, enabled=False):
            for size in sorted(set(sizes)):  # attention takes no lengths: batches have clips of one length
                members = [i for i, other in enumerate(sizes) if other == size]
                part = waveform[members, :size].to(self.device)
                for i, *parts in zip(members, *self._targets_of_equal_length(part, languages[members]), strict=True):
                    alignments[i], states[i], masks[i] = parts
        return DistillationTargets(
            pad_sequence([F.pad(a, (0, frames - a.shape[-1])) for a in alignments], batch_first=True),
            pad_sequence(states, batch_first=True),
            pad_sequence(masks, batch_first=True),
        )

    @torch.no_grad()
    def states(self, waveform: Tensor) -> Tensor:
        """The encoder's states [B, 4 * F, width] in float32 of waveforms [B, T] at 24 kHz, four in each of F =
        ceil(T / 1920) codec frames. They see the waveform alone, without the silence that fills the window up. Raises
        ValueError for waveforms longer than 30 s."""
        frames = math.ceil(waveform.shape[-1] / FRAME_SIZE)
        if frames * FRAME_SIZE > WINDOW_SECONDS * SAMPLE_RATE:
            raise ValueError(
                f"clips are {waveform.shape[-1] / SAMPLE_RATE:.2f} s long, expected {WINDOW_SECONDS} s at most"
            )
        with torch.autocast(self.device.type, enabled=False):
            return self._encode(waveform.to(self.device), frames * FRAME_SIZE // WHISPER_FRAME).float()

    def transcribe(self, waveform: Tensor) -> list[str]:
        """The transcripts of waveforms [B, T] at 24 kHz. A clip without speech has an empty one."""
        with torch.no_grad():
            prompts = self.prompt.expand(len(waveform), -1)
            audio = self._encode(waveform.to(self.device), self.context)
            tokens = self._generate(audio, waveform.shape[-1], prompts)
        return [self.tokenizer.decode(row).strip() for row in tokens.rows()]

    def fingerprint(self) -> str:
        """A short hash of everything that transcripts depend on besides the clip: weights and settings."""
        digest = hashlib.sha256(
            repr((RECIPE, whisper.__version__, self.prompt.tolist(), self.context, str(self.dtype))).encode()
        )
        for key, tensor in self.model.state_dict().items():
            digest.update(key.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _targets_of_equal_length(self, waveform: Tensor, languages: Tensor) -> DistillationTargets:
        """The targets for clips [B, T] that all have the length T, in languages [B]."""
        audio, prompts = self._encode(waveform, self.context), self._prompts(languages)
        tokens = self._transcripts(waveform, audio, languages, prompts)
        known = Tokens(tokens.tokens, tokens.counts * (languages != UNKNOWN_LANGUAGE))
        return self._read(audio, known, waveform.shape[-1], prompts)

    def _prompts(self, languages: Tensor) -> Tensor:
        """The prompt of each clip: start, language, task, no timestamps."""
        prompts = self.prompt.repeat(len(languages), 1)
        if self.model.is_multilingual:
            prompts[:, 1] = torch.where(languages == UNKNOWN_LANGUAGE, self.languages[self.language], languages)
        return prompts

    def _transcripts(self, waveform: Tensor, audio: Tensor, languages: Tensor, prompts: Tensor) -> Tokens:
        """The tokens of clips [B, T], from the cache as far as they are there."""
        if self.cache is None:
            return self._generate(audio, waveform.shape[-1], prompts)
        keys = [self._key(*each) for each in zip(waveform.float().cpu(), languages.tolist(), strict=True)]
        kept = [self.cache.get(key) for key in keys]
        new = [i for i, row in enumerate(kept) if row is None]
        if new:
            for i, row in zip(new, self._generate(audio[new], waveform.shape[-1], prompts[new]).rows(), strict=True):
                kept[i] = row
                self.cache.put(keys[i], row)
        rows = [torch.tensor(row, dtype=torch.long, device=self.device) for row in kept]
        counts = torch.tensor([len(row) for row in rows], device=self.device)
        return Tokens(pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eot), counts)

    def _key(self, clip: Tensor, language: int) -> str:
        """The key of a clip [T] in the cache."""
        digest = hashlib.sha256(clip.numpy().tobytes())
        if language != self.languages[self.language]:  # the teacher's own language is in its fingerprint
            digest.update(f"language {language}".encode())
        return digest.hexdigest()

    def _encode(self, waveform: Tensor, context: int) -> Tensor:
        """The encoder's states [B, context, width] for waveforms [B, T], padded with silence at the end."""
        low = self.resample(waveform.float())
        low = F.pad(low, (0, 2 * context * HOP_LENGTH - low.shape[-1]))
        mel = self._log_mel(low).to(self.dtype)
        encoder = self.model.encoder  # its own `forward` takes exactly 30 s, so we call the layers
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + encoder.positional_embedding[:context].to(self.dtype)
        for block in encoder.blocks:
            hidden = block(hidden)
        return encoder.ln_post(hidden)

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """The log-mel spectrograms [B, mels, frames] of waveforms [B, T] at 16 kHz, each as openai-whisper's
        `log_mel_spectrogram` gives it. That takes one clip, and waits for the GPU."""
        spectrum = torch.stft(waveform, N_FFT, HOP_LENGTH, window=self.mel_window, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        log = (self.mel_filters @ power).clamp(min=1e-10).log10()
        return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4

    def _generate(self, audio: Tensor, samples: int, prompts: Tensor) -> Tokens:
        """Greedy decoding of each row of the encoder's states, after its prompt. A row is empty if there is no speech,
        or if the transcript does not end. On a GPU all tokens up to the limit are generated: to ask whether all rows
        have ended would be to wait for it."""
        end, on_gpu = self.tokenizer.eot, audio.is_cuda
        limit = min(
            TOKENS_AT_LEAST + math.ceil(TOKENS_A_SECOND * samples / SAMPLE_RATE), self.model.dims.n_text_ctx // 2
        )
        chosen = prompts
        ended = torch.zeros(len(audio), dtype=torch.bool, device=self.device)
        rows: list[Tensor] = []
        cache, hooks = self.model.install_kv_cache_hooks()
        try:
            while len(rows) < limit and (on_gpu or not ended.all()):
                logits = self.model.decoder(chosen, audio, kv_cache=cache)
                if not rows:
                    no_speech = logits[:, self.start].softmax(dim=-1)[:, self.tokenizer.no_speech]
                best = logits[:, -1].masked_fill(self.forbidden, -math.inf).argmax(dim=-1)
                token = torch.where(ended, end, best)
                ended |= token == end
                rows.append(token)
                chosen = token[:, None]
        finally:
            for hook in hooks:
                hook.remove()
        tokens = torch.stack(rows, dim=1)
        tokens = tokens.masked_fill(~(ended & (no_speech <= NO_SPEECH))[:, None], end)
        counts = (tokens != end).sum(dim=1)
        return Tokens(tokens if on_gpu else tokens[:, : int(counts.max())], counts)

    def _read(self, audio: Tensor, transcripts: Tokens, samples: int, prompts: Tensor) -> DistillationTargets:
        """Alignment and states of known transcripts, in one pass of the decoder."""
        tokens, counts, first = transcripts.tokens, transcripts.counts[:, None], len(self.prompt)
        ends = torch.full_like(counts, self.tokenizer.eot)
        sequence = torch.cat([prompts, tokens, ends], dim=1)
        places = torch.arange(sequence.shape[1], device=self.device)

        scores: list[Tensor] = []

        def keep(attention: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor]) -> None:
            scores.append(outputs[1][..., : math.ceil(samples / WHISPER_FRAME)])  # the clip without its padding

        decoder = self.model.decoder
        hooks = [block.cross_attn.register_forward_hook(keep) for block in decoder.blocks]
        try:
            with disable_sdpa():  # fused attention returns no scores
                hidden = decoder.token_embedding(sequence) + decoder.positional_embedding[: sequence.shape[1]]
                hidden = hidden.to(self.dtype)
                for block in decoder.blocks:
                    hidden = block(hidden, audio, mask=decoder.mask)
        finally:
            for hook in hooks:
                hook.remove()
        timing = torch.stack([scores[layer][:, head] for layer, head in self.heads], dim=1)
        aligned = align(timing, places <= counts + first)  # with prompt and one end token, as in timing.py
        # the state that predicts a token is one position before it: for the first token, at the prompt's last position
        given = slice(first - 1, first - 1 + tokens.shape[1])
        alignment, states = aligned[:, given], decoder.ln(hidden)[:, given].float()
        mask = (places[: alignment.shape[1]] < counts) & (alignment.sum(dim=-1) > 0)
        return DistillationTargets(alignment * mask[..., None], states * mask[..., None], mask)


def load_whisper(name: str, device: str | torch.device = "cpu") -> Whisper:
    """A Whisper by the name of a published model, which may be downloaded, or from a file, which a stranger may have
    made. Raises one of LOAD_ERRORS."""
    if not Path(name).is_file():
        return whisper.load_model(name, device=device)
    checkpoint = load_torch_file(Path(name))
    model = Whisper(ModelDimensions(**checkpoint["dims"]))
    model.load_state_dict(checkpoint["model_state_dict"])
    return model.to(device)


def set_alignment_heads(model: Whisper) -> None:
    """Sets the alignment heads of a model that was loaded from a file, by its size. openai-whisper sets them only for
    models that it loads by name. For an unknown size we use all heads of the upper half of the layers, and warn."""
    dims = model.dims
    sizes = NEWER_SIZES if dims.n_vocab == NEWER_VOCABULARY else SIZES
    size = sizes.get((dims.n_text_layer, dims.n_text_state))
    if size is None:
        warnings.warn(
            f"no alignment heads are known for a Whisper with {dims.n_text_layer} decoder layers of width "
            f"{dims.n_text_state}: using all heads of the upper half of its layers, so alignments are less accurate",
            stacklevel=2,
        )
        return
    english = ".en" if not model.is_multilingual else ""
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS[size + english])


def in_half(model: Whisper) -> Whisper:
    """Converts the model to float16 in place, except its norms: openai-whisper computes them in float32."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
            module.half()
    return model
