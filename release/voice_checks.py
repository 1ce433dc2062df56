"""Predicts, without a server, what a release does in the server. Checks its tensors, its tokenizer (with the loader of
mistral-common) and its named voices. The effect of each fault was observed in a running server (vllm-omni 0.30.0)."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.speech.request import SpeechRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from torch import Tensor

from codec.checkpoint import read_tensors
from codec.config import CodecConfig, ReleaseError
from codec.files import held_twice, listed, served_files, shortened, tensor_names
from codec.tensors import EMBEDDING_NAME, ENCODER_PREFIXES, QUANTIZER_PREFIX, expected_codec, expected_encoder
from codec.voices import NOT_FINITE, VoiceFileError, dtype_name, embed_codes, load_voice
from release.changes import TEKKEN, embedding_path, is_file_name
from release.named_voices import COUNT, NamedVoices
from release.splice import Stored, read_tensor_file

KILLS = "kills the engine at the first request for it"
STOPS = "stops the server's start-up"
STATUS_400 = "gives status 400 to a request for it"
STATUS_500 = "gives status 500 to a request for it"
SERVED = "is served nevertheless"

BOS, AUDIO, BEGIN_AUDIO, END_TEXT, BEGIN_TEXT = 1, 24, 25, 35, 36  # token ids that the model was trained with


@dataclass(frozen=True)
class Finding:
    """A fault, its effect in the server, and the voice that it concerns, "" for the whole release."""

    fault: str
    effect: str
    voice: str = ""
    repairable: bool = False  # a run without --check repairs it

    @property
    def harmless(self) -> bool:
        return self.effect.startswith(SERVED)

    @property
    def concerns_all(self) -> bool:
        return not self.harmless and (not self.voice or self.effect == STOPS)

    def __str__(self) -> str:
        return f"{self.fault}: {self.effect}" + (" (a run without --check repairs it)" if self.repairable else "")


def release_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor that the server loads, and where it is."""
    files = (read_tensor_file(path) for path in served_files(folder))
    return {name: tensor for file in files for name, tensor in file.tensors.items()}


def copy_findings(folder: Path) -> Iterator[Finding]:
    """Tensors that several files hold, usually because one is a backup of the other."""
    twice = held_twice({path: tensor_names(path) for path in served_files(folder)})
    if twice:
        yield Finding(twice, f"{SERVED}; move a copy out of the folder")


def has_encoder(tensors: Mapping[str, Stored]) -> bool:
    return any(name.startswith(ENCODER_PREFIXES) for name in tensors)


def tensor_findings(config: CodecConfig, tensors: Mapping[str, Stored]) -> Iterator[Finding]:
    """Tensors of the codec that are missing, have another shape, or a dtype that breaks the server's encoder."""
    expected = expected_codec(config)
    if has_encoder(tensors):
        expected |= expected_encoder(config)
    missing = [name for name in expected if name not in tensors]
    if missing:
        yield Finding(f"{len(missing)} tensors are missing, {listed(missing, 3)}", STOPS)
    wrong = [name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape]
    if wrong:
        yield Finding(f"{len(wrong)} tensors have shapes that do not fit params.json, {listed(wrong, 3)}", STOPS)
    buffers = [name for name, t in tensors.items() if name.startswith(QUANTIZER_PREFIX) and t.dtype != "BF16"]
    if buffers:
        yield Finding(f"{listed(buffers)} must be BF16", "kills the engine at the first ref_audio")


def tokenizer_findings(voices: NamedVoices, config: CodecConfig, path: Path | None = None) -> Iterator[Finding]:
    """Why mistral-common cannot make a speech prompt with the right token ids. `path` is the file with the text
    `voices.tekken`. Without it the text goes to a temporary file: mistral-common reads only files."""
    if path is None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / TEKKEN
            path.write_bytes(voices.tekken.encode())
            yield from tokenizer_findings(voices, config, path)
        return
    try:
        tokenizer = MistralTokenizer.from_file(path).instruct_tokenizer
        if tokenizer.audio_encoder is None:
            yield Finding(f"{TEKKEN} has no audio section", STOPS)
            return
        audio = tokenizer.audio_encoder.audio_config
        if (audio.sampling_rate, audio.frame_rate) != (config.sampling_rate, config.frame_rate):
            found = f"{audio.sampling_rate} Hz, {audio.frame_rate}"
            right = f"{config.sampling_rate} Hz, {config.frame_rate}"
            effect = "kills the engine at ref_audio"
            yield Finding(f"{TEKKEN} counts {found} frames a second instead of {right}", effect)
            return
        silence = _silence(config.frame_size, audio.sampling_rate)
        prompt = tokenizer.encode_speech_request(SpeechRequest(input="a", ref_audio=silence)).tokens
        text = tokenizer.tokenizer.encode("a", bos=False, eos=False)
    except (MistralCommonException, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)[:200] or type(error).__name__
        yield Finding(f"mistral-common cannot make a speech prompt with {TEKKEN} ({reason})", STOPS)
        return
    wanted = [BOS, BEGIN_AUDIO, AUDIO, AUDIO, BEGIN_TEXT, *text, END_TEXT, BEGIN_AUDIO]
    if prompt != wanted:
        yield Finding(
            f"{TEKKEN} makes the prompt {prompt}, expected {wanted}: its special tokens are not the release's",
            "makes the model speak nonsense; download that file again",
        )


def _silence(samples: int, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, torch.zeros(samples).numpy(), rate, format="WAV")
    return file.getvalue()


def end_of_audio_row(folder: Path, config: CodecConfig, tensors: Mapping[str, Stored]) -> Tensor:
    """The row [dim] that every voice's embedding ends with. Raises ReleaseError if the embedding table is missing."""
    if EMBEDDING_NAME not in tensors:
        raise ReleaseError(f"no consolidated*.safetensors of {folder} holds {EMBEDDING_NAME}: download them again")
    expected = expected_codec(config)[EMBEDDING_NAME]
    if tensors[EMBEDDING_NAME].shape != expected:
        found = list(tensors[EMBEDDING_NAME].shape)
        raise ReleaseError(f"{folder}: {EMBEDDING_NAME} is {found}, params.json gives {list(expected)}: get both again")
    table = read_tensors({EMBEDDING_NAME: tensors[EMBEDDING_NAME].path})[EMBEDDING_NAME].to(torch.bfloat16)
    nothing = torch.zeros(1, config.num_codebooks, 0, dtype=torch.long)
    return embed_codes(nothing, table, config.codebook_sizes)[0, 0]


def key_findings(voices: NamedVoices, config: CodecConfig) -> Iterator[Finding]:
    """Keys that the tokenizer lacks, except the counts: `voice_findings` reports those by voice."""
    for path, _ in voices.missing_keys(config):
        if path != COUNT:
            yield Finding(f"{TEKKEN}: {'.'.join(path)} is missing", STOPS, repairable=True)


def voice_findings(voices: NamedVoices, files: Mapping[str, Path], end_row: Tensor) -> Iterator[Finding]:
    """Voices on which the three places do not agree, and embeddings with faults."""
    for name in dict.fromkeys([*voices.indices, *voices.counts, *files]):
        rows, faults = (embedding(files[name], end_row)) if name in files else (None, [])
        for fault, effect in faults:
            unread = name not in voices.indices
            effect = f"{SERVED}, params.json does not name it" if unread else effect
            yield Finding(f"{shortened(embedding_path(name))} {fault}", effect, name)
        yield from _disagreements(name, rows, voices, sound=not faults, there=name in files)


def _disagreements(name: str, rows: int | None, voices: NamedVoices, sound: bool, there: bool) -> Iterator[Finding]:
    indexed, count = name in voices.indices, voices.counts.get(name)
    if not indexed and count is None:
        yield Finding(
            f"{shortened(embedding_path(name))} belongs to no voice", f"{SERVED}, the server does not read it", name
        )
        return
    if not indexed:
        yield Finding(f"voice {name!r} is missing in params.json", STATUS_400, name)
        return
    if name != name.lower() or not is_file_name(name):
        # The server lowers the requested name, looks it up in tekken.json and then in params.json's embeddings.
        effect = KILLS if name.lower() in voices.counts else STATUS_500
        if name.lower() in voices.indices:
            effect = f"{SERVED}, but requests for it get {name.lower()!r}"
        yield Finding(f"voice {name!r} is not in lower case", effect, name)
        return
    if count is None:
        yield Finding(f"voice {name!r} is missing in tekken.json", STATUS_500, name, repairable=sound and there)
    if not there:
        yield Finding(f"{shortened(embedding_path(name))} is missing", KILLS, name)
    elif rows is not None and count is not None and count != rows:
        counted = shortened(str(count))
        fault = (
            f"voice {name!r} has {counted} tokens in tekken.json and {rows} rows in {shortened(embedding_path(name))}"
        )
        yield Finding(fault, KILLS, name, repairable=sound)


def embedding(path: Path, end_row: Tensor) -> tuple[int | None, list[tuple[str, str]]]:
    """The number of an embedding's rows, None if it cannot be counted, and its faults with the effect of each."""
    try:
        stored = load_voice(path, len(end_row))
    except VoiceFileError as error:
        return None, [(error.fault, KILLS if error.readable else STOPS)]
    faults = []
    if not torch.isfinite(stored).all():
        faults.append((NOT_FINITE, "turns its speech into noise, or kills the engine"))
    if stored.dtype != torch.bfloat16:
        faults.append((f"holds {dtype_name(stored)} instead of bfloat16", f"{SERVED}, rounded to bfloat16"))
    # The released presets were computed on another machine: their end row may differ in its last bits.
    if torch.cosine_similarity(stored[-1].float(), end_row.float(), dim=0) < 0.99:
        faults.append(
            ("lacks its end-of-audio row", f"{SERVED}, but worse: the model cannot see where the reference ends")
        )
    return len(stored), faults
