"""The balancer compared with EnCodec's own, and its differences: weights are shares of all configured losses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from losses import Balancer, FixedWeights
from tests.encodec_balancer import encodec_balancer

WEIGHTS = {"large": 3.0, "small": 1.0, "middle": 0.5}
STEPS = 12


def losses_of(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Three losses whose gradients differ by five orders of magnitude."""
    return {
        "large": 1e3 * (output - target).square().sum(),
        "small": 1e-2 * (output - target).abs().mean(),
        "middle": (output * target).cos().sum(),
    }


def steps(batch: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and targets [B, 1, T] of a few steps, each louder than the last."""
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        output, target = torch.randn(2, batch, 1, 200, generator=generator)
        yield (1 + step) * output, target


def gradients_of(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    output = output.clone().requires_grad_()
    return {name: torch.autograd.grad(loss, output)[0] for name, loss in losses_of(output, target).items()}


@pytest.mark.parametrize("decay", [0.999, 0.9])
@pytest.mark.parametrize("total_norm", [1.0, 2.5])
def test_the_same_losses_give_the_gradient_of_encodecs_balancer(decay: float, total_norm: float) -> None:
    theirs = encodec_balancer()(WEIGHTS, total_norm=total_norm, ema_decay=decay)
    ours = Balancer(WEIGHTS, total_norm, decay)
    for output, target in steps():
        leaf = output.clone().requires_grad_()
        theirs.backward(losses_of(leaf, target), leaf)
        assert leaf.grad is not None
        torch.testing.assert_close(ours.combine(gradients_of(output, target)), leaf.grad, rtol=1e-5, atol=1e-7)


def test_a_loss_that_runs_every_third_step_does_not_make_the_others_jump() -> None:
    """The other losses' gradients are bit-identical in every step, with and without it."""
    weights = {"always": 1.0, "also": 2.0, "seldom": 5.0}
    with_it, without = Balancer(weights), Balancer(weights)
    alone = Balancer({"seldom": 5.0})
    generator = torch.Generator().manual_seed(0)
    for step in range(9):
        gradients = {name: torch.randn(4, 1, 50, generator=generator) for name in weights}
        seldom = gradients.pop("seldom")
        rest = without.combine(gradients)
        if step % 3:
            assert torch.equal(with_it.combine(gradients), rest)
        else:
            whole = with_it.combine({**gradients, "seldom": seldom})
            torch.testing.assert_close(whole - rest, alone.combine({"seldom": seldom}) * 5 / 8, rtol=1e-4, atol=1e-6)
        norm = rest.flatten(1).norm(dim=1).mean().item()
        assert norm < 3 / 8 * 1.1, "the others took over the share of the absent one"


def test_an_absent_loss_keeps_the_average_of_the_steps_it_ran_in() -> None:
    """Steps without it do not count as steps with norm 0. It returns with the share it had."""
    balancer = Balancer({"always": 1.0, "seldom": 1.0}, decay=0.9)
    gradient = torch.ones(2, 1, 9)
    for step in range(7):
        balancer.combine({"always": gradient} | ({"seldom": 1e3 * gradient} if step % 3 == 0 else {}))
    assert balancer.shares["seldom"].item() == pytest.approx(0.5)
    assert balancer.shares["always"].item() == pytest.approx(0.5)


def test_a_gradient_of_zero_counts_as_an_absent_loss() -> None:
    gradient = torch.randn(2, 1, 8)
    without_asr, with_zeros = (Balancer({"mel": 1.0, "asr": 1.0}) for _ in range(2))
    for _ in range(10):  # without speech at first, the ASR gradient is zero
        balanced = with_zeros.combine({"mel": gradient, "asr": torch.zeros_like(gradient)})
        torch.testing.assert_close(balanced, without_asr.combine({"mel": gradient}))
    both = {"mel": gradient, "asr": gradient.flip(-1)}
    torch.testing.assert_close(with_zeros.combine(both), without_asr.combine(both))
    assert with_zeros.shares["asr"].item() == pytest.approx(0.5)


def test_shares_are_the_actual_parts_of_a_steps_gradient() -> None:
    """If a gradient is ten times its average, its part of that step is ten times larger, and `shares` shows this."""
    balancer = Balancer({"steady": 1.0, "wild": 1.0}, decay=0.99)
    ordinary = torch.ones(1, 1, 9)
    for _ in range(400):
        balancer.combine({"steady": ordinary, "wild": ordinary})
    before = {name: (balancer.sums[name] / balancer.counts[name]).item() for name in balancer.weights}
    assert before["wild"] == pytest.approx(3.0, rel=1e-4)
    balancer.combine({"steady": ordinary, "wild": 10 * ordinary})
    now = (balancer.sums["wild"] / balancer.counts["wild"]).item()
    flowed = {"steady": 1.0, "wild": 10 * 3.0 / now}
    for name, part in flowed.items():
        assert balancer.shares[name].item() == pytest.approx(part / sum(flowed.values()), rel=1e-4)
    assert sum(share.item() for share in balancer.shares.values()) == pytest.approx(1.0)


def rank_balances(rank: int, folder: str) -> None:
    """One of two processes: balances its half of the batch and saves the results."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    balancer = Balancer(WEIGHTS, decay=0.9)
    balanced = []
    for output, target in steps():
        gradients = gradients_of(output, target)
        mine: Mapping[str, Tensor] = {name: gradient.chunk(2)[rank] for name, gradient in gradients.items()}
        balanced.append(balancer.combine(mine))
    torch.save({"balanced": balanced, "shares": balancer.shares, **balancer.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_balance_as_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(rank_balances, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = Balancer(WEIGHTS, decay=0.9)
    for i, (output, target) in enumerate(steps()):
        both = torch.cat([first["balanced"][i], second["balanced"][i]])
        torch.testing.assert_close(both, whole.combine(gradients_of(output, target)), rtol=1e-5, atol=1e-7)
    for name in WEIGHTS:
        assert torch.equal(first["sums"][name], second["sums"][name])
        assert torch.equal(first["shares"][name], second["shares"][name])
        torch.testing.assert_close(first["shares"][name], whole.shares[name], rtol=1e-5, atol=0)


def test_shares_are_the_weights_whatever_the_scales() -> None:
    balancer = Balancer({"a": 3.0, "b": 1.0})
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gradients = {
            "a": 1e-4 * torch.randn(4, 1, 99, generator=generator),
            "b": 1e5 * torch.randn(4, 1, 99, generator=generator),
        }
        balancer.combine(gradients)
    assert balancer.shares["a"].item() == pytest.approx(0.75, abs=0.05)
    assert balancer.shares["b"].item() == pytest.approx(0.25, abs=0.05)


def test_one_loss_has_the_total_norm_per_item() -> None:
    gradient = torch.randn(5, 1, 100, generator=torch.Generator().manual_seed(0))
    balanced = Balancer({"a": 0.3}, total_norm=2.0).combine({"a": gradient})
    assert balanced.flatten(1).norm(dim=1).mean().item() == pytest.approx(2.0, rel=1e-5)


def test_the_first_steps_average_is_not_biased_toward_zero() -> None:
    gradient = torch.ones(1, 1, 4)
    for decay in (0.0, 0.9, 0.999):
        balancer = Balancer({"a": 1.0}, decay=decay)
        assert torch.allclose(balancer.combine({"a": gradient}), gradient / 2)


def test_the_average_follows_encodecs_formula() -> None:
    """Norms 1 then 3 with decay 0.9: (0.9 · 1 + 3) / (0.9 + 1)."""
    balancer = Balancer({"a": 1.0}, decay=0.9)
    balancer.combine({"a": torch.tensor([[[1.0]]])})
    balanced = balancer.combine({"a": torch.tensor([[[3.0]]])})
    assert balanced.item() == pytest.approx(3 / ((0.9 + 3) / 1.9))


def test_an_absent_loss_does_not_change_the_others() -> None:
    weights = {"a": 1.0, "b": 1.0}
    gradient = torch.randn(2, 1, 10, generator=torch.Generator().manual_seed(0))
    alone = Balancer(weights).combine({"a": gradient})
    both = Balancer(weights).combine({"a": gradient, "b": torch.zeros_like(gradient)})
    assert torch.allclose(alone, both)


def test_a_factor_scales_one_loss_and_not_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = {"a": torch.randn(2, 1, 10, generator=generator), "b": torch.randn(2, 1, 10, generator=generator)}
    parts = {name: Balancer({"a": 1.0, "b": 1.0}).combine({name: gradients[name]}) for name in gradients}
    faded = Balancer({"a": 1.0, "b": 1.0}).combine(gradients, {"b": 0.25})
    assert torch.allclose(faded, parts["a"] + 0.25 * parts["b"])


def test_an_unknown_loss_and_a_weight_of_zero_are_refused() -> None:
    with pytest.raises(KeyError, match="unknown"):
        Balancer({"a": 1.0}).combine({"unknown": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="positive"):
        Balancer({"a": 0.0})


def test_a_restored_balancer_continues_identically() -> None:
    first, second = Balancer({"a": 1.0}), Balancer({"a": 1.0})
    gradients = [torch.full((1, 1, 4), float(i + 1)) for i in range(3)]
    for gradient in gradients[:2]:
        first.combine({"a": gradient})
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    assert torch.equal(first.combine({"a": gradients[2]}), second.combine({"a": gradients[2]}))


def test_fixed_weights_scale_the_losses_without_normalising_their_gradients() -> None:
    """In the balancer's units: the gradient of a mean over B items is multiplied by B."""
    output, target = next(steps())
    gradients = gradients_of(output, target)
    fixed = FixedWeights(WEIGHTS)
    expected = sum(WEIGHTS[name] * gradient * len(output) for name, gradient in gradients.items())
    torch.testing.assert_close(fixed.combine(gradients), expected)
    assert fixed.shares["large"] > 0.9, "the largest gradient should dominate, whatever its weight"
    assert float(sum(fixed.shares.values())) == pytest.approx(1)
