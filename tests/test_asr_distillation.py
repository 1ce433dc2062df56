"""The ASR distillation loss on semantic embeddings, and the alignment of tokens and frames."""

from __future__ import annotations

import math

import pytest
import torch
import whisper.timing
from torch.nn import functional as F

from losses.asr.alignment import align, median_filter
from losses.asr.distillation import ASRDistillation, DistillationTargets

CLIPS, TOKENS, FRAMES, SEMANTIC, WIDTH = 3, 5, 11, 8, 12


def _targets(counts: tuple[int, ...] = (5, 2, 4), seed: int = 0) -> DistillationTargets:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(TOKENS) < torch.tensor(counts)[:, None]
    alignment = torch.rand(len(counts), TOKENS, FRAMES, generator=generator)
    alignment = alignment / alignment.sum(dim=-1, keepdim=True) * mask[..., None]
    return DistillationTargets(
        alignment, torch.randn(len(counts), TOKENS, WIDTH, generator=generator) * mask[..., None], mask
    )


def _semantic(seed: int = 1) -> torch.Tensor:
    return torch.randn(CLIPS, SEMANTIC, FRAMES, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def loss() -> ASRDistillation:
    torch.manual_seed(2)
    return ASRDistillation(SEMANTIC, WIDTH)


def test_it_is_the_papers_formula(loss: ASRDistillation) -> None:
    targets, semantic = _targets(), _semantic()
    clips = []
    for clip in range(CLIPS):
        cosines = []
        for token in range(int(targets.mask[clip].sum())):
            projected = [loss.projection(semantic[clip, :, f]) for f in range(FRAMES)]
            spoken = sum(targets.alignment[clip, token, f] * projected[f] for f in range(FRAMES))
            cosines.append(F.cosine_similarity(spoken, targets.states[clip, token], dim=0))
        clips.append(1 - torch.stack(cosines).mean())
    assert torch.allclose(loss.per_clip(targets, semantic), torch.stack(clips), atol=1e-5)
    assert torch.allclose(loss(targets, semantic), torch.stack(clips).mean(), atol=1e-5)


def test_embeddings_equal_to_the_states_have_loss_0_at_any_scale_and_opposite_ones_2() -> None:
    loss = ASRDistillation(WIDTH, WIDTH)
    loss.projection.weight.data, loss.projection.bias.data = torch.eye(WIDTH), torch.zeros(WIDTH)
    targets = _targets((5, 5, 5))
    once = DistillationTargets(
        F.one_hot(2 * torch.arange(TOKENS), FRAMES).float().expand(3, -1, -1), targets.states, targets.mask
    )
    semantic = torch.randn(3, WIDTH, FRAMES)
    semantic[:, :, 0:9:2] = targets.states.transpose(1, 2)
    assert loss(once, semantic).item() == pytest.approx(0, abs=1e-6)
    assert loss(once, 7 * semantic).item() == pytest.approx(0, abs=1e-6)
    assert loss(once, -semantic).item() == pytest.approx(2, abs=1e-6)


def test_padding_is_ignored(loss: ASRDistillation) -> None:
    targets, semantic = _targets(), _semantic()
    filled = DistillationTargets(
        torch.where(targets.mask[..., None], targets.alignment, 9.0),
        torch.where(targets.mask[..., None], targets.states, -3.0),
        targets.mask,
    )
    longer = DistillationTargets(*(torch.cat([part, torch.zeros_like(part[:, :2])], dim=1) for part in targets))
    for other in (filled, longer):
        assert torch.allclose(loss.per_clip(other, semantic), loss.per_clip(targets, semantic))


def test_a_batch_gives_what_its_clips_give_alone(loss: ASRDistillation) -> None:
    targets, semantic = _targets(), _semantic()
    alone = [
        loss(DistillationTargets(*(part[i : i + 1] for part in targets)), semantic[i : i + 1]) for i in range(CLIPS)
    ]
    assert torch.allclose(loss.per_clip(targets, semantic), torch.stack(alone))


def test_a_clip_without_speech_gives_no_term_and_is_counted(loss: ASRDistillation) -> None:
    targets, semantic = _targets((5, 0, 4)), _semantic().requires_grad_()
    assert targets.clips_without_speech == 1
    others = DistillationTargets(*(part[[0, 2]] for part in targets))
    assert torch.allclose(loss(targets, semantic), loss(others, semantic[[0, 2]]))
    (gradient,) = torch.autograd.grad(loss(targets, semantic), semantic)
    assert gradient[1].abs().max() == 0
    assert gradient[[0, 2]].abs().amax(dim=(1, 2)).min() > 0


@pytest.mark.parametrize("tokens", [TOKENS, 0])
def test_a_batch_without_any_speech_has_zero_loss_and_zero_gradients(loss: ASRDistillation, tokens: int) -> None:
    targets, semantic = (
        DistillationTargets(*(part[:, :tokens] for part in _targets((0, 0, 0)))),
        _semantic().requires_grad_(),
    )
    assert targets.clips_without_speech == 3
    value = loss(targets, semantic)
    value.backward()
    assert value == 0
    assert semantic.grad is not None
    assert semantic.grad.abs().max() == 0
    assert all(parameter.grad.abs().max() == 0 for parameter in loss.parameters())  # type: ignore[union-attr]


def test_gradients_reach_the_aligned_frames_and_the_projection(loss: ASRDistillation) -> None:
    targets, semantic = _targets(), _semantic().requires_grad_()
    targets.alignment[:, :, 4:] = 0
    loss(targets, semantic).backward()
    assert semantic.grad is not None
    assert semantic.grad[:, :, :4].abs().amin(dim=(0, 1)).min() > 0
    assert semantic.grad[:, :, 4:].abs().max() == 0
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())  # type: ignore[union-attr]
    assert not any(part.requires_grad for part in targets)


def test_another_number_of_frames_is_refused(loss: ASRDistillation) -> None:
    with pytest.raises(ValueError, match="10 frames of embeddings and 11 of the alignment"):
        loss(_targets(), _semantic()[..., :10])


def _scores(clips: int = 2, tokens: int = 9, frames: int = 50) -> torch.Tensor:
    """Each token attends to its own part of the frames, in order, with noise."""
    centres = (torch.arange(tokens)[:, None] + 0.5) / tokens * frames
    near = 6 * torch.exp(-(((torch.arange(frames) - centres) / 4) ** 2))
    return near + 0.5 * torch.randn(clips, 4, tokens, frames, generator=torch.Generator().manual_seed(0))


def test_alignment_is_whispers_own_without_its_negative_part_and_pooled_over_four_frames() -> None:
    scores = _scores(frames=48)
    positions = torch.ones(2, 9, dtype=torch.bool)
    weights = scores.softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    whispers = whisper.timing.median_filter((weights - mean) / deviation, 7).mean(dim=1)
    pooled = whispers.clamp(min=0).unflatten(-1, (-1, 4)).sum(dim=-1)
    assert torch.allclose(align(scores, positions), pooled / pooled.sum(dim=-1, keepdim=True), atol=1e-5)


def test_rows_of_an_alignment_are_weights_over_the_codecs_frames() -> None:
    for frames in (49, 50, 51, 52):
        aligned = align(_scores(frames=frames), torch.ones(2, 9, dtype=torch.bool))
        assert aligned.shape == (2, 9, math.ceil(frames / 4))
        assert aligned.min() >= 0
        assert torch.allclose(aligned.sum(dim=-1), torch.ones(2, 9))


def test_padded_tokens_change_no_alignment_and_have_none() -> None:
    scores = _scores()
    positions = torch.arange(9) < torch.tensor([9, 6])[:, None]
    together = align(scores, positions)
    assert torch.allclose(together[1:, :6], align(scores[1:, :, :6], positions[1:, :6]), atol=1e-6)
    assert together[1, 6:].abs().max() == 0


@pytest.mark.parametrize("frame", [10, 60, 131])
def test_a_token_attended_at_a_time_is_aligned_with_the_codec_frame_of_that_time(frame: int) -> None:
    scores = torch.zeros(1, 2, 6, 150)
    scores[:, :, 3, frame - 6 : frame + 7] = 8
    aligned = align(scores, torch.ones(1, 6, dtype=torch.bool))[0, 3]
    centre = (aligned * (torch.arange(38) + 0.5) * 0.08).sum()
    assert centre.item() == pytest.approx((frame + 0.5) * 0.02, abs=0.02)


def test_uniform_scores_give_no_alignment() -> None:
    assert align(torch.zeros(1, 2, 6, 40), torch.ones(1, 6, dtype=torch.bool)).abs().max() == 0


def test_too_few_frames_for_the_median_are_refused() -> None:
    with pytest.raises(ValueError, match="3 frames are too few"):
        median_filter(torch.zeros(1, 3))
