"""Adam with a state from another machine, and the rate it learns at."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.config import Optimizer
from training.optimization import adam, learning_rate, load_optimizer

CPU = torch.device("cpu")


def test_a_state_that_was_saved_on_a_gpu_goes_on_without_one() -> None:
    torch.manual_seed(0)
    here, there = nn.Linear(3, 2), nn.Linear(3, 2)
    there.load_state_dict(here.state_dict())
    optimizers = [adam(network.parameters(), 0.1, (0.5, 0.9), CPU) for network in (here, there)]

    def step(network: nn.Module, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    step(here, optimizers[0])
    there.load_state_dict(here.state_dict())
    saved = copy.deepcopy(optimizers[0].state_dict())
    for group in saved["param_groups"]:  # what a GPU's says
        group |= {"fused": True, "capturable": True, "lr": torch.tensor(0.1)}
    load_optimizer(optimizers[1], saved)
    assert all(not group["capturable"] and not group["fused"] for group in optimizers[1].param_groups)
    for group in optimizers[1].param_groups:
        group["lr"] = 0.1  # each step sets it
    for network, optimizer in zip((here, there), optimizers, strict=True):
        step(network, optimizer)
    assert torch.equal(here.weight, there.weight)


def test_the_rate_warms_up_and_falls_by_half_a_cosine() -> None:
    options = Optimizer(lr=1.0, final_lr=0.2, warmup_steps=4)
    assert [learning_rate(step, 104, options) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(54, 104, options) == pytest.approx(0.6)
    assert learning_rate(103, 104, options) == pytest.approx(0.2, abs=1e-3)
