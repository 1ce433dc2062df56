"""A reference clip is judged before it can hurt: what breaks the server is an error, the rest a named note."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from mistral_common.tokens.tokenizers.audio import Audio, AudioConfig, AudioEncoder, AudioSpectrogramConfig

from data import audio
from data.audio import BadClipError, Clip
from data.reference import MODEL_TOKENS, NAME, Reference, prepare, read_clip, token_count
from tests.patching import clip, noise


def wav(samples: np.ndarray, rate: int = 24000, subtype: str = "FLOAT", form: str = "WAV") -> Clip:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return Clip("clip", file.getvalue())


def kinds(reference: Reference) -> set[str]:
    return {note.kind for note in reference.notes}


def test_a_good_clip_is_taken_as_it_is_without_a_note() -> None:
    samples = noise(4.0)
    reference = prepare([wav(samples)])
    assert kinds(reference) == set()
    assert np.array_equal(reference.waveform[0].numpy(), samples)


BAD = {
    "empty": (wav(noise(0)), "is empty"),
    "no bytes": (Clip("clip", b""), "is empty"),
    "no audio": (Clip("clip", b"hello" * 100), r"cannot be decoded \(Format not recognised: give WAV"),
    "cut off in its header": (Clip("clip", wav(noise(1)).audio[:30]), "cannot be decoded"),
    "scaled as 16 bits": (wav(32768 * noise(4)), "is far over full scale"),
    "nonsense": (wav(1e30 * noise(4)), "is far over full scale"),
    "NaN": (wav(np.where(np.arange(24000) == 5, np.nan, noise(1))), "not finite"),
    "infinite": (wav(np.where(np.arange(24000) == 5, np.inf, noise(1))), "not finite"),
    "silent": (wav(np.zeros(24000)), "is silent"),
    "channels that cancel out": (wav(np.stack([noise(1), -noise(1)], 1)), "is silent"),
    "over the token limit": (wav(noise(400)), "is too long"),
    "gone at 24 kHz": (wav(noise(1 / 192000, 192000), 192000), "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_clip_that_breaks_the_server_is_an_error(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(BadClipError, match=message):
        prepare([wav(noise(2)), given])


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(BadClipError, match="cannot be read"):
            read_clip(path)


def claiming_six_hours() -> bytes:
    """A FLAC file of a second whose header says six hours."""
    audio = bytearray(wav(noise(1), subtype="PCM_16", form="FLAC").audio)
    frames = 6 * 3600 * 24000
    audio[21] = (audio[21] & 0xF0) | frames >> 32
    audio[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(audio)


LONG = {
    "FLAC": claiming_six_hours,
    "MP3": lambda: wav(np.zeros(170 * 8000), 8000, "MPEG_LAYER_III", "MP3").audio,
    "OGG": lambda: wav(np.zeros(170 * 8000), 8000, "VORBIS", "OGG").audio,
    "WAV at 1 Hz": lambda: wav(noise(1), 1).audio,
    "WAV at 4 kHz": lambda: wav(noise(30), 4000).audio,
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_or_lying_clip_is_refused_by_its_header_before_it_is_decoded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long"
    path.write_bytes(LONG[name]())

    def decoded(*arguments: object, **options: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(audio._Decoder, "read", decoded)
    with pytest.raises(BadClipError, match=r"is too long|impossible sample rate"):
        prepare([read_clip(path)])


def test_clips_that_are_too_long_together_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio._Decoder, "read", None)
    with pytest.raises(BadClipError, match="400 s, expected 163 s or less"):
        prepare([wav(noise(100, 8000), 8000)] * 4)


def high_cut(samples: np.ndarray, rate: int) -> np.ndarray:
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / rate) > 7500] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


NOTED = {
    "short": (wav(noise(0.9)), {"short"}),
    "short, of one sample": (wav(np.ones(1)), {"short"}),
    "long": (wav(noise(60)), {"long"}),
    "length, under 3 s": (wav(noise(2)), {"length"}),
    "length, over 25 s": (wav(noise(27)), {"length"}),
    "mixed down": (wav(noise(8).reshape(-1, 2)), {"mixed down"}),
    "resampled": (wav(noise(4, 48000), 48000), {"resampled"}),
    "band-limited": (wav(high_cut(noise(4), 24000)), {"band-limited"}),
    "band-limited by its rate": (wav(noise(4, 16000), 16000), {"band-limited", "resampled"}),
    "clipped": (wav(np.clip(10 * noise(4), -1, 1)), {"clipped"}),
    "clipped and made quieter": (wav(0.3 * np.clip(10 * noise(4), -1, 1)), {"clipped"}),
    "clipped, over full scale": (wav(np.where(np.arange(96000) == 5, 1.5, noise(4))), {"clipped"}),
    "clipped, in 16 bits": (wav(np.clip(10 * noise(4), -1, 1), subtype="PCM_16"), {"clipped"}),
    "quiet": (wav(0.01 * noise(4)), {"quiet"}),
    "quiet, but for a click": (wav(np.where(np.arange(96000) == 5, 0.9, 0.01 * noise(4))), {"quiet"}),
    "offset": (wav(noise(4) + 0.02), {"offset"}),
    "offset, downwards": (wav(noise(4) - 0.3), {"offset"}),
    "offset and quiet": (wav(0.01 * noise(4) + 0.3), {"offset", "quiet"}),
    "offset and quiet, in 16 bits": (wav(0.01 * noise(4) + 0.3, subtype="PCM_16"), {"offset", "quiet"}),
    "cut short": (Clip("clip", wav(noise(8)).audio[:500_000]), {"cut short"}),
    "miscounted": (wav(noise(105600 / 24000)), {"miscounted"}),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_makes_a_poor_voice_is_a_named_note(name: str) -> None:
    given, expected = NOTED[name]
    assert kinds(prepare([given])) == expected


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_every_format_of_the_server_is_decoded(tmp_path: Path, form: str) -> None:
    path = clip(tmp_path / f"clip.{form.lower()}")
    expected = Audio.from_file(str(path)).audio_array
    assert np.array_equal(prepare([read_clip(path)]).waveform[0].numpy(), expected)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_resampling_is_the_servers(tmp_path: Path, rate: int) -> None:
    path = clip(tmp_path / "clip.wav", rate=rate)
    theirs = Audio.from_file(str(path))
    theirs.resample(24000)
    assert np.array_equal(prepare([read_clip(path)]).waveform[0].numpy(), theirs.audio_array)


def test_resampling_leaves_no_image_of_what_was_above_the_band() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 15000 * np.arange(96000) / 48000).astype(np.float32)
    prepared = prepare([wav(tone + 1e-3 * noise(2, 48000), 48000)]).waveform
    assert prepared.square().mean().sqrt() < 1e-3  # -54 dB


def test_the_count_is_mistral_commons_with_its_rounding() -> None:
    config = AudioConfig(24000, 12.5, AudioSpectrogramConfig(128, 160, 400))
    theirs = AudioEncoder(config, None)._get_num_audio_token_for_speech_request  # type: ignore[arg-type]
    lengths = [*range(1, 4000), *range(1920, 30 * 24000, 1920), 209280, 211200]
    assert [token_count(n) for n in lengths] == [theirs(n) for n in lengths]


def test_no_prepared_length_is_miscounted() -> None:
    wrong = [n for n in range(1920, 30 * 24000, 1920) if token_count(n) != n // 1920 + 1]
    assert {13440, 26880, 53760, 105600, 107520, 209280, 211200} <= set(wrong)
    for samples in [*wrong, 1920, 96000]:
        length = prepare([wav(noise(samples / 24000))]).waveform.shape[-1]
        assert length == samples - (samples in wrong)
        assert token_count(length) == math.ceil(length / 1920) + 1 == samples // 1920 + 1


def test_silence_is_cut_at_the_ends_only_and_the_level_is_left_alone() -> None:
    quiet = 1e-4 * noise(1, seed=1)
    samples = np.concatenate([quiet, 0.1 * noise(2), quiet, noise(2, seed=2), quiet])
    kept = prepare([wav(samples)], trim=True)
    assert kinds(kept) == {"trimmed"}
    length = kept.waveform.shape[-1]
    assert abs(length - 5.2 * 24000) <= 2 * 480
    start = next(i for i in range(len(samples)) if np.array_equal(samples[i : i + 9], kept.waveform[0, :9].numpy()))
    assert np.array_equal(samples[start : start + length], kept.waveform[0].numpy())
    assert kinds(prepare([wav(noise(4))], trim=True)) == set()


def test_clips_are_joined_in_their_order_and_judged_together() -> None:
    one, two = noise(2), noise(2, seed=1)
    joined = prepare([wav(one), wav(two)])
    assert np.array_equal(joined.waveform[0].numpy(), np.concatenate([one, two]))
    assert kinds(joined) == set()
    with pytest.raises(BadClipError, match="too long"):
        prepare([wav(noise(100)), wav(noise(100))])


def test_the_longest_clip_leaves_half_the_model_to_speak() -> None:
    longest = (MODEL_TOKENS // 2 - 1) * 1920
    assert prepare([wav(noise(longest / 24000))]).seconds == longest / 24000
    with pytest.raises(BadClipError, match="expected 163 s or less"):
        prepare([wav(noise((longest + 1) / 24000))])


def test_the_wav_to_send_holds_the_very_samples() -> None:
    reference = prepare([wav(noise(4, 44100), 44100)])
    sent = Audio.from_bytes(reference.wav())
    assert sent.sampling_rate == 24000
    assert torch.equal(torch.from_numpy(sent.audio_array), reference.waveform[0])


@pytest.mark.parametrize("name", ["Anna", "", "a b", "../x", "a/b", ".", "a.b", "ä", "a\n", "x" * 65, "NUL\0", "a,b"])
def test_no_other_name_than_of_small_letters_digits_and_dashes(name: str) -> None:
    assert not NAME.fullmatch(name)


def test_a_name_may_be_of_all_of_these() -> None:
    assert NAME.fullmatch("anna-2_b")
