"""The stand-in's language model: what it is trained on is what the server will ask, and what it learned is released."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mistral_common.protocol.speech.request import SpeechRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from codec.checkpoint import load_release, save_release
from codec.voices import read_voices
from experiments.random_release import random_codec
from experiments.stand_in import train_language_model as training
from experiments.stand_in.alignment import align
from experiments.stand_in.language_model_losses import attention_loss
from experiments.stand_in.letters import letter_ids, tekken
from experiments.stand_in.packed_model import PackedModel, say
from experiments.stand_in.reading import error_rate, phonemes
from experiments.stand_in.spoken_codes import Packer, SpokenCodes
from language_model import Example, LanguageModelConfig, Prompt, collate, generate, load_language_model
from language_model.prompt import prompt_ids, text_tokenizer
from tests.language_models import CODEC, tiny_model, tiny_params

TINY = (
    *("dim=48", "heads=4", "kv_heads=2", "layers=4", "hidden_dim=64", "acoustic_layers=1"),
    *("rows=2", "length=160", "draws=1", "dropout=0", "corruption=0.3", "sentences=3"),
    *("steps=20", "lr=0.01", "warmup_steps=5", "ema_decay=0.5", "log_every=1"),
)
TEXTS = ["One two.", "Go on, please!", "In the end", "Two ends."]
SPACE, PAUSE = 16, 4
CLASS_OF = np.where(np.arange(256) > SPACE, np.arange(256) % 7 + 1, 0)


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Random codes of 12 clips of 3 speakers, whose words are as many groups of phonemes."""
    rng = np.random.default_rng(0)
    rows, units, labels = [], [], []
    for clip in range(12):
        text = TEXTS[clip % len(TEXTS)]
        groups = [rng.integers(50, 56, 2 * len(word)).repeat(2) for word in text.split()]
        own = np.concatenate([np.append(group, SPACE) for group in groups])[:-1]
        rows.append(["closed", f"speaker {clip % 3}", text, "", len(own)])
        units.append(len(own))
        labels.append(own)
    lengths = np.ceil(np.array(units) / 3.2).astype(int)
    arrays = {
        "semantic": rng.integers(0, CODEC.semantic_codebook_size, lengths.sum()).astype(np.int16),
        "acoustic": rng.integers(0, CODEC.acoustic_codebook_size, (lengths.sum(), CODEC.acoustic_dim)).astype(np.uint8),
        "labels": np.concatenate(labels).astype(np.uint8),
    }
    for split in ("train", "dev"):
        np.savez(tmp_path / f"{split}.npz", **arrays, lengths=lengths, units=np.array(units))
        (tmp_path / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def config() -> LanguageModelConfig:
    return LanguageModelConfig.from_params(tiny_params() | {"vocab_size": 1256})


def test_the_server_reads_a_text_as_its_letters(tmp_path: Path, config: LanguageModelConfig) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken({"anna": 7})), encoding="utf-8")
    request = SpeechRequest(input="Café, 3 o'clock?\n", voice="anna")
    theirs = MistralTokenizer.from_file(tmp_path / "tekken.json").instruct_tokenizer.encode_speech_request(request)
    assert theirs.tokens == prompt_ids(letter_ids("Café, 3 o'clock?\n"), 7, config)


def test_letters_and_time_run_evenly_within_a_word_and_pauses_belong_to_what_follows_it() -> None:
    #                   w  o  r  d          ,             o  n
    labels = np.array([50, 51, 52, 53, PAUSE, PAUSE, SPACE, 60, 60, 61, 61])
    found = align(b"word, on", labels, 4, CLASS_OF)
    assert found.letters.tolist() == [[0, 3], [3, 4], [4, 7], [7, 7]]
    assert found.word_ends.tolist() == [4, 8]
    assert [word[word >= 0].tolist() for word in found.words] == [[2, 3, 4, 5], [5, 6]]


def test_words_that_the_phonemizer_joined_are_aligned_together() -> None:
    labels = [*range(50, 57), SPACE, *range(50, 54), SPACE, *range(50, 56)]  # "another", "inthe", "garden"
    found = align(b"another in the garden", np.array(labels), 6, CLASS_OF)
    assert found.word_ends.tolist() == [7, 14, 21]


def test_a_batch_holds_sequences_as_the_server_lays_them_out(codes: Path, config: LanguageModelConfig) -> None:
    speech = SpokenCodes([codes], "train")
    batch = Packer(speech, config, rows=3, length=150, seed=0, voice_frames=(4, 9)).batch()
    table = speech.codes(np.arange(len(speech.semantic))).T + 2
    table = torch.cat([table, torch.tensor([[1] + [0] * config.n_acoustic_codebook])])
    found = 0
    for row in range(3):
        for number in range(int(batch.document[row].max()) + 1):
            cells = batch.document[row] == number
            tokens, frames = batch.tokens[row][cells], batch.frames[row][cells]
            assert batch.positions[row][cells].tolist() == list(range(len(tokens)))
            text_start = tokens.tolist().index(config.next_audio_text_token_id) + 1
            text_end = tokens.tolist().index(config.repeat_audio_text_token_id)
            voice, said = frames[2 : text_start - 2], frames[text_end + 2 :]
            clip = next(i for i in range(len(speech)) if speech.starts[i] == said[0])
            assert said.tolist() == speech.speech(clip).tolist()
            assert not set(voice.tolist()) & set(said.tolist())
            own = {speech.speakers[int(np.searchsorted(speech.starts, frame, "right")) - 1] for frame in voice.tolist()}
            assert own == {speech.speakers[clip]}
            example = Example(
                speech.codes(voice.numpy()), letter_ids(speech.texts[clip]), speech.codes(speech.speech(clip))
            )
            expected = collate([example], config)
            assert tokens.tolist() == expected.tokens[0][:-1].tolist()  # its end is never an input
            audio = tokens == config.audio_token_id
            laid_out = torch.where(audio[:, None], table[frames], 0)
            assert torch.equal(laid_out[:text_end], expected.frames[0][:text_end])
            assert torch.equal(laid_out[text_end:], expected.frames[0][text_end:-1])
            found += len(said) + 1
    assert found == int(batch.valid.sum())
    assert batch.targets[:found].max() == len(speech.semantic)  # the end of audio is a target


def test_packed_sequences_see_only_themselves() -> None:
    model = tiny_model()
    rows, packed = torch.randn(2, 14, 48), PackedModel(model)
    document = torch.tensor([[0] * 5 + [1] * 9, [0] * 8 + [1] * 4 + [-1] * 2])
    positions = torch.tensor([[*range(5), *range(9)], [*range(8), *range(4), 0, 0]])
    states, _ = packed.states(rows, positions, document)
    for row, (begin, end) in ((0, (0, 5)), (0, (5, 14)), (1, (0, 8)), (1, (8, 12))):
        alone = model.states(rows[row : row + 1, begin:end])
        torch.testing.assert_close(states[row : row + 1, begin:end], alone, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(states).all()


def test_the_taught_scores_are_those_of_the_models_attention() -> None:
    model, rows = tiny_model(), torch.randn(1, 6, 48)
    packed, positions, document = PackedModel(model), torch.arange(6)[None], torch.zeros(1, 6, dtype=torch.long)
    model.backbone.set_attn_implementation("eager")
    theirs = model.backbone(inputs_embeds=rows, output_attentions=True).attentions[1][0, 2]
    _, layer_inputs = packed.states(rows, positions, document)
    scores = packed.attention_scores(1, 2, layer_inputs[1], positions, document)
    torch.testing.assert_close(scores[0].softmax(dim=-1), theirs, atol=1e-4, rtol=1e-3)


def test_attention_on_the_right_letters_costs_nothing() -> None:
    scores = torch.full((1, 6, 6), -30.0)
    scores[0, 4, 2], scores[0, 5, 0] = 30, 30
    letters = torch.tensor([[2, 2], [3, 3], [-1, -1]])
    at = torch.tensor([4, 5, 0])
    assert attention_loss(scores, at[:1], letters[:1]) == pytest.approx(0, abs=1e-5)
    assert attention_loss(scores, at, letters) == pytest.approx(30, abs=1)  # half of it on a wrong letter


def test_speech_without_a_cache_is_the_speech_with_one() -> None:
    model = tiny_model()
    prompts = [Prompt(torch.zeros(7, 3 + i, dtype=torch.long), [40 + i] * (2 + i)) for i in range(3)]
    for ours, theirs in zip(
        say(PackedModel(model), prompts, 4, [0, 1, 2]), generate(model, prompts, 4, seeds=[0, 1, 2]), strict=True
    ):
        assert torch.equal(ours.codes, theirs.codes)
        assert ours.ended == theirs.ended


def test_training_lowers_every_loss_and_its_release_holds_what_was_learned(codes: Path, tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text(json.dumps(tiny_params()))
    save_release(tmp_path / "codec", random_codec(CODEC), tmp_path / "given.json")
    out = tmp_path / "out"
    assert training.main([str(out), *TINY, "--codes", str(codes), "--codec", str(tmp_path / "codec")]) == 0
    log = json.loads((out / "log.json").read_text())
    for name in ("semantic", "acoustic", "phonemes", "spelling", "attention"):
        assert log[-1][f"dev/{name}"] < log[0][name], name

    release = out / "release"
    model, codec = load_language_model(release), load_release(release)
    assert torch.equal(model.audio_embeddings.weight, codec.embedding_table)
    assert text_tokenizer(release).encode("Two", bos=False, eos=False) == letter_ids("Two")
    voices = read_voices(release / "voice_embedding", model.config.dim)
    assert list(voices) == ["preset_1", "preset_2", "preset_3"]
    speech = SpokenCodes([codes], "train")
    examples = [
        Example(
            speech.codes(speech.speech(clip)), letter_ids(speech.texts[clip + 1]), speech.codes(speech.speech(clip + 1))
        )
        for clip in (0, 4, 8)
    ]
    learned = model.loss(collate(examples, model.config))["semantic"]
    assert learned == pytest.approx(log[-1]["dev/semantic"], rel=0.2)


def test_phoneme_errors_count_edits_and_leave_out_pauses() -> None:
    assert phonemes(np.array([[0, 1, 1, 2], [2, 0, -100, 2]])) == [1, 2, 2]
    assert error_rate([[1, 2, 3], []], [[1, 3, 3, 4], [5]]) == pytest.approx(3 / 5)
