"""The language model: its names and layouts are a release's, and its ways of computing agree with one another."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from mistral_common.protocol.speech.request import SpeechRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

from codec.checkpoint import save_release
from codec.config import ReleaseError
from codec.tensors import CODEC_PREFIX
from codec.voices import embed_codes
from experiments.random_release import random_codec
from language_model import (
    Example,
    LanguageModel,
    LanguageModelConfig,
    Prompt,
    collate,
    generate,
    load_language_model,
    save_language_model,
    text_tokenizer,
)
from language_model.checkpoint import checkpoint_tensors, expected_language_model, load_tensors
from language_model.generation import frame_noise, prompt_rows
from language_model.prompt import prompt_ids
from language_model.rotary import RotaryAngles, to_halves, to_interleaved
from tests.language_models import CODEC, example, tiny_model, tiny_params
from tests.speaking_release import tekken

DEMO = Path("data/demo/release")
CONSOLIDATED = "consolidated.safetensors"
END = 1


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A codec's release with a tiny language model in it."""
    (tmp_path / "given.json").write_text(json.dumps(tiny_params()))
    save_release(tmp_path / "release", random_codec(CODEC), tmp_path / "given.json")
    save_language_model(tmp_path / "release", tiny_model())
    return tmp_path / "release"


def test_names_and_shapes_are_those_of_the_release_that_the_server_is_tested_with() -> None:
    params = json.loads((DEMO / "params.json").read_text())
    files = [load_file(path) for path in sorted(DEMO.glob("consolidated*.safetensors"))]
    served = {name: tuple(tensor.shape) for file in files for name, tensor in file.items()}
    ours = expected_language_model(LanguageModelConfig.from_params(params))
    assert ours == {name: shape for name, shape in served.items() if not name.startswith(CODEC_PREFIX)}


def test_a_release_of_four_billion_parameters_has_270_tensors_that_are_not_its_codecs() -> None:
    params = json.loads(Path("configs/params/voxtral_4b.json").read_text())
    shapes = expected_language_model(LanguageModelConfig.from_params(params))
    assert len(shapes) == 270
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(3.86e9, rel=0.02)
    assert shapes["layers.25.attention.wk.weight"] == (1024, 3072)
    assert shapes["acoustic_transformer.semantic_codebook_output.weight"] == (8320, 3072)


def test_the_order_of_rotated_rows_comes_back_bit_for_bit() -> None:
    weight = torch.randn(6 * 16, 48).to(torch.bfloat16)
    assert torch.equal(to_interleaved(to_halves(weight, 16), 16), weight)
    assert torch.equal(to_halves(to_interleaved(weight, 16), 16), weight)
    assert not torch.equal(to_halves(weight, 16), weight)


def test_halves_turn_as_neighbouring_pairs_do() -> None:
    """The release's rotation as complex numbers, against transformers' on reordered rows: the scores are the same."""
    query, key, x = torch.randn(16, 48), torch.randn(16, 48), torch.randn(7, 48)
    positions = torch.arange(7)
    turned = []
    for weight in (query, key):
        pairs = torch.view_as_complex((x @ weight.T).view(7, 8, 2))
        angles = positions[:, None] * 100.0 ** (-torch.arange(8) / 8)
        turned.append(torch.view_as_real(pairs * torch.polar(torch.ones(()), angles)).flatten(1))
    cos, sin = RotaryAngles(16, 100.0)(x, positions[None])
    halves = [(x @ to_halves(weight, 16).T)[None, None] for weight in (query, key)]
    q, k = apply_rotary_pos_emb(*halves, cos, sin)
    torch.testing.assert_close((q @ k.transpose(-1, -2))[0, 0], turned[0] @ turned[1].T, atol=1e-4, rtol=1e-4)


def test_hidden_states_follow_from_the_releases_tensors_by_the_plain_formula() -> None:
    model = tiny_model()
    # float32 values that bf16 can hold, so that the tensors of a release are these weights
    model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()})
    tensors = {name: tensor.float() for name, tensor in checkpoint_tensors(model).items()}
    rows = torch.randn(11, 48)
    assert (model.states(rows[None])[0] - _plain_states(rows, tensors, model.config)).abs().max() < 1e-4


def _plain_states(x: Tensor, tensors: dict[str, Tensor], config: LanguageModelConfig) -> Tensor:
    """The language model over one sequence [T, dim], a head at a time, with the release's own order of dimensions."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * tensors[f"{name}.weight"]

    def turn(x: Tensor) -> Tensor:
        frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.arange(len(x))[:, None] * frequency
        even, odd = x[:, ::2], x[:, 1::2]
        turned = [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()]
        return torch.stack(turned, dim=-1).flatten(1)

    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    for i in range(config.n_layers):
        w = {name: tensors[f"layers.{i}.attention.{name}.weight"] for name in ("wq", "wk", "wv", "wo")}
        n, heads = norm(x, f"layers.{i}.attention_norm"), []
        for head in range(config.n_heads):
            shared = head // (config.n_heads // config.n_kv_heads)
            own, theirs = (slice(h * config.head_dim, (h + 1) * config.head_dim) for h in (head, shared))
            scores = turn(n @ w["wq"][own].T) @ turn(n @ w["wk"][theirs].T).T / config.head_dim**0.5
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ (n @ w["wv"][theirs].T))
        x = x + torch.cat(heads, dim=-1) @ w["wo"].T
        n = norm(x, f"layers.{i}.ffn_norm")
        w1, w2, w3 = (tensors[f"layers.{i}.feed_forward.w{k}.weight"] for k in (1, 2, 3))
        x = x + (F.silu(n @ w1.T) * (n @ w3.T)) @ w2.T
    return norm(x, "norm")


def test_a_saved_model_is_loaded_with_the_same_bits_and_the_codec_stays(release: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    loaded = load_language_model(release)
    assert loaded.dtype == torch.bfloat16
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tensors = load_file(release / CONSOLIDATED)
    assert {name for name in tensors if not name.startswith("audio_tokenizer.")} == set(checkpoint_tensors(model))
    assert any(name.startswith("audio_tokenizer.decoder_blocks.") for name in tensors)
    rows = torch.randn(1, 8, 48, dtype=torch.bfloat16)
    assert torch.equal(loaded.states(rows), model.states(rows))
    again = load_tensors(tiny_model(seed=1).to(torch.bfloat16), checkpoint_tensors(loaded))
    assert torch.equal(again.states(rows), model.states(rows))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of memory maps")
def test_on_a_cpu_the_weights_are_the_file_itself_and_no_copy_of_it(release: Path) -> None:
    model = load_language_model(release)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(CONSOLIDATED)]
    ranges = [tuple(int(bound, 16) for bound in fields[0].split("-")) for fields in maps]
    copied = {
        name
        for name, parameter in model.named_parameters()
        if not any(start <= parameter.data_ptr() < end for start, end in ranges)
    }
    layers = range(model.config.n_layers)
    assert copied == {f"backbone.layers.{i}.self_attn.{name}_proj.weight" for i in layers for name in ("q", "k")}


def test_a_cache_changes_nothing() -> None:
    model, rows = tiny_model(), torch.randn(2, 12, 48)
    cache = model.new_cache()
    parts = [model.states(part, cache) for part in rows.split([5, 1, 4, 1, 1], dim=1)]
    assert (torch.cat(parts, dim=1) - model.states(rows)).abs().max() < 1e-5


def test_the_prompt_is_the_one_that_mistral_common_builds(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken({"anna": 7})), encoding="utf-8")
    request = SpeechRequest(input="Hello there.", voice="anna")
    theirs = MistralTokenizer.from_file(tmp_path / "tekken.json").instruct_tokenizer.encode_speech_request(request)
    text = text_tokenizer(tmp_path).encode("Hello there.", bos=False, eos=False)
    assert prompt_ids(text, 7, tiny_model().config) == theirs.tokens


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"holds no tekken\.json"):
        text_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff", b'{"config": 1, "vocab": [1]}']
)
def test_a_tokenizer_that_is_none_is_said_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tekken.json").write_bytes(content)
    with pytest.raises(ReleaseError, match=r"tekken\.json is no tokenizer \("):
        text_tokenizer(tmp_path)


def test_frames_go_in_as_the_codec_embeds_them() -> None:
    model, given = tiny_model(), example(0)
    sizes = model.config.codebook_sizes
    voice = embed_codes(given.voice[None], model.audio_embeddings.weight, sizes)[0]
    rows, batch = prompt_rows(model, Prompt(given.voice, given.text)), collate([given], model.config)
    assert torch.equal(rows[2 : 2 + len(voice)], voice)
    assert torch.equal(rows, prompt_rows(model, Prompt(voice, given.text)))
    speech = embed_codes(given.speech[None], model.audio_embeddings.weight, sizes)[0]
    torch.testing.assert_close(
        model.embed(batch)[0], torch.cat([rows, speech])
    )  # the sums' order varies with the shape


def test_only_the_speech_and_its_end_are_targets() -> None:
    given = [example(0, frames=9), example(1, frames=3)]
    batch = collate(given, tiny_model().config)
    assert batch.targets.sum(dim=1).tolist() == [10, 4]
    for i, one in enumerate(given):
        target = batch.frames[i][batch.targets[i]]
        assert torch.equal(target[:-1].T - 2, one.speech)
        assert target[-1].tolist() == [END] + [0] * 6


def test_training_looks_frames_up_in_another_way_with_the_same_sums_and_gradients() -> None:
    model = tiny_model().requires_grad_(True)
    frames = collate([example(0)], model.config).frames
    results = []
    for training in (True, False):
        model.train(training)
        rows = model.embed_frames(frames)
        (gradient,) = torch.autograd.grad(rows.square().sum(), model.audio_embeddings.weight)
        results.append((rows, gradient))
    torch.testing.assert_close(results[0], results[1])


def test_a_sequence_has_the_same_losses_alone_and_in_a_padded_batch() -> None:
    model, given = tiny_model(), [example(0, frames=3), example(1, frames=9, text=8), example(2, voice_frames=1)]
    together = model.loss(collate(given, model.config), by_sequence=True, draws=500)
    assert set(together) == {"loss", "semantic", "acoustic", "semantic_accuracy"}
    for i, one in enumerate(given):
        alone = model.loss(collate([one], model.config), draws=500)
        for name in ("semantic", "semantic_accuracy"):
            torch.testing.assert_close(together[name][i], alone[name])
        torch.testing.assert_close(together["acoustic"][i], alone["acoustic"], rtol=0.1, atol=0)  # other noise
        assert alone["loss"] == alone["semantic"] + alone["acoustic"]


def test_prompts_spoken_together_say_what_each_says_alone() -> None:
    model = tiny_model()
    given = [example(i, voice_frames=2 + 3 * i, text=1 + i) for i in range(3)]
    prompts = [Prompt(one.voice, one.text) for one in given]
    together = generate(model, prompts, max_frames=7, seeds=[5, 6, 7])
    for prompt, seed, speech in zip(prompts, (5, 6, 7), together, strict=True):
        (alone,) = generate(model, [prompt], max_frames=7, seeds=[seed])
        assert torch.equal(alone.codes, speech.codes)
        assert alone.ended == speech.ended
    assert len({speech.codes.numpy().tobytes() for speech in together}) == 3


def test_what_was_spoken_is_found_again_by_teacher_forcing() -> None:
    model, given = tiny_model(), example(0)
    (speech,) = generate(model, [Prompt(given.voice, given.text)], max_frames=7, seeds=[3])
    assert speech.codes.shape[1] > 1
    batch = collate([Example(given.voice, given.text, speech.codes)], model.config)
    frames = speech.codes.shape[1]
    hidden = model.hidden(batch)[0, -frames - 1 : -1]
    said = model.acoustic_transformer.next_frame(hidden, frame_noise(3, frames, model))
    assert torch.equal(said - 2, speech.codes.T)
    accuracy = model.loss(batch)["semantic_accuracy"]
    assert accuracy == (1 if speech.ended else frames / (frames + 1))


def test_the_end_of_audio_stops_speech() -> None:
    model, given = tiny_model(), example(0)
    prompt = Prompt(given.voice, given.text)
    head = model.acoustic_transformer.semantic_codebook_output.weight
    hidden = model.states(prompt_rows(model, prompt)[None])[0, -1]
    head[END] = 100 * hidden
    speech = generate(model, [prompt], max_frames=6)[0]
    assert speech.ended
    assert speech.codes.shape == (7, 0)
    head[END] = 0 * hidden
    speech = generate(model, [prompt], max_frames=6)[0]
    assert not speech.ended
    assert speech.codes.shape == (7, 6)


def test_a_few_steps_of_training_lower_both_losses() -> None:
    torch.manual_seed(0)
    model = LanguageModel(tiny_model().config)
    batch = collate([example(i) for i in range(4)], model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(25):
        losses = model(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(losses)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert history[-1]["semantic"] < 0.5 * history[0]["semantic"]
    assert history[-1]["acoustic"] < 0.8 * history[0]["acoustic"]
    used = model.config.semantic_classes
    assert (model.acoustic_transformer.semantic_codebook_output.weight[used:] == 0).all()
    assert (model.audio_embeddings.weight[sum(model.config.codebook_sizes) :] == 0).all()


def test_states_computed_from_noisy_frames_are_judged_by_the_clean_ones() -> None:
    model = tiny_model()
    batch = collate([example(0)], model.config)
    noisy = batch._replace(frames=batch.frames.clone().fill_(2))
    given = model.loss(batch, hidden=model.hidden(noisy))
    assert given["semantic"] != model.loss(batch)["semantic"]
    assert given["semantic"] != model.loss(noisy)["semantic"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dim", None, "dim is null, expected a positive whole number"),
        ("n_kv_heads", 3, "n_kv_heads is 3, expected a divisor of n_heads, 4"),
        ("head_dim", 15, "head_dim is 15, expected an even number"),
        ("norm_eps", "small", 'norm_eps is "small", expected a positive number'),
        ("vocab_size", 30, "vocab_size is 30, expected more than 36"),
        ("sliding_window", 4096, "sliding_window is 4096, expected none"),
        ("multimodal", None, "multimodal is null, expected an object"),
        ("multimodal.audio_model_args.semantic_codebook_size", 0.5, "is 0.5, expected a positive whole number"),
        ("multimodal.audio_model_args.acoustic_codebook_size", 1, "is 1, expected at least 2 levels"),
        ("multimodal.audio_model_args.acoustic_transformer_args.dim", 64, "args.dim is 64, expected 48, the top-level"),
        ("multimodal.audio_model_args.acoustic_transformer_args.use_biases", True, "is true, expected false"),
        ("multimodal.audio_model_args.acoustic_transformer_args.input_dim", None, "input_dim is null, expected the"),
    ],
)
def test_a_wrong_value_in_params_json_is_named_with_what_was_expected(path: str, value: object, message: str) -> None:
    params = tiny_params()
    *sections, key = path.split(".")
    section = params
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(ReleaseError, match=rf"^params\.json: .*{message}"):
        LanguageModelConfig.from_params(params)


def test_missing_and_misshapen_tensors_are_named(release: Path) -> None:
    tensors = load_file(release / CONSOLIDATED)
    without = {name: tensor for name, tensor in tensors.items() if name != "norm.weight"}
    save_file(without, release / CONSOLIDATED)
    with pytest.raises(ReleaseError, match=r"lacks 1 tensors of the language model, among them norm\.weight"):
        load_language_model(release)
    save_file(tensors | {"norm.weight": torch.ones(3)}, release / CONSOLIDATED)
    with pytest.raises(ReleaseError, match=r"norm\.weight is \[3\], expected \[48\]"):
        load_language_model(release)


def test_a_model_is_not_saved_into_a_release_of_another_size(release: Path) -> None:
    params = tiny_params() | {"n_layers": 3}
    before = (release / CONSOLIDATED).read_bytes()
    with pytest.raises(ReleaseError, match="another model than the one to be saved: n_layers"):
        save_language_model(release, LanguageModel(LanguageModelConfig.from_params(params)))
    assert (release / CONSOLIDATED).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voice": torch.zeros(6, 4, dtype=torch.long)}, r"voice is torch.int64 \[6, 4\], expected int64 codes \[7"),
        ({"speech": torch.full((7, 4), 5)}, "speech has codes outside"),
        ({"text": [3, 60]}, "token ids outside 0 to 59"),
    ],
)
def test_an_example_that_the_model_cannot_read_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate([example(0)._replace(**change)], tiny_model().config)  # type: ignore[arg-type]
