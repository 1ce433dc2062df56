"""What the codec promises by itself: batches, causality, lengths, errors, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mistral_common.tokens.tokenizers.audio import AudioConfig, AudioEncoder, AudioSpectrogramConfig
from torch import Tensor

from codec import Codec, CodecConfig, ReleaseError, load_release
from codec.checkpoint import shapes_only
from codec.encoder import Encoder
from codec.tensors import expected_codec, expected_encoder
from experiments.random_release import REAL, SMALL, TINY, params_json, random_codec, write_release

# lengths up to 3 s at which mistral-common's rounding gives one token more than the encoder gives frames
MISCOUNTED = {13440, 26880, 53760}


@pytest.fixture(scope="module")
def codecs(tiny_release: Path) -> dict[torch.dtype, Codec]:
    return {
        dtype: load_release(tiny_release, dtype).with_new_encoder("random") for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.parametrize(
    "config",
    [
        REAL,
        SMALL,
        replace(TINY, conv_weight_norm=False),
        replace(TINY, encoder_transformer_lengths_str="1,2,3,1", decoder_transformer_lengths_str="2,1,1,3"),
        replace(
            TINY,
            encoder_convs_kernels_str="4,1,4,3",
            encoder_convs_strides_str="2,1,2,1",
            decoder_convs_kernels_str="3,4,1,4",
            decoder_convs_strides_str="1,2,1,2",
        ),
    ],
    ids=["the release's", "small", "without weight norm", "other lengths", "a stage without convolution"],
)
def test_names_and_shapes_by_params_json_are_those_of_the_modules(config: CodecConfig) -> None:
    with shapes_only():
        codec = Codec(config)
    modules = {"audio_tokenizer.": [codec.encoder, codec.decoder], "audio_tokenizer.quantizer.": [codec.quantizer]}
    shapes = {
        prefix + key: tuple(tensor.shape)
        for prefix, parts in modules.items()
        for part in parts
        if part is not None
        for key, tensor in part.state_dict().items()
    }
    table = "mm_audio_embeddings.audio_codebook_embeddings.embeddings.weight"
    shapes[table] = (config.embedding_rows, config.embedding_dim)
    assert expected_encoder(config) | expected_codec(config) == shapes


def test_properties_of_the_release() -> None:
    codec = random_codec(TINY)
    assert (codec.sample_rate, codec.frame_rate, codec.frame_size) == (24000, 12.5, 1920)
    assert codec.num_codebooks == 37
    assert codec.has_encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_gives_what_its_clips_give_alone(small_release: Path, dtype: torch.dtype) -> None:
    codec = load_release(small_release, dtype)
    clips = 0.1 * torch.randn(3, 1, 24000, generator=torch.Generator().manual_seed(1))
    codes = codec.encode(clips)
    assert torch.equal(codes, torch.cat([codec.encode(clip[None]) for clip in clips]))
    together, alone = codec.decode(codes), torch.cat([codec.decode(code[None]) for code in codes])
    assert (together - alone).abs().max() < 1e-5
    assert torch.equal(codec.embed(codes), torch.cat([codec.embed(code[None]) for code in codes]))


def test_latents_of_a_batch_are_those_of_its_clips(small_release: Path) -> None:
    codec = load_release(small_release, torch.float32)
    clips = 0.1 * torch.randn(4, 1, 9600, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([codec.latent(clip[None]) for clip in clips])
    assert (codec.latent(clips) - alone).abs().max() < 1e-5


@pytest.mark.parametrize("samples", [1920 * 70, 1920 * 75 + 1000, 1920 * 50 + 1])
def test_a_long_waveform_in_pieces_has_the_codes_of_one_piece(
    small_release: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    waveform = 0.1 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(3))
    for dtype, equal in ((torch.float32, 1.0), (torch.bfloat16, 0.98)):  # in bf16 a length of its own has its rounding
        codec = load_release(small_release, dtype)
        whole = codec.encode(waveform)
        with monkeypatch.context() as patch:
            patch.setattr("codec.codec.ENCODED_AT_ONCE", 25)
            pieces = codec.encode(waveform)
        assert pieces.shape == whole.shape
        assert (pieces == whole).float().mean() >= equal
        assert (pieces - whole)[:, 1:].abs().max() <= 1


def test_a_frame_depends_on_the_encoders_context_and_on_no_more(small_release: Path) -> None:
    codec = load_release(small_release, torch.float64)
    assert codec.encoder is not None
    waveform = 0.1 * torch.randn(1, 1, 1920 * 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    changed = waveform.clone()
    changed[..., : 1920 * 10] += 0.1
    differs = (codec.latent(waveform) != codec.latent(changed)).any(dim=1)[0].nonzero()
    assert int(differs.max()) - 9 <= codec.encoder.context == 21


def test_codes_do_not_depend_on_what_comes_after(small_release: Path, speech: Tensor) -> None:
    codec = load_release(small_release, torch.float32)
    latent = codec.latent(speech[..., : 1920 * 20])
    changed = speech[..., : 1920 * 20].clone()
    changed[..., 1920 * 12 :] = torch.rand(1920 * 8) - 0.5
    assert (codec.latent(changed) - latent)[..., :12].abs().max() < 1e-5
    assert (codec.latent(speech[..., : 1920 * 12]) - latent[..., :12]).abs().max() < 1e-5
    # and they do depend on what came before, or the test above would pass for anything
    changed = speech[..., : 1920 * 20].clone()
    changed[..., 1920 * 10 : 1920 * 11] = 0
    assert (codec.latent(changed) - latent)[..., 11].abs().max() > 1e-3


def test_frames_are_counted_as_mistral_common_counts_tokens() -> None:
    spectrogram = AudioSpectrogramConfig(num_mel_bins=128, hop_length=160, window_size=400)
    tokenizer = AudioEncoder(AudioConfig(24000, 12.5, spectrogram), special_ids=None)  # type: ignore[arg-type]
    differing = {
        samples
        for samples in range(1, 72001)
        if tokenizer._get_num_audio_token_for_speech_request(samples) != REAL.frames(samples) + 1
    }
    assert differing == MISCOUNTED


def test_the_encoder_gives_the_counted_frames_for_every_number_of_patches_up_to_3_s() -> None:
    with torch.device("meta"):  # shapes alone
        encoder = Encoder(replace(REAL, encoder_transformer_lengths_str="1,1,1,1"))
        waveform = torch.zeros(1, 1, 72000)
    for patches in range(1, 301):
        samples = patches * 240 - 239 * (patches % 2)  # a whole last patch, or one sample of it
        assert encoder(waveform[..., :samples]).shape[-1] == REAL.frames(samples), samples


def test_a_voice_ends_with_the_end_of_audio_row(small_release: Path) -> None:
    codec = load_release(small_release)
    codes = torch.zeros(1, 37, 3, dtype=torch.long)
    embedding = codec.embed(codes)
    assert embedding.shape == (1, 4, SMALL.embedding_dim)
    starts = [0] + [8194 + 23 * i for i in range(36)]
    rows = [1, *starts[1:]]  # end of audio in the first codebook, row 0 of every other
    assert torch.equal(embedding[0, -1], codec.embedding_table[rows].sum(0))
    assert torch.equal(embedding[0, 0], codec.embedding_table[[start + 2 for start in starts]].sum(0))


def test_codes_out_of_range_are_refused(small_release: Path) -> None:
    codec = load_release(small_release)
    codes = torch.zeros(1, 37, 3, dtype=torch.long)
    codes[0, 5, 1] = 21
    with pytest.raises(ValueError, match="out of range"):
        codec.decode(codes)
    with pytest.raises(ValueError, match=r"expected \[B, 37, F\]"):
        codec.embed(codes[:, :36])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        ((9000 * torch.ones(1, 1, 1920)).short(), "waveform is int16, expected floats .* divide int16 by 32768"),
        (torch.ones(1, 1, 1920, dtype=torch.int64), "waveform is int64, expected floats"),
        (torch.ones(1, 1, 1920, dtype=torch.bool), "waveform is bool, expected floats"),
        (torch.ones(1, 1, 1920, dtype=torch.complex64), "waveform is complex64, expected floats"),
        (9000 * torch.ones(1, 1, 1920), r"has the value 9000, expected finite values in \[-1, 1\]"),
        (torch.tensor([0.1, torch.nan]).expand(1, 1, 2), "has the value nan, expected finite values"),
        (torch.tensor([0.1, -torch.inf]).expand(1, 1, 2), "has the value inf, expected finite values"),
        (torch.zeros(0, 1, 1920), r"has shape \[0, 1, 1920\], expected \[B, 1, T\]"),
        (torch.zeros(1, 1, 0), r"has shape \[1, 1, 0\], expected \[B, 1, T\]"),
        (torch.zeros(1920), r"has shape \[1920\], expected \[B, 1, T\]"),
        (torch.zeros(1, 2, 1920), r"has shape \[1, 2, 1920\], expected \[B, 1, T\]"),
    ],
    ids=["int16", "int64", "bool", "complex", "not scaled", "NaN", "infinite", "no clip", "no sample", "1-D", "stereo"],
)
def test_what_is_no_waveform_is_refused_with_what_was_expected(
    codecs: dict[torch.dtype, Codec], dtype: torch.dtype, waveform: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codecs[dtype].encode(waveform)


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_a_waveform_of_any_floats_is_encoded(codecs: dict[torch.dtype, Codec], given: torch.dtype) -> None:
    waveform = 0.5 * torch.ones(1, 1, 1920)
    assert torch.equal(codecs[torch.float32].encode(waveform.to(given)), codecs[torch.float32].encode(waveform))


def test_codes_that_are_no_integers_are_refused(codecs: dict[torch.dtype, Codec]) -> None:
    with pytest.raises(ValueError, match="codes are float32, expected integers"):
        codecs[torch.float32].decode(torch.zeros(1, 37, 2))


def test_a_release_without_encoder_decodes_and_says_why_it_cannot_encode(tmp_path: Path) -> None:
    codec = load_release(write_release(tmp_path, random_codec(TINY), with_encoder=False))
    assert not codec.has_encoder
    assert codec.decode(torch.zeros(1, 37, 2, dtype=torch.long)).shape == (1, 1, 3840)
    with pytest.raises(ValueError, match="no encoder"):
        codec.encode(torch.zeros(1, 1, 1920))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    codec = random_codec(TINY)
    whole = load_release(write_release(tmp_path / "whole", codec))
    shards = load_release(write_release(tmp_path / "shards", codec, shards=3))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), shards.state_dict().values(), strict=True)
    )


def _changed(key: str, value: Any, section: str = "audio_tokenizer_args") -> dict[str, Any]:
    params = params_json(SMALL)
    params["multimodal"][section][key] = value
    return params


@pytest.mark.parametrize(
    ("key", "value", "expectation"),
    [
        ("dim", "1024", "positive whole number"),
        ("dim", 0, "positive whole number"),
        ("hidden_dim", 12.5, "positive whole number"),
        ("norm_eps", -1, "positive number"),
        ("causal", False, "true"),
        ("qk_norm", 1, "true or false"),
        ("channels", 2, "1"),
        ("n_kv_heads", 1, "n_heads"),
        ("n_heads", 3, "n_heads"),
        ("decoder_convs_strides_str", "1,2,2", "as many"),
        ("decoder_convs_strides_str", "1,2,2,1", "product"),
        ("decoder_convs_strides_str", "1;2;2;2", "separated by commas"),
        ("encoder_convs_strides_str", "4,2,1,1", "1 or 2"),
        ("attn_sliding_window_size", 8, "2 or more"),
        ("encoder_convs_kernels_str", "1,4,4,3", "above its kernel"),
    ],
)
def test_a_wrong_value_names_key_value_and_expectation(key: str, value: Any, expectation: str) -> None:
    with pytest.raises(ReleaseError, match=expectation) as error:
        CodecConfig.from_params(_changed(key, value))
    assert "audio_tokenizer_args" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"), [("semantic_codebook_size", 4096), ("n_acoustic_codebook", 35), ("acoustic_codebook_size", None)]
)
def test_codebooks_must_agree_with_the_model(key: str, value: Any) -> None:
    with pytest.raises(ReleaseError, match=rf"audio_model_args\.{key} is {json.dumps(value)}, expected"):
        CodecConfig.from_params(_changed(key, value, "audio_model_args"))


def test_missing_keys_take_the_servers_defaults() -> None:
    params = params_json(REAL)
    params["multimodal"]["audio_tokenizer_args"] = {"layer_scale_init": 0.01}
    assert CodecConfig.from_params(params) == REAL


@pytest.mark.parametrize("params", [{}, {"multimodal": {}}, {"multimodal": {"audio_tokenizer_args": 3}}])
def test_a_foreign_params_json_is_called_so(params: dict[str, Any]) -> None:
    with pytest.raises(ReleaseError, match="not a Voxtral TTS release"):
        CodecConfig.from_params(params)


def test_other_dimensions_than_the_weights_are_an_error(tmp_path: Path) -> None:
    write_release(tmp_path, random_codec(TINY))
    (tmp_path / "params.json").write_text(json.dumps(params_json(replace(TINY, hidden_dim=64))))
    with pytest.raises(ReleaseError, match=r"w1\.weight is \[32, 16\], expected \[64, 16\]"):
        load_release(tmp_path)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = write_release(tmp_path, random_codec(TINY)) / "consolidated.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ReleaseError, match="truncated"):
        load_release(tmp_path)


def test_a_folder_that_is_no_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"no params\.json"):
        load_release(tmp_path)
    with pytest.raises(ReleaseError, match="not a folder"):
        load_release(tmp_path / "nothing")
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(ReleaseError, match="not valid JSON"):
        load_release(tmp_path)


def test_mirrored_encoder_layers_are_the_decoders(small_release: Path) -> None:
    codec = load_release(small_release, torch.float32).with_new_encoder("mirror")
    encoder = codec.encoder
    assert encoder is not None
    first, last = encoder.encoder_blocks[0].layers[1], codec.decoder.decoder_blocks[7].layers[1]
    assert first.attention.window == last.attention.window == 16
    assert torch.equal(first.feed_forward.w1.weight, last.feed_forward.w1.weight)


def test_reading_takes_under_1_5_gb_above_the_imports(real_release: Path) -> None:
    script = """
import re, sys
from pathlib import Path
import torch
from codec import load_release
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e6
before = peak()
codec = load_release(sys.argv[1])
codec.embed(codec.encode(torch.rand(1, 1, 24000) - 0.5))  # tensors are mapped: use brings them into memory
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(real_release)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert 0.3 < float(run.stdout) < 1.5
