"""A run that is killed, stopped, or loses a rank, and what becomes of it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import train_encoder
from data import DataError
from data.crops import Crops, Item
from experiments.random_speech import audio_bytes
from tests.random_teacher import use_random_teacher
from tests.rank_processes import free_port, start, statuses, torchrun_environment
from tests.waiting import until
from training import distributed
from training.checkpoints import CheckpointError, newest_step
from training.config import load_config
from training.distributed import Ranks
from training.memory import MemoryFullError, explain_full_memory
from training.step_inputs import StepInputs

ROOT = Path(__file__).parent.parent
ALONE = Ranks(0, 1, torch.device("cpu"))

KILLS = 18
STEPS = 6
ARGUMENTS = [
    *(f"steps={STEPS}", "save_every=1", "keep=1", "validate_every=3", "data.crop_seconds=0.15"),
    *("data.validation_seconds=0.15", "losses.feature_matching=1", "discriminator.channels=1"),
]


def state_of(folder: Path, step: int = STEPS) -> dict[str, Any]:
    return torch.load(folder / f"checkpoints/step_{step:07}/state.pt", weights_only=True)


def mel_lines(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines for key in ("mel", "validation/mel") if key in line]


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """The names of everything that is not the same to the bit in two states, but for where they were written."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [d for key in one if key != "config" for d in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differing(a, b, f"{name}.{i}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def test_killed_at_random_moments_and_started_again_a_run_of_two_ranks_ends_with_the_same_bits(
    settings: Path, tmp_path: Path
) -> None:
    def begin(folder: Path, change: str = "") -> list[BaseProcess]:
        return start(2, ["--config", str(settings), f"output_dir={folder}", *ARGUMENTS], tmp_path / "log", change)

    def finish(folder: Path, change: str = "") -> None:
        assert statuses(begin(folder, change)) == [0, 0], last_words()

    def last_words() -> str:
        return (tmp_path / "log").read_text()[-4000:]

    whole, again, told = tmp_path / "whole", tmp_path / "again", tmp_path / "told"
    finish(whole)
    finish(again, f"import pathlib, tests.kills\ntests.kills.count_calls(pathlib.Path({str(tmp_path)!r}) / str(rank))")
    counted = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert not differing(state_of(whole), state_of(again))

    draws = random.Random(0)
    kills = {"one": 0, "all": 0, "terminated": 0}
    runs = [tmp_path / "run0"]
    while sum(kills.values()) < KILLS:
        kind = min(kills, key=kills.__getitem__)  # in turn: a run that is nearly done may end before its moment
        number = signal.SIGTERM if kind == "terminated" else signal.SIGKILL
        chosen = draws.randrange(2)
        call = int(draws.uniform(0.02, 0.98) * counted[chosen])
        told.unlink(missing_ok=True)
        processes = begin(
            runs[-1],
            f"import pathlib, tests.kills\n"
            f"if rank == {chosen}: tests.kills.signal_at({call}, {int(number)}, pathlib.Path({str(told)!r}))",
        )
        if kind != "one":
            until(lambda: told.exists() or processes[chosen].exitcode is not None)  # noqa: B023 (called here)
        if kind != "one" and told.exists():
            os.kill(processes[1 - chosen].pid, number)
        ended = statuses(processes)
        assert None not in ended, f"after {kind}, a rank goes on without the other: {ended}\n{last_words()}"
        if not told.exists():
            assert ended == [0, 0], last_words()
            runs.append(tmp_path / f"run{len(runs)}")
        kills[kind] += ended != [0, 0]
    finish(runs[-1])
    assert set(kills.values()) == {KILLS // 3}
    assert "error: another rank died or stopped answering, so this one ends too" in (tmp_path / "log").read_text()
    for folder in runs:
        assert differing(state_of(whole), state_of(folder)) == []
        assert differing(*(load_file(run / "encoder.safetensors") for run in (whole, folder))) == []
        assert mel_lines(folder) == mel_lines(whole)
        left = {path.name for path in (folder / "checkpoints").iterdir()}
        assert left == {path.name for path in (whole / "checkpoints").iterdir()}


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_before_it_joins_ends_the_other_with_the_reason(
    settings: Path, tmp_path: Path, dead: int
) -> None:
    change = f"""
import datetime, os
import training.distributed
training.distributed.START_LIMIT = datetime.timedelta(seconds=2)
if rank == {dead}:
    os._exit(9)
"""
    assert distributed.START_LIMIT.total_seconds() <= 60
    expected = [9, 2] if dead == 0 else [2, 9]
    assert statuses(start(2, ["--config", str(settings)], tmp_path / "log", change)) == expected
    log = (tmp_path / "log").read_text()
    assert log.splitlines()[-1].startswith("error: another rank died or stopped answering"), log
    assert "Traceback" not in log


@pytest.mark.parametrize("connected", [0, 1, 2])
def test_a_rank_that_dies_while_groups_connect_ends_the_other(settings: Path, tmp_path: Path, connected: int) -> None:
    change = f"""
import datetime, os
import torch.distributed as dist
import training.distributed
training.distributed.START_LIMIT = datetime.timedelta(seconds=5)
new_group, made = dist.new_group, []
def connect(*options, **more):
    if rank == 1 and len(made) == {connected}:
        os._exit(9)
    made.append(new_group(*options, **more))
    return made[-1]
dist.new_group = connect
"""
    assert statuses(start(2, ["--config", str(settings)], tmp_path / "log", change)) == [2, 9]
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("error: another rank died or stopped answering")


def test_ranks_that_have_met_may_take_longer_than_they_had_to_meet(settings: Path, tmp_path: Path) -> None:
    change = """
import datetime, time
import train_encoder, training.distributed
training.distributed.START_LIMIT = datetime.timedelta(seconds=5)
step = train_encoder.Trainer.step
def slow(self, waveform, number, *pairs):
    time.sleep(8 if number == rank else 0)
    return step(self, waveform, number, *pairs)
train_encoder.Trainer.step = slow
"""
    assert statuses(start(2, ["--config", str(settings), "steps=2"], tmp_path / "log", change)) == [0, 0]


def test_a_rank_that_waits_for_its_gpu_ends_when_another_has_died(settings: Path, tmp_path: Path) -> None:
    change = """
import os, time
import train_encoder
def step(self, waveform, number, *pairs):
    if rank == 1:
        os._exit(9)
    time.sleep(10000)  # as in a collective of GPUs, of which one is gone
train_encoder.Trainer.step = step
"""
    assert statuses(start(2, ["--config", str(settings)], tmp_path / "log", change)) == [2, 9]
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("error: another rank died or stopped answering")


def test_a_first_rank_that_dies_in_a_restart_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    store.set("prefix", "of the run before")
    monkeypatch.setattr(distributed, "START_LIMIT", timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError, match="has not answered since the restart"):
        distributed._fresh_store(store, 1, 2)


def test_a_connection_that_closes_while_ranks_meet_is_a_rank_that_died(settings: Path, tmp_path: Path) -> None:
    change = """
import os
import training.distributed
if rank == 0:
    training.distributed._fresh_store = lambda *_: os._exit(9)  # it holds the store that the other waits for
"""
    assert statuses(start(2, ["--config", str(settings)], tmp_path / "log", change)) == [9, 2]
    log = (tmp_path / "log").read_text()
    assert log.splitlines()[-1].startswith("error: another rank died or stopped answering"), log


def test_a_loss_that_breaks_on_one_rank_is_named_with_that_ranks_clip(settings: Path, tmp_path: Path) -> None:
    broken = """
import train_encoder
gradients = train_encoder.gradients
def with_nan(values, at):
    found = gradients(values, at)
    if rank == 1 and "stft" in found:
        found["stft"][1] = float("nan")
    return found
train_encoder.gradients = with_nan
"""
    assert statuses(start(2, ["--config", str(settings)], tmp_path / "log", broken)) == [2, 2]
    assert re.search(r"error: step 1: stft not finite, in [^,]+\.wav; nothing", (tmp_path / "log").read_text())


@pytest.mark.parametrize(("as_many", "limit"), [("batch_size=4", 0.05), ("accumulate=2", 0.2)])
def test_a_run_goes_on_with_another_number_of_ranks(settings: Path, tmp_path: Path, as_many: str, limit: float) -> None:
    """The same crops and draws in other hands: what differs is the order of sums, and in parts the norms' means."""
    constant = ["optimizer.warmup_steps=0", "optimizer.final_lr=0.0003", "save_every=2", "validate_every=2"]
    changed, whole = (["--config", str(settings), f"output_dir={tmp_path / name}", *constant] for name in "ab")
    assert statuses(start(2, [*changed, "steps=2"], tmp_path / "log")) == [0, 0]
    assert statuses(start(1, [*changed, "steps=4", as_many], tmp_path / "log")) == [0]
    assert statuses(start(2, [*whole, "steps=4"], tmp_path / "log")) == [0, 0]
    states = [state_of(tmp_path / name, step) for name, step in (("a", 2), ("a", 4), ("b", 4))]
    assert [state["clips_seen"] for state in states] == [8, 16, 16]
    before, after, other = (torch.cat([t.flatten() for t in state["trained"].values()]) for state in states)
    assert (after - other).norm() < limit * (other - before).norm()


def test_torchrun_restarts_a_run_that_lost_a_rank_and_it_ends_as_if_nothing_had_been(
    settings: Path, tmp_path: Path
) -> None:
    script = tmp_path / "dies_once.py"
    script.write_text(f"""
import atexit, os, pathlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch.distributed, train_encoder
torch.distributed.destroy_process_group = lambda *group: os._exit(9)  # on a GPU it could wait for ever
atexit.register(os._exit, 9)  # the interpreter's shutdown would destroy the group, too
step = train_encoder.Trainer.step
marker = pathlib.Path({str(tmp_path / "died")!r})
def die(self, waveform, number, *pairs):
    if number == 3 and self.ranks.rank == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, waveform, number, *pairs)
train_encoder.Trainer.step = die
train_encoder.exit_process(train_encoder.main())
""")
    arguments = ["--config", str(settings), *ARGUMENTS]
    torchrun = [*("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"), str(script)]
    command = [sys.executable, *torchrun, *arguments, f"output_dir={tmp_path / 'restarted'}"]
    # as many threads as the ranks that `start` makes: bits depend on it
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "died").exists()
    assert statuses(start(2, [*arguments, f"output_dir={tmp_path / 'whole'}"], tmp_path / "log")) == [0, 0]
    assert differing(state_of(tmp_path / "whole"), state_of(tmp_path / "restarted")) == []


def test_an_exception_that_nobody_catches_ends_a_rank_with_a_traceback_and_without_a_shutdown() -> None:
    script = """
import atexit, os
from training.distributed import start_ranks
atexit.register(os._exit, 9)
with start_ranks():
    raise KeyError("a bug")
"""
    environment = os.environ | torchrun_environment(0, 1, "127.0.0.1", free_port())
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.endswith("KeyError: 'a bug'\n")


def test_every_program_that_starts_ranks_ends_without_the_interpreters_shutdown() -> None:
    files = [file for part in (".", "experiments", "evaluation", "examples") for file in (ROOT / part).glob("*.py")]
    programs = [file for file in files if "start_ranks(" in (code := file.read_text("utf-8")) and "__main__" in code]
    assert len(programs) >= 3
    assert [file for file in programs if not file.read_text("utf-8").endswith("    exit_process(main())\n")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_saves_and_gives_its_status(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    step = train_encoder.Trainer.step

    def asked_to_stop(
        self: train_encoder.Trainer, waveform: torch.Tensor, at: int, *others: Any
    ) -> dict[str, torch.Tensor]:
        if at == 2:
            os.kill(os.getpid(), number)
        return step(self, waveform, at, *others)

    monkeypatch.setattr(train_encoder.Trainer, "step", asked_to_stop)
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), "save_every=100"])
    # a shell that starts the tests in the background ignores SIGINT
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    of_pytest = signal.signal(number, handler)
    try:
        assert train_encoder.main() == 128 + number
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, of_pytest)
    assert f"stopped by {number.name} after step 3, which is saved: repeat the command" in capsys.readouterr().err
    assert state_of(Path(load_config(settings).output_dir), 3)["step"] == 3


def test_a_loader_worker_that_dies_is_named(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = Crops.__getitem__

    def killed(self: Crops, key: tuple[int, int]) -> Item:
        if key[0] == 1:  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, key)

    monkeypatch.setattr(Crops, "__getitem__", killed)
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), "steps=20", "data.workers=2"])
    assert train_encoder.main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    # which of the three comes first depends on what the worker was doing when it died
    said = r"error: (DataLoader worker \(pid.*(killed|exited)|a loader worker died).*set data\.workers lower than 2"
    assert re.match(said, error), error


def test_an_error_of_the_code_in_a_worker_is_not_taken_for_its_death(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: Crops, key: tuple[int, int]) -> Item:
        raise RuntimeError("shapes that do not fit")

    monkeypatch.setattr(Crops, "__getitem__", faulty)
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), "data.workers=1"])
    with pytest.raises(RuntimeError, match="shapes that do not fit"):
        train_encoder.main()


def test_data_that_ends_a_worker_is_one_sentence(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short/a.wav").write_bytes(audio_bytes(0.1))
    arguments = ["--config", str(settings), f"data.train={tmp_path / 'short'}", "data.workers=1"]
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", *arguments])
    assert train_encoder.main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no usable clip among 50 tried; the last one: ")


def test_checkpoints_that_a_killed_run_was_about_to_delete_are_deleted_by_the_next(settings: Path) -> None:
    config = load_config(settings, ["steps=2"])
    train_encoder.train(config, ALONE)
    folder = Path(config.output_dir) / "checkpoints"
    for name in ("step_0000001", "step_0000000"):
        shutil.copytree(folder / "step_0000002", folder / name)
    (folder / "step_0000000/state.pt").unlink()
    train_encoder.train(load_config(settings, ["steps=2", "keep=1"]), ALONE)
    assert [path.name for path in folder.iterdir()] == ["step_0000002"]


def test_a_copy_of_a_checkpoint_that_somebody_made_is_no_checkpoint_and_stays(settings: Path) -> None:
    train_encoder.train(load_config(settings, ["steps=1"]), ALONE)
    folder = Path(load_config(settings).output_dir) / "checkpoints"
    copies = ["step_0000001_backup", "step_0000001 (copy)", "step_best", "step_", "step_9", "step_x"]
    for name in copies:
        shutil.copytree(folder / "step_0000001", folder / name)
    (folder / "step_notes.txt").write_text("the first was good")
    (folder / "step_0000009").symlink_to("step_best")
    train_encoder.train(load_config(settings, ["steps=2", "keep=1"]), ALONE)
    left = {*copies, "step_notes.txt", "step_0000009", "step_0000002"}
    assert left <= {path.name for path in folder.iterdir()}
    assert state_of(folder.parent, 2)["step"] == 2
    (folder / "step_0000002").rename(folder / "step_10000000")  # after seven digits come eight
    shutil.copytree(folder / "step_best", folder / "step_9999999")
    assert newest_step(folder) == 10_000_000


@pytest.mark.parametrize("damage", ["cut short", "one bit"])
def test_a_damaged_checkpoint_is_named_with_the_way_on(settings: Path, damage: str) -> None:
    config = load_config(settings, ["steps=2"])
    train_encoder.train(config, ALONE)
    state = Path(config.output_dir) / "checkpoints/step_0000002/state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content[:5000] if damage == "cut short" else content)
    with pytest.raises(CheckpointError, match=r"step_0000002 cannot be read .* delete this folder"):
        train_encoder.train(config, ALONE)


def test_full_memory_is_answered_with_settings_that_were_tried(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the crops at a time stands in for the memory; the trials are real steps."""
    backward = train_encoder.Trainer.backward

    def limited(self: train_encoder.Trainer, inputs: StepInputs, *rest: Any) -> Any:
        if len(inputs.waveform) > 2 * self.config.accumulate:
            raise torch.OutOfMemoryError
        return backward(self, inputs, *rest)

    monkeypatch.setattr(train_encoder.Trainer, "backward", limited)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10**9, 80 * 10**9))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 78 * 10**9)
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), "batch_size=8", "steps=3"])
    assert train_encoder.main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        r"78\.0 of 80\.0 GB.*at batch_size=8 .*: batch_size=2 accumulate=4 fits \(tried\), 8 crops", error
    ), error
    found = ["--config", str(settings), "batch_size=2", "accumulate=4", "steps=3"]
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", *found])
    assert train_encoder.main() == 0


def test_a_trial_makes_its_steps_with_every_loss(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    tried = []
    monkeypatch.setattr(train_encoder.Trainer, "step", lambda self, _, step, pairs: tried.append(self.losses_of(step)))
    late = ("losses.feature_matching=1", "discriminator.channels=1", "discriminator.start_step=10")
    config = load_config(settings, [*late, "losses.asr=1", "losses.asr_every=4"])
    train_encoder.try_steps(config, ALONE)
    assert tried == [{"asr", "feature_matching"}] * 2


def test_full_memory_of_one_of_several_ranks_names_what_takes_less(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10**9, 80 * 10**9))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 78 * 10**9)
    config = load_config(settings, ["batch_size=32", "data.crop_seconds=4"])
    message = (
        r"set activation_checkpointing=true or batch_size=16 accumulate=2 or data\.crop_seconds=2, which need less"
    )
    two = Ranks(0, 2, torch.device("cpu"))
    with pytest.raises(MemoryFullError, match=message), explain_full_memory(config, two, lambda other: None):
        raise torch.OutOfMemoryError


def fetch_in_a_worker(size: int) -> None:
    list(DataLoader(range(2), num_workers=1, collate_fn=lambda items: bytes(size)))


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (
            lambda: torch.empty(2**47),
            MemoryFullError,
            r"can't allocate .* at batch_size=4 .*: set .*batch_size=2 a",
        ),
        (lambda: np.empty(2**47), MemoryFullError, r"the machine's memory is full \(Unable to allocate 1\.00 PiB"),
        (lambda: fetch_in_a_worker(2**60), DataError, r"full in a loader worker\. .*: set data\.workers lower than 0"),
    ],
)
def test_full_memory_of_the_machine_names_what_takes_less(
    settings: Path, ask: Callable[[], object], kind: type[Exception], message: str
) -> None:
    config = load_config(settings, ["batch_size=4"])
    with pytest.raises(kind, match=message), explain_full_memory(config, ALONE, lambda other: None):
        ask()


def test_an_error_that_is_not_about_memory_stays_what_it_is(settings: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), explain_full_memory(load_config(settings), ALONE, print):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("change", [("accumulate=2", "batch_size=2"), ("activation_checkpointing=true",)])
def test_a_step_in_parts_or_recomputed_is_the_step_of_the_whole(settings: Path, change: tuple[str, ...]) -> None:
    """Balanced with the norms of each part instead of the whole's, accumulated gradients come near, not to the bit."""
    waveform = 0.1 * torch.randn(4, 1, 3840, generator=torch.Generator().manual_seed(0))
    found = []
    for extra in ((), change):
        config = load_config(
            settings, ["batch_size=4", "losses.feature_matching=1", "discriminator.channels=2", *extra]
        )
        training = train_encoder.Trainer(config, ALONE)
        metrics = training.step(waveform, 0)
        assert training.state.clips_seen == 4
        gradient = torch.cat([p.grad.flatten() for p in training.trained.parameters() if p.grad is not None])
        found.append((gradient, metrics["mel"]))
    (gradient, mel), (other, other_mel) = found
    assert other_mel == pytest.approx(float(mel), rel=1e-5)
    if "activation_checkpointing=true" in change:
        assert torch.equal(gradient, other)
    else:
        assert torch.nn.functional.cosine_similarity(gradient, other, dim=0) > 0.98
