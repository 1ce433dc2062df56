"""What a run says of itself: where values stopped being numbers, who owns the gradient, what stands still."""

from __future__ import annotations

import torch
from torch import nn

from training.monitoring import PATIENCE, NonFiniteMonitor, TrainingWarnings, not_finite


def _gradients(**broken: tuple[int, ...]) -> dict[str, torch.Tensor]:
    found = {name: torch.randn(4, 1, 6) for name in ("mel", "speaker")}
    for name, places in broken.items():
        for place in places:
            found[name][place, 0, 3] = torch.nan
    return found


def _monitor(steps: list[dict[str, torch.Tensor]], norms: dict[int, torch.Tensor] | None = None) -> NonFiniteMonitor:
    monitor = NonFiniteMonitor(steps=10)
    for step, gradients in enumerate(steps):
        monitor.note_clips(step, [f"clip_{step}_{i}" for i in range(4)])
        norm = (norms or {}).get(step, torch.ones(()))
        monitor.observe(step, not_finite(gradients | {"gradient_norm/encoder": norm.expand(4, 1)}))
    return monitor


def test_the_first_broken_step_is_told_with_its_loss_and_clip() -> None:
    broken = _monitor([_gradients(), _gradients(speaker=(2,)), _gradients(mel=(0, 1, 2, 3)), _gradients()]).found()
    assert broken is not None
    assert broken == (2, ("speaker",), ("clip_1_2",))
    assert str(broken) == "step 2: speaker not finite, in clip_1_2"


def test_many_broken_clips_are_counted_after_three() -> None:
    broken = _monitor([_gradients(mel=(0, 1, 2, 3))]).found()
    assert str(broken) == "step 1: mel not finite, in clip_0_0, clip_0_1, clip_0_2 and 1 others"


def test_a_run_of_numbers_has_nothing_to_tell() -> None:
    assert _monitor([_gradients()] * 3).found() is None
    assert NonFiniteMonitor(steps=10).found() is None


def test_a_gradient_that_overflows_behind_the_losses_is_told_with_its_network() -> None:
    broken = _monitor([_gradients()] * 3, {1: torch.tensor(torch.inf)}).found()
    assert broken == (2, ("gradient_norm/encoder",), tuple(f"clip_1_{i}" for i in range(4)))
    both = _monitor([_gradients(), _gradients(mel=(1,))], {1: torch.tensor(torch.nan)}).found()
    assert both == (2, ("mel",), ("clip_1_1",)), "the loss is what says more"


def test_infinity_is_no_number_either() -> None:
    gradients = _gradients()
    gradients["mel"][1] = torch.inf
    assert not_finite(gradients)["mel"].tolist() == [False, True, False, False]


def test_a_loss_that_owns_the_gradient_for_long_is_warned_of_once() -> None:
    warnings = TrainingWarnings()
    owned = {"share/mel": 0.05, "share/speaker": 0.95}
    said = [warnings.of_shares(step, owned) for step in range(50, 3 * PATIENCE, 50)]
    assert [len(texts) for texts in said].count(1) == 1
    assert said.index(next(texts for texts in said if texts)) == PATIENCE // 50
    assert any("share/speaker has been above 90%" in text for texts in said for text in texts)


def test_a_share_that_comes_down_in_between_is_not_warned_of() -> None:
    warnings = TrainingWarnings()
    for step in range(50, 3 * PATIENCE, 50):
        share = 0.5 if step % 400 == 0 else 0.95
        assert warnings.of_shares(step, {"share/mel": share, "share/speaker": 1 - share}) == []


def test_the_only_loss_and_what_the_decoder_sends_may_own_the_gradient() -> None:
    warnings = TrainingWarnings()
    metrics = {"share/mel": 1.0, "share_latent/reconstruction": 0.97, "share_latent/commitment": 0.03}
    assert all(warnings.of_shares(step, metrics) == [] for step in range(50, 3 * PATIENCE, 50))


def test_a_network_that_stands_still_in_spite_of_steps_is_warned_of_once() -> None:
    warnings, network = TrainingWarnings(), nn.Linear(3, 2)
    assert warnings.of_standstill("projection", network, 1) == []
    with torch.no_grad():
        network.weight.add_(1e-4)
    assert warnings.of_standstill("projection", network, 2) == []
    assert warnings.of_standstill("projection", network, 2) == [], "it had no step in between"
    assert "the projection has stopped moving" in warnings.of_standstill("projection", network, 3)[0]
    assert warnings.of_standstill("projection", network, 4) == []
