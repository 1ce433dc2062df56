"""A run on two hosts with a slow cable between them: the cable is pulled, a host is killed, one is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train_encoder
from tests.network_hosts import CABLE, Host, two_hosts
from tests.one_step import ALONE
from tests.rank_processes import start, statuses
from tests.waiting import LIMIT, until
from training.config import ConfigError, load_config
from training.distributed import Ranks
from training.same_run import check_same_settings

STEPS = 6
LOST = "error: another rank died or stopped answering, so this one ends too"
SOON = 60  # seconds within which a host ends when it has lost the other


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as pair:
        yield pair


@pytest.fixture
def arguments(settings: Path) -> list[str]:
    # a schedule that does not depend on the number of steps, and a checkpoint after each
    return ["--config", str(settings), f"steps={STEPS}", "save_every=1", "optimizer.warmup_steps=0"]


class Meeting:
    """Both ranks wait before a step until the test lets them go on."""

    def __init__(self, folder: Path, step: int):
        self.folder, self.ended = folder, folder / "ended"
        folder.mkdir()
        self.code = f"""
import pathlib, socket, time, train_encoder
step = train_encoder.Trainer.step
def meet(self, waveform, number, *others):
    if number == {step}:
        pathlib.Path({str(folder)!r}, socket.gethostname()).touch()
        while not pathlib.Path({str(self.ended)!r}).exists():
            time.sleep(0.02)
    return step(self, waveform, number, *others)
train_encoder.Trainer.step = meet
"""

    def wait(self) -> None:
        until(lambda: len(list(self.folder.iterdir())) == 2)

    def end(self) -> None:
        self.ended.touch()


def torchrun(host: Host, endpoint: Host, folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """The documented command for two machines, with one rank on this one."""
    options = ("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint.name}:29400")
    command = [sys.executable, "-m", "torch.distributed.run", *options, "train_encoder.py", *arguments]
    environment = {"OUTPUT_DIR": str(folder / f"output of {host.name}"), "OMP_NUM_THREADS": "1"}
    return host.start(command, folder / f"log of {host.name}", environment)


def weights(folder: Path, step: int = STEPS) -> Tensor:
    state = torch.load(folder / f"checkpoints/step_{step:07}/state.pt", weights_only=True)
    return torch.cat([tensor.flatten() for tensor in state["trained"].values()])


def test_two_hosts_whose_cable_was_pulled_go_on_with_exchanged_parts_and_end_as_two_ranks_on_one(
    hosts: tuple[Host, Host], arguments: list[str], tmp_path: Path
) -> None:
    """Each host has its own OUTPUT_DIR."""
    alpha, beta = hosts
    log, meeting = tmp_path / "log", Meeting(tmp_path / "meeting", step=3)
    own_output = f"import os, socket\nos.environ['OUTPUT_DIR'] = '{tmp_path}/output of ' + socket.gethostname()\n"
    ranks = start(2, arguments, log, own_output + meeting.code, (beta, alpha))
    meeting.wait()
    alpha.pull_cable()
    pulled = time.monotonic()
    meeting.end()
    assert statuses(ranks) == [2, 2], log.read_text()
    assert time.monotonic() - pulled < SOON
    assert log.read_text().count(LOST) == 2

    alpha.plug_in()
    # torchrun numbers hosts by their names, so its rank 0 is on alpha; the checkpoints are on beta
    runs = [torchrun(host, alpha, tmp_path, arguments) for host in hosts]
    logs = [tmp_path / f"log of {host.name}" for host in hosts]
    assert [run.wait(LIMIT) for run in runs] == [0, 0], [log.read_text()[-3000:] for log in logs]
    assert not (tmp_path / f"output of {alpha.name}").exists()

    assert statuses(start(2, [*arguments, f"output_dir={tmp_path / 'one host'}"], log)) == [0, 0]
    assert torch.equal(weights(tmp_path / f"output of {beta.name}"), weights(tmp_path / "one host"))


def test_a_host_that_is_killed_or_told_to_stop_ends_the_other_and_one_alone_goes_on(
    hosts: tuple[Host, Host], arguments: list[str], tmp_path: Path
) -> None:
    """Both hosts write into one OUTPUT_DIR."""
    log = tmp_path / "log"
    killed = Meeting(tmp_path / "killed", step=1)
    ranks = start(2, arguments, log, killed.code, hosts)
    killed.wait()
    ranks[0].kill()
    since = time.monotonic()
    killed.end()
    assert statuses(ranks) == [-signal.SIGKILL, 2], log.read_text()
    assert time.monotonic() - since < SOON
    assert log.read_text().splitlines()[-1].startswith(LOST)

    stopped = Meeting(tmp_path / "stopped", step=2)
    ranks = start(2, arguments, log, stopped.code, hosts[::-1])
    stopped.wait()
    assert ranks[1].pid
    os.kill(ranks[1].pid, signal.SIGTERM)
    stopped.end()
    assert statuses(ranks) == [128 + signal.SIGTERM] * 2, log.read_text()
    assert "stopped by SIGTERM after step 3, which is saved" in log.read_text()

    assert statuses(start(1, [*arguments, "batch_size=4"], log, hosts=hosts[:1])) == [0], log.read_text()
    assert statuses(start(2, [*arguments, f"output_dir={tmp_path / 'whole'}"], log)) == [0, 0]
    before, after, whole = weights(tmp_path / "run", 5), weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert (after - whole).norm() < 0.05 * (whole - before).norm()


def test_the_bytes_that_a_step_sends_to_the_other_host_are_those_that_its_collectives_need(
    hosts: tuple[Host, Host], settings: Path, tmp_path: Path
) -> None:
    """Of two ranks each sends as many bytes as an all-reduce has, and half of what an all-gather has."""
    losses = ["losses.diversity=0.5", "losses.shaping=0.5"]
    quiet = ["steps=13", "log_every=100", "validate_every=100", "save_every=100"]
    count = f"""
import pathlib, train_encoder
step = train_encoder.Trainer.step
def counted(self, waveform, number, *others):
    if number in (2, 12):
        fields = pathlib.Path("/proc/net/dev").read_text().split("{CABLE}:")[1].split()
        (pathlib.Path({str(tmp_path)!r}) / f"sent_{{number}}_{{rank}}").write_text(fields[8])
    return step(self, waveform, number, *others)
train_encoder.Trainer.step = counted
"""
    log = tmp_path / "log"
    assert statuses(start(2, ["--config", str(settings), *losses, *quiet], log, count, hosts)) == [0, 0], (
        log.read_text()
    )
    trainer = train_encoder.Trainer(load_config(settings, losses), ALONE)
    numbers = sum(parameter.numel() for parameter in trainer.trained.parameters())
    numbers += trainer.codec.config.semantic_codebook_size + 2 * 5 * trainer.codec.config.acoustic_dim
    for rank in range(2):
        before, after = (int((tmp_path / f"sent_{step}_{rank}").read_text()) for step in (2, 12))
        assert 1 < (after - before) / 10 / (4 * numbers) < 1.3  # the rest are headers and confirmations


@dataclass(frozen=True)
class FirstOfTwo(Ranks):
    """Rank 0 of two. The other one gathers the same values but for `others`."""

    others: Mapping[str, str] = field(default_factory=dict)

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, {**value, **self.others}]


def first_of_two(**others: str) -> Ranks:
    return FirstOfTwo(0, 2, torch.device("cpu"), others=others)


def test_hosts_that_were_given_other_settings_or_files_are_told_which(settings: Path) -> None:
    config = load_config(settings)
    paths = {"output_dir": "/other", "hf_cache": "/other", "model_dir": "/other", "data.workers": "7"}
    check_same_settings(config, first_of_two(**paths))
    with pytest.raises(ConfigError, match="batch_size is 2 on rank 0 and 4 on rank 1: give every host the same"):
        check_same_settings(config, first_of_two(**paths, batch_size="4"))
    state = train_encoder.Trainer(config, ALONE).state
    state.ranks = first_of_two(**{"data.train": "11 clips"})
    with pytest.raises(ConfigError, match=r"data\.train has 11 clips on rank 1 and 12 clips on rank 0: every host"):
        state.restore(None, clips=12)
    state.ranks = first_of_two(model_dir="another codec")
    with pytest.raises(ConfigError, match=r"model_dir has another codec on rank 1 and the codec \w+ on rank 0"):
        state.restore(None, clips=12)
