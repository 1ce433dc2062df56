"""Whisper as a teacher, with real weights on clips of the demo: transcripts, alignments, and clips without speech."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import whisper
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from whisper.model import ModelDimensions, Whisper

import losses.asr.teacher
from codec.config import FRAME_SIZE, SAMPLE_RATE
from data import decode, open_clips
from losses.asr.distillation import ASRDistillation, DistillationTargets
from losses.asr.languages import whisper_language
from losses.asr.teacher import Teacher, TeacherError, in_half, set_alignment_heads
from tests.whisper_base import whisper_base

UNSEEN = Path(__file__).parents[1] / "data" / "demo" / "unseen.parquet"
pytestmark = pytest.mark.usefixtures("one_thread")

RATE, WINDOW = 24000, 5.0  # a shorter window than Whisper's, for tests of the arithmetic only


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.load(str(whisper_base()))


@pytest.fixture(scope="module")
def quick(teacher: Teacher) -> Teacher:
    return Teacher(teacher.model, context_seconds=WINDOW)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[torch.Tensor]:
    """Two synthetic clips and one of a person, [T] each, of different lengths."""
    rows = open_clips([str(UNSEEN)], str(tmp_path_factory.mktemp("parquet")))
    return [decode(rows.read(i), RATE)[0] for i in (0, 5, 21)]


def test_states_of_thirty_seconds_are_those_of_whispers_own_encoder(
    teacher: Teacher, clips: list[torch.Tensor]
) -> None:
    sound = torch.cat(clips * 8)[: 30 * RATE]
    assert len(sound) == 30 * RATE
    mel = whisper.log_mel_spectrogram(teacher.resample(sound[None])[0])
    assert torch.allclose(teacher.states(sound[None])[0], teacher.model.encoder(mel[None])[0], atol=1e-3)


def test_states_are_four_a_frame_and_hear_their_own_clip_only(teacher: Teacher, crops: torch.Tensor) -> None:
    states = teacher.states(crops[:, : 12 * FRAME_SIZE + 7])
    assert states.shape == (2, 4 * 13, teacher.width)
    alone = torch.cat([teacher.states(crop[None, : 12 * FRAME_SIZE + 7]) for crop in crops])
    assert torch.allclose(states, alone, atol=1e-3)
    with pytest.raises(ValueError, match=r"expected 30\.0 s at most"):
        teacher.states(torch.zeros(1, 31 * RATE))


@pytest.fixture(scope="module")
def targets(teacher: Teacher, clips: list[torch.Tensor]) -> DistillationTargets:
    return teacher.targets(pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips]))


@pytest.fixture(scope="module")
def texts(teacher: Teacher, clips: list[torch.Tensor]) -> list[str]:
    return [teacher.transcribe(clip[None])[0] for clip in clips]


@pytest.fixture(scope="module")
def crops(clips: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([clip[RATE : 3 * RATE] for clip in clips[:2]])


@pytest.fixture(scope="module")
def fresh(quick: Teacher, crops: torch.Tensor) -> DistillationTargets:
    return quick.targets(crops)


def _same(one: DistillationTargets, other: DistillationTargets, tolerance: float = 1e-3) -> None:
    assert torch.equal(one.mask, other.mask)
    assert (one.alignment - other.alignment).abs().max() < tolerance
    assert (F.cosine_similarity(one.states[one.mask], other.states[other.mask], dim=-1) > 1 - tolerance).all()


def _whispers_mel(teacher: Teacher, clip: torch.Tensor) -> torch.Tensor:
    at_16_khz = teacher.resample(clip)
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(at_16_khz), teacher.model.dims.n_mels)


def test_transcripts_are_those_of_openai_whisper(teacher: Teacher, clips: list[torch.Tensor], texts: list[str]) -> None:
    mel = torch.stack([_whispers_mel(teacher, clip) for clip in clips])
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
    expected = [result.text for result in whisper.decode(teacher.model, mel, options)]
    assert all(len(text.split()) > 8 for text in expected)
    assert texts == expected


def test_tokens_are_aligned_with_the_frames_of_their_words(
    teacher: Teacher, clips: list[torch.Tensor], texts: list[str], targets: DistillationTargets
) -> None:
    """Compared with the word times of openai-whisper. An alignment stretched from 30 s to the clip, or a wrong frame
    rate, would be wrong by seconds."""
    for i in range(2):  # the synthetic ones: no pauses within words
        clip, count = clips[i], int(targets.mask[i].sum())
        times = (torch.arange(targets.alignment.shape[-1]) + 0.5) * 0.08
        centres = (targets.alignment[i, :count] @ times).tolist()
        assert centres == sorted(centres)
        tokens = teacher.tokenizer.encode(" " + texts[i])
        words = whisper.timing.find_alignment(
            teacher.model, teacher.tokenizer, tokens, _whispers_mel(teacher, clip), len(clip) * 100 // RATE
        )
        place, errors = 0, []
        for word in words:
            own = centres[place : place + len(word.tokens)]
            place += len(word.tokens)
            if own and word.word.strip(" .,?"):
                errors.append(abs(sum(own) / len(own) - (word.start + word.end) / 2))
        assert place >= count
        assert len(errors) > 8
        assert max(errors) < 0.15


def test_an_alignment_lies_inside_its_clip(clips: list[torch.Tensor], targets: DistillationTargets) -> None:
    for clip, alignment, mask in zip(clips, targets.alignment, targets.mask, strict=True):
        frames = -(-len(clip) // 1920)
        assert alignment[:, frames:].abs().sum() == 0
        assert torch.allclose(alignment[mask].sum(dim=-1), torch.ones(int(mask.sum())))
        assert alignment[mask][-1].argmax() > frames * 0.8  # the last token is near the end


def test_targets_exclude_prompt_end_and_padding(
    teacher: Teacher, texts: list[str], targets: DistillationTargets
) -> None:
    counts = [len(teacher.tokenizer.encode(" " + text)) for text in texts]
    assert targets.mask.sum(dim=1).tolist() == counts
    assert targets.states.shape == (3, max(counts), teacher.width)
    assert targets.states[~targets.mask].abs().max() == 0
    assert targets.alignment[~targets.mask].abs().max() == 0


def test_the_state_of_a_token_is_the_one_that_predicts_it(
    teacher: Teacher, texts: list[str], targets: DistillationTargets
) -> None:
    logits = targets.states[1][targets.mask[1]] @ teacher.model.decoder.token_embedding.weight.T
    given = logits.masked_fill(teacher.forbidden, -torch.inf).argmax(dim=-1)
    assert teacher.tokenizer.decode(given.tolist()).strip() == texts[1]


def test_clips_of_different_lengths_give_what_each_gives_alone(quick: Teacher, clips: list[torch.Tensor]) -> None:
    """Louder noise after the end of a shorter clip is ignored, also for the spectrogram's floor."""
    lengths = [48000, 30720]
    batch = 0.5 * torch.randn(2, 48000, generator=torch.Generator().manual_seed(0))
    for row, clip, length, level in zip(batch, clips, lengths, (1, 0.05), strict=False):
        row[:length] = level * clip[:length]
    together = quick.targets(batch, torch.tensor(lengths))
    for i, length in enumerate(lengths):
        alone = quick.targets(batch[i : i + 1, :length])
        tokens, frames = alone.mask.shape[1], -(-length // 1920)
        assert together.mask[i].sum() == alone.mask.sum() > 0
        _same(
            DistillationTargets(
                together.alignment[i : i + 1, :tokens, :frames], *(p[i : i + 1, :tokens] for p in together[1:])
            ),
            alone,
        )


def test_silence_and_noise_give_no_tokens_and_are_counted(teacher: Teacher, clips: list[torch.Tensor]) -> None:
    noise = torch.randn(30720, generator=torch.Generator().manual_seed(0))
    batch = torch.stack([torch.zeros(30720), 1e-3 * noise, clips[0][:30720]])
    targets = teacher.targets(batch)
    assert targets.has_speech.tolist() == [False, False, True]
    assert targets.clips_without_speech == 2
    alone = teacher.targets(0.1 * noise[None])
    assert alone.mask.shape == (1, 0)
    assert ASRDistillation(4, teacher.width)(alone, torch.zeros(1, 4, 16)) == 0


def test_a_transcript_that_does_not_end_counts_as_no_speech(
    teacher: Teacher, crops: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Teacher(teacher.model, context_seconds=WINDOW)
    quick.forbidden = quick.forbidden.clone()
    quick.forbidden[quick.tokenizer.eot] = True
    assert quick.targets(crops[:1]).clips_without_speech == 1


def test_resampling_folds_nothing_above_8_khz_into_whispers_band(quick: Teacher, crops: torch.Tensor) -> None:
    """Resampled by linear interpolation, a tone at 10 kHz would appear at 6 kHz."""
    tone = 0.1 * torch.sin(2 * torch.pi * 10000 / RATE * torch.arange(crops.shape[-1]))
    assert quick.resample(tone)[200:-200].abs().max() < 1e-3
    linear = F.interpolate(tone[None, None], scale_factor=2 / 3, mode="linear")
    assert linear.abs().max() > 0.03
    plain, with_tone = quick.states(crops[:1]), quick.states(crops[:1] + tone)
    assert F.cosine_similarity(plain, with_tone, dim=-1).mean() > 0.99


def test_the_teacher_is_frozen_and_gives_no_gradient(quick: Teacher, crops: torch.Tensor) -> None:
    waveform = crops[:1].clone().requires_grad_()
    targets = quick.targets(waveform)
    assert not any(part.requires_grad for part in targets)
    assert not any(parameter.requires_grad for parameter in quick.model.parameters())
    assert not quick.model.training
    loss = ASRDistillation(8, quick.width).train()
    semantic = torch.randn(1, 8, 25, requires_grad=True)
    loss(targets, semantic).backward()
    assert semantic.grad is not None
    assert waveform.grad is None
    assert all(parameter.grad is None for parameter in quick.model.parameters())
    assert not quick.model.training
    assert {name for name, _ in loss.named_parameters()} == {"projection.weight", "projection.bias"}


def test_embeddings_can_learn_the_teachers_targets_and_not_those_of_other_words(fresh: DistillationTargets) -> None:
    """Embeddings that are trained on one clip's words do not fit another clip's words."""
    torch.manual_seed(0)
    loss, semantic = ASRDistillation(64, fresh.states.shape[-1]), torch.randn(2, 64, 25, requires_grad=True)
    optimizer = torch.optim.Adam([semantic, *loss.parameters()], 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss(fresh, semantic).backward()
        optimizer.step()
    assert loss(fresh, semantic) < 0.1
    assert loss(fresh, semantic.roll(1, dims=0)) > 0.3


def test_in_half_precision_the_targets_are_the_same(
    quick: Teacher, crops: torch.Tensor, fresh: DistillationTargets
) -> None:
    half = Teacher(in_half(copy.deepcopy(quick.model)), context_seconds=WINDOW)
    assert half.dtype == torch.float16
    _same(half.targets(crops), fresh, tolerance=0.02)


def test_a_model_from_a_file_has_the_alignment_heads_of_its_size(teacher: Teacher) -> None:
    assert sorted(teacher.heads) == [(3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)]


def test_a_model_of_unknown_size_takes_all_upper_heads_and_says_so() -> None:
    small = Whisper(ModelDimensions(80, 1500, 16, 2, 1, 51865, 448, 16, 2, 2))
    with pytest.warns(UserWarning, match="2 decoder layers of width 16"):
        set_alignment_heads(small)
    assert Teacher(small).heads == [(1, 0), (1, 1)]


def test_a_file_that_is_no_teacher_is_named_with_the_key_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"no weights at all")
    torch.save({"model_state_dict": {}}, tmp_path / "other.pt")
    for name in ("nothing.pt", str(tmp_path / "junk.pt"), str(tmp_path / "other.pt")):
        with pytest.raises(TeacherError, match=r"losses\.asr_teacher .* losses\.asr=0 switches the loss off") as error:
            Teacher.load(name)
        assert Path(name).name in str(error.value)


def test_a_language_or_a_window_that_whisper_does_not_support_is_refused(teacher: Teacher) -> None:
    with pytest.raises(TeacherError, match=r"losses\.asr_language is 'klingon'"):
        Teacher(teacher.model, language="klingon")
    with pytest.raises(TeacherError, match=r"losses\.asr_context_seconds is 31"):
        Teacher(teacher.model, context_seconds=31)
    english = Whisper(ModelDimensions(80, 1500, 16, 2, 1, 51864, 448, 16, 2, 2))
    with pytest.raises(TeacherError, match="English-only: expected 'en'"):
        Teacher(english, language="de")


@pytest.mark.parametrize("samples", [2399, 5 * RATE + 1])
def test_a_clip_that_does_not_fit_the_window_is_refused(quick: Teacher, samples: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.1 to 5\.0 s"):
        quick.targets(torch.zeros(1, samples))


@pytest.fixture
def cached(teacher: Teacher, tmp_path: Path) -> Teacher:
    return Teacher(teacher.model, context_seconds=WINDOW, cache=tmp_path / "cache")


def test_cached_and_fresh_agree_to_the_bit(
    quick: Teacher, cached: Teacher, crops: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.stack([crops[0], torch.zeros_like(crops[0])])
    fresh = quick.targets(batch)
    first = cached.targets(batch)
    again = Teacher(quick.model, context_seconds=WINDOW, cache=tmp_path / "cache")
    monkeypatch.setattr(Teacher, "_generate", lambda *_: pytest.fail("generated what is in the cache"))
    second = again.targets(batch)
    for a, b, c in zip(fresh, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert all(path.suffix == ".safetensors" for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_only_clips_without_a_cached_transcript_are_transcribed(
    cached: Teacher, crops: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.targets(crops[:1])
    generated: list[int] = []
    original = Teacher._generate

    def counting(self: Teacher, audio: torch.Tensor, samples: int, prompts: torch.Tensor) -> list[list[int]]:
        generated.append(len(audio))
        return original(self, audio, samples, prompts)

    monkeypatch.setattr(Teacher, "_generate", counting)
    mixed = cached.targets(crops)
    assert generated == [1]
    assert mixed.has_speech.all()


def test_another_teacher_or_setting_has_transcripts_of_its_own(teacher: Teacher, quick: Teacher) -> None:
    other = copy.deepcopy(quick.model)
    other.decoder.ln.bias.data[0] += 1e-3
    made = [
        quick,
        teacher,
        Teacher(quick.model, language="de", context_seconds=WINDOW),
        Teacher(other, context_seconds=WINDOW),
    ]
    assert len({one.fingerprint() for one in made}) == len(made)
    assert Teacher(quick.model, context_seconds=WINDOW).fingerprint() == quick.fingerprint()


def test_a_damaged_transcript_is_named_and_a_partial_one_is_never_read(
    cached: Teacher, crops: torch.Tensor, tmp_path: Path
) -> None:
    cached.targets(crops[:1])
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    path.rename(path.with_name(f".{path.name}.123"))  # as left by a killed write
    assert cached.cache is not None
    assert cached.cache.get(path.stem) is None
    path.write_bytes(b"cut off")
    with pytest.warns(UserWarning, match=r"is damaged .* transcribed again"):
        cached.targets(crops[:1])
    assert cached.cache.get(path.stem) is not None


def test_a_cache_that_cannot_be_written_gives_a_warning_and_the_same_targets(
    quick: Teacher, crops: torch.Tensor, fresh: DistillationTargets, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    blocked = Teacher(quick.model, context_seconds=WINDOW, cache=tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="transcripts are not cached"):
        targets = blocked.targets(crops)
    _same(targets, fresh)


def test_the_frame_rates_are_the_codecs() -> None:
    assert FRAME_SIZE * 12.5 == SAMPLE_RATE
    assert losses.asr.teacher.FRAME_RATE == 50


@pytest.mark.parametrize(
    ("name", "code"),
    [("de", "de"), ("DE", "de"), ("de-AT", "de"), ("zh_CN", "zh"), ("German", "de"), ("sv-SE", "sv"), ("nb-NO", "no")],
)
def test_languages_are_known_by_the_names_that_corpora_give_them(name: str, code: str) -> None:
    assert whisper_language(name) == code
    assert whisper_language(f"x{name}") is None


def test_each_clip_has_the_targets_of_its_own_language(quick: Teacher, crops: torch.Tensor) -> None:
    german = Teacher(quick.model, language="de", context_seconds=WINDOW)
    mixed = quick.targets(crops, languages=quick.numbered_languages(["", "de-DE"]))
    for i, alone in enumerate((quick.targets(crops[:1]), german.targets(crops[1:]))):
        tokens = int(alone.mask.sum())
        assert tokens == int(mixed.mask[i].sum())
        assert torch.allclose(mixed.states[i, :tokens], alone.states[0, :tokens], atol=1e-3)


def test_a_clip_in_a_language_that_whisper_does_not_know_has_no_targets(quick: Teacher, crops: torch.Tensor) -> None:
    teacher = Teacher(quick.model, context_seconds=WINDOW)
    with pytest.warns(UserWarning, match="does not know the language 'eo': its clips train without ASR") as warned:
        languages = teacher.numbered_languages(["eo", "en", "eo", ""])
    assert len(warned) == 1
    assert torch.equal(languages[:2], languages[2:])
    targets = teacher.targets(crops, languages=languages[:2])
    assert targets.has_speech.tolist() == [False, True]


def test_the_cache_keeps_a_clips_transcripts_of_two_languages_apart(
    cached: Teacher, crops: torch.Tensor, tmp_path: Path
) -> None:
    for names in (["en"], ["de"], [""], ["German"]):
        cached.targets(crops[:1], languages=cached.numbered_languages(names))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
