"""A step that is recorded and replayed: when it is, and that it computes what it computes kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import train_encoder
from tests.random_teacher import use_random_teacher
from training.config import load_config
from training.distributed import Ranks
from training.state import build_codec
from training.step_inputs import WARM_UP, GraphedStep, StepInputs, step_inputs

NONE, MATCHED = frozenset[str](), frozenset({"feature_matching"})
# everything that can be recorded: the teacher waits for the device
SETTINGS = (
    *("losses.feature_matching=1", "discriminator.channels=2", "losses.diversity=0.5", "losses.shaping=0.5"),
    *("losses.speaker=1", "losses.speaker_model=data/demo/speaker", "batch_size=4", "accumulate=2", "log_every=1"),
)
CROPS = 0.1 * torch.randn(12, 8, 1, 5 * 1920, generator=torch.Generator().manual_seed(0))


class Recording:
    """Stands in for a CUDA graph where there is no GPU: replaying computes again on the inputs that were kept."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    made: list[Recording] = []

    def new() -> Recording:
        made.append(Recording())
        return made[-1]

    @contextmanager
    def record(graph: Recording, **options: Any) -> Iterator[None]:
        assert graph is made[-1]
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    return made


def test_each_set_of_losses_is_computed_some_times_and_then_recorded_once(recordings: list[Recording]) -> None:
    computed: list[tuple[float, frozenset[str]]] = []

    def compute(inputs: StepInputs, losses: frozenset[str]) -> str:
        computed.append((float(inputs.l1_stft_factor), losses))
        return f"found {len(computed)}"

    graphed = GraphedStep(compute)

    def call(fade: float, losses: frozenset[str]) -> str:
        return graphed(StepInputs(*(torch.tensor(fade) for _ in StepInputs._fields)), losses)

    found = [call(step, NONE) for step in range(WARM_UP + 3)]
    assert len(recordings) == 1
    assert recordings[0].replays == 3, "the call that records computes by its first replay"
    assert len(computed) == WARM_UP + 1
    assert len(set(found[WARM_UP:])) == 1, "what is found lies where the recording left it"
    assert float(graphed.inputs.l1_stft_factor) == WARM_UP + 2, "each replay gets its own inputs"
    for step in range(WARM_UP + 2):
        call(step, MATCHED)
    assert [graph.replays for graph in recordings] == [3, 2]


def test_a_step_with_a_teacher_is_never_recorded(
    settings: Path, monkeypatch: pytest.MonkeyPatch, recordings: list[Recording]
) -> None:
    use_random_teacher(monkeypatch)
    config = load_config(settings, ("losses.asr=1", "losses.asr_every=3", "log_every=1"))
    trainer = train_encoder.Trainer(config, Ranks(0, 1, torch.device("cpu")))
    graphed = GraphedStep(trainer.compute, never={"asr"})
    trainer.graphed_compute = graphed
    for step in range(3 * (WARM_UP + 2)):
        trainer.step(CROPS[0, :2], step)
    assert graphed.captured == NONE
    assert len(recordings) == 1
    assert trainer.auxiliary["asr projection"].updates == WARM_UP + 2


def test_inputs_are_a_function_of_the_seed_and_the_steps_number(settings: Path) -> None:
    config = load_config(settings, SETTINGS)
    ranks = Ranks(0, 1, torch.device("cpu"))
    codec = build_codec(config, config.init, ranks.device)

    def inputs(step: int, seed: int = 0) -> list[Tensor]:
        return list(step_inputs(replace(config, seed=seed), ranks, codec, CROPS[0], step))

    assert all(torch.equal(a, b) for a, b in zip(inputs(3), inputs(3), strict=True))
    assert not torch.equal(inputs(3)[1], inputs(4)[1])
    assert not torch.equal(inputs(3)[1], inputs(3, seed=1)[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: only there a step can be recorded")
def test_replayed_steps_are_the_steps_computed_one_by_one(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # sums in another order are a millionth off; in less than fp32, or after large steps of Adam, that grows beyond any
    # limit
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as start_ranks has it
    still = ("precision=fp32", "optimizer.lr=1e-5", "discriminator.start_step=6")

    def trained(cuda_graph: bool) -> tuple[list[dict[str, float]], Tensor]:
        config = load_config(settings, (*SETTINGS, *still, f"cuda_graph={str(cuda_graph).lower()}"))
        training = train_encoder.Trainer(config, Ranks(0, 1, torch.device("cuda")))
        before = parameters_to_vector(training.trained.parameters()).detach()
        seen = []
        for step in range(12):
            metrics = training.step(CROPS[step].cuda(), step)
            seen.append({name: float(value) for name, value in metrics.items()})
        assert training.monitor.found() is None
        assert isinstance(training.graphed_compute, GraphedStep) == cuda_graph
        return seen, parameters_to_vector(training.trained.parameters()).detach() - before

    (one_by_one, moved), (replayed, replayed_moved) = trained(False), trained(True)
    for left, right in zip(one_by_one, replayed, strict=True):
        assert right == pytest.approx(left, rel=0.02, abs=1e-3)
    assert (replayed_moved - moved).norm() < 0.02 * moved.norm()
