"""A step that is recorded and replayed: when it is, and that it computes what it computes kernel by kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from whisper.model import ModelDimensions, Whisper

import train_encoder
from losses.asr.teacher import Teacher, set_alignment_heads
from tests.random_teacher import use_random_teacher
from training.config import load_config
from training.distributed import Ranks
from training.state import build_codec
from training.step_inputs import WARM_UP, Compute, GraphedStep, Results, StepInputs, step_inputs

NONE, MATCHED = frozenset[str](), frozenset({"feature_matching"})
SETTINGS = (
    *("losses.feature_matching=1", "discriminator.channels=2", "losses.diversity=0.5", "losses.shaping=0.5"),
    *("losses.speaker=1", "losses.speaker_model=data/demo/speaker", "batch_size=4", "accumulate=2", "log_every=1"),
)
CROPS = 0.1 * torch.randn(16, 8, 1, 5 * 1920, generator=torch.Generator().manual_seed(0))


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
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return made


def _compute(computed: list[float]) -> Compute:
    def compute(inputs: StepInputs, losses: frozenset[str]) -> Results:
        computed.append(float(inputs.l1_stft_factor))
        return {"loss": torch.tensor(10 * computed[-1])}, {"mel": torch.tensor([False])}

    return compute


def _inputs(number: float) -> StepInputs:
    return StepInputs(*(torch.tensor(number) for _ in StepInputs._fields))


def test_each_set_of_losses_is_computed_some_times_and_then_recorded_once(recordings: list[Recording]) -> None:
    computed: list[float] = []
    graphed = GraphedStep(_compute(computed))
    found = [graphed(_inputs(step), NONE) for step in range(WARM_UP + 3)]
    assert computed == list(range(WARM_UP + 1)), "the call that records computes by its first replay"
    assert [graph.replays for graph in recordings] == [3]
    assert found[-1][0]["loss"] is found[WARM_UP - 1][0]["loss"], "replays leave their results in one place"
    assert float(found[-1][0]["loss"]) == 10 * WARM_UP
    assert graphed.inputs is not None
    assert float(graphed.inputs.l1_stft_factor) == WARM_UP + 2, "each replay gets its own inputs"
    for step in range(WARM_UP + 2):
        graphed(_inputs(step), MATCHED)
    assert [graph.replays for graph in recordings] == [3, 2]


def test_nothing_is_recorded_before_every_set_that_came_is_warm(recordings: list[Recording]) -> None:
    graphed = GraphedStep(_compute([]))
    for losses in (MATCHED, *[NONE] * (WARM_UP + 2)):
        graphed(_inputs(0), losses)
    assert recordings == []
    for losses in (*[MATCHED] * (WARM_UP - 1), NONE):
        graphed(_inputs(0), losses)
    assert graphed.graphs.keys() == {NONE}


def test_a_step_that_cannot_be_recorded_says_so_once_and_runs(
    recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refuse(graph: Recording, **options: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    graphed = GraphedStep(_compute([]), never={"asr": "transcripts come from files"})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(WARM_UP + 3):
            for losses in (MATCHED, frozenset({"asr"})):
                assert float(graphed(_inputs(step), losses)[0]["loss"]) == 10 * step
    assert [str(warning.message) for warning in warned] == [
        "steps with asr are not recorded, which is slower: transcripts come from files",
        "steps with feature_matching are not recorded, which is slower: operation not permitted",
    ]


def test_steps_with_a_teacher_are_recorded_too(
    settings: Path, monkeypatch: pytest.MonkeyPatch, recordings: list[Recording]
) -> None:
    use_random_teacher(monkeypatch)
    config = load_config(settings, ("losses.asr=1", "losses.asr_every=3", "log_every=1"))
    trainer = train_encoder.Trainer(config, Ranks(0, 1, torch.device("cpu")))
    trainer.graphed_compute = GraphedStep(trainer.compute)
    for step in range(3 * (WARM_UP + 2)):
        trainer.step(CROPS[0, :2], step)
    assert len(recordings) == 2
    assert trainer.auxiliary["asr projection"].updates == WARM_UP + 1, "replays of a stand-in compute nothing"


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
    still = ("precision=fp32", "optimizer.lr=1e-5", "discriminator.start_step=6", "losses.asr=1", "losses.asr_every=2")
    torch.manual_seed(0)
    whisper = Whisper(ModelDimensions(80, 1500, 16, 2, 1, 51865, 448, 16, 2, 2)).cuda()
    torch.nn.init.normal_(whisper.decoder.positional_embedding)
    with pytest.warns(UserWarning, match="no alignment heads are known"):
        set_alignment_heads(whisper)
    monkeypatch.setattr(Teacher, "load", lambda *arguments, **options: Teacher(whisper))

    def trained(cuda_graph: bool) -> tuple[list[dict[str, float]], Tensor]:
        config = load_config(settings, (*SETTINGS, *still, f"cuda_graph={str(cuda_graph).lower()}"))
        training = train_encoder.Trainer(config, Ranks(0, 1, torch.device("cuda")))
        before = parameters_to_vector(training.trained.parameters()).detach()
        seen = []
        for step in range(len(CROPS)):
            metrics = training.step(CROPS[step].cuda(), step)
            seen.append({name: float(value) for name, value in metrics.items()})
        assert training.monitor.found() is None
        if cuda_graph:
            assert isinstance(training.graphed_compute, GraphedStep)
            assert len(training.graphed_compute.graphs) == 4
            assert None not in training.graphed_compute.graphs.values()
        return seen, parameters_to_vector(training.trained.parameters()).detach() - before

    (one_by_one, moved), (replayed, replayed_moved) = trained(False), trained(True)
    for left, right in zip(one_by_one, replayed, strict=True):
        assert right == pytest.approx(left, rel=0.02, abs=1e-3)
    assert (replayed_moved - moved).norm() < 0.02 * moved.norm()
