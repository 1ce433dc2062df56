"""The training loop: what a run leaves behind, what it goes on from, what stops it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import train_encoder
from codec import load_release
from codec.checkpoint import codec_fingerprint, with_encoder
from codec.tensors import ENCODER_PREFIXES, expected_encoder
from experiments.random_release import TINY, params_json, random_codec, write_release
from experiments.random_speech import audio_bytes
from tests.random_pairs import random_shards
from tests.random_teacher import use_random_teacher
from tests.rank_processes import start, statuses
from training.checkpoints import RENAMED_STATE, STATE, CheckpointError, checkpoints, load_newest
from training.config import Config, ConfigError, load_config
from training.distributed import Ranks
from training.progress import Progress
from training.state import TrainingState

ALONE = Ranks(0, 1, torch.device("cpu"))


def run(settings: Path, *overrides: str) -> Config:
    config = load_config(settings, overrides)
    train_encoder.train(config, ALONE)
    return config


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def newest(config: Config) -> Path:
    return checkpoints(Path(config.output_dir) / "checkpoints")[-1] / STATE


def test_a_run_leaves_what_others_build_on(
    settings: Path, tiny_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(settings, "init=mirror")  # it is at its best in the middle
    folder = Path(config.output_dir)
    tensors, metadata = read(folder / "encoder.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected_encoder(TINY)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    state = torch.load(newest(config), weights_only=True)
    for name in ("input_proj.conv.parametrizations.weight.original1", "encoder_blocks.0.layers.0.attention.wq.weight"):
        average, live = (state[part][f"encoder.{name}"].bfloat16() for part in ("ema", "trained"))
        assert torch.equal(tensors[f"audio_tokenizer.{name}"], average)
        assert not torch.equal(average, live)
    assert json.loads(metadata["step"]) == 6
    assert json.loads(metadata["averaged_weights"]) is True
    assert json.loads(metadata["audio_seconds"]) == pytest.approx(6 * 2 * 0.4)  # steps, batch, seconds of a crop
    assert metadata["codec_fingerprint"] == codec_fingerprint(load_release(tiny_release))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        f"step_000000{step}"
        for step in (3, 4, 6)  # the best, and the last two
    ]
    assert load_config(folder / "config.yaml") == config
    board = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0}).Reload()  # 0: all of them
    assert [event.step for event in board.Histograms("validation/acoustic_codes")] == [0, 3, 6]
    assert {"clip_0/original", "clip_0/reconstruction"} <= set(board.Tags()["audio"])
    assert {"clip_0/original_mel", "clip_0/reconstruction_mel"} <= set(board.Tags()["images"])
    scalars = {"mel", "share/mel", "gradient_norm/encoder", "learning_rate", "audio_seconds_per_second", "loader_wait"}
    assert scalars | {"sem_util"} <= set(board.Tags()["scalars"])
    summary = capsys.readouterr().out
    assert f"encoder after 6 steps: {folder / 'encoder.safetensors'}" in summary
    assert "validation mel 0." in summary
    assert (
        f"python inject_encoder.py --model-dir {config.model_dir} --encoder {folder / 'encoder.safetensors'}" in summary
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "mel" in line)
    assert last["step"] == 6
    assert last["skipped_clips"] >= 1
    assert "short.wav is shorter than a crop" in (folder / "skipped_clips.txt").read_text()
    shares = [value for name, value in last.items() if name.startswith("share/")]
    assert sum(shares) == pytest.approx(1)
    assert [line["step"] for line in lines if "validation/mel" in line] == [0, 3, 6]


def test_the_next_command_can_be_pasted_whatever_the_folders_are_called(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(settings, [f"model_dir={tmp_path}/my release"])
    Progress(tmp_path / "run #1; it's", 0, 1, 1.0, ALONE).close(config, 0, 0.0)
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    encoder = f"{tmp_path}/run #1; it's/encoder.safetensors"
    script = ["python", "inject_encoder.py"]
    assert shlex.split(command) == [*script, "--model-dir", f"{tmp_path}/my release", "--encoder", encoder]


class KilledError(Exception):
    """Ends a run where a test wants it to."""


def die_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Lets a run end right after the checkpoint of that step."""
    save = TrainingState.save

    def save_then_die(self: TrainingState, at: int) -> None:
        save(self, at)
        if at == step:
            raise KilledError

    patch.setattr(TrainingState, "save", save_then_die)


EVERYTHING = (
    "losses.feature_matching=1",
    "discriminator.channels=2",
    "losses.diversity=0.5",
    "losses.shaping=0.5",
    "losses.l1_stft_decay=0.99",
)


@pytest.mark.parametrize("parts", [(), EVERYTHING], ids=["few", "all"])
def test_a_resumed_run_ends_with_the_same_bits(
    settings: Path, tiny_release: Path, tmp_path: Path, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts:
        use_random_teacher(monkeypatch)
        pairs = f"data.pairs={random_shards(tiny_release, tmp_path / 'pairs')}"
        parts = (*parts, pairs, "losses.inversion=1", "losses.second_pass=1", "losses.pseudo_labels=1")
    whole = run(settings, f"output_dir={tmp_path / 'whole'}", *parts)

    with pytest.MonkeyPatch.context() as patch:
        die_after(2, patch)
        with pytest.raises(KilledError):
            run(settings, *parts)
    resumed = run(settings, *parts)
    steps = [json.loads(line)["step"] for line in (Path(resumed.output_dir) / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1
    one, other = (read(Path(config.output_dir) / "encoder.safetensors")[0] for config in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_seen_up_to_a_checkpoint_is_on_the_disk_with_it(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that goes on from there says nothing of these steps again. TensorBoard's thread is made a slow one."""
    write = RecordWriter.write

    def write_slowly(self: RecordWriter, data: bytes) -> None:
        time.sleep(0.01)
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", write_slowly)
    (tmp_path / "two").mkdir()
    for name, seconds in (("whole", 0.5), ("short", 0.1)):
        (tmp_path / f"two/{name}.wav").write_bytes(audio_bytes(seconds))
    die_after(1, monkeypatch)
    with pytest.raises(KilledError):
        run(settings, f"data.train={tmp_path / 'two'}", "save_every=1", "validate_every=1", "log_every=100")
    folder = Path(load_config(settings).output_dir)
    assert "short.wav is shorter than a crop" in (folder / "skipped_clips.txt").read_text()
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("validation/mel")] == [0, 1]
    assert board.Images("clip_2/reconstruction_mel")[-1].step == 1


@pytest.mark.parametrize("file", ["metrics.jsonl", "skipped_clips.txt"])
def test_damaged_lines_that_a_kill_or_a_power_cut_left_are_dropped(settings: Path, file: str) -> None:
    config = run(settings, "steps=2")
    path = Path(config.output_dir) / file
    before = path.read_text()
    half = "{half a line é".encode()[:-1]
    damaged = [b"\n", b"\0" * 50 + b"\n", b"  \n"]
    if file == "metrics.jsonl":
        damaged += [half + b"\n", b"[1]\n", b'{"mel": 1}\n', b'{"step": "1"}\n', b"[" * 5000 + b"\n", b"null\n"]
    path.write_bytes(b"".join(damaged) + path.read_bytes() + b"".join(damaged) + half)
    run(settings, "steps=3")
    assert path.read_text().startswith(before)
    left = path.read_text()[len(before) :].splitlines()
    assert [json.loads(line)["step"] for line in left] == [3, 3] if file == "metrics.jsonl" else not left


def test_a_run_goes_on_with_its_release_and_its_data_at_other_places(
    settings: Path, tmp_path: Path, tiny_release: Path, speech_folder: Path
) -> None:
    run(settings, "steps=1", "save_every=1")
    shutil.copytree(tiny_release, tmp_path / "release")
    shutil.copytree(speech_folder, tmp_path / "speech")
    (tmp_path / "link").symlink_to(speech_folder)
    at = (f"model_dir={tmp_path}/../{tmp_path.name}/release/", f"data.train={tmp_path}/link", "save_every=1")
    config = run(settings, *at, "steps=2")
    assert torch.load(newest(config), weights_only=True)["step"] == 2
    moved = (*at, f"data.train={tmp_path / 'speech'}", f"data.validation={tmp_path / 'speech'}", "steps=3")
    with pytest.raises(ConfigError, match=r"data\.train \(.*, data\.validation \(.*; if the files .* add moved=true"):
        run(settings, *moved)
    run(settings, *moved, "moved=true")
    run(settings, *moved, "steps=4")  # from here on these are the run's paths
    (tmp_path / "speech/0.wav").unlink()
    with pytest.raises(ConfigError, match=r"data\.train has 12 clips, 13 when the run began: moved=true needs"):
        run(settings, *moved, "moved=true", "steps=5")
    other = write_release(tmp_path / "other", random_codec(TINY, seed=7))
    with pytest.raises(ConfigError, match=r"of a run with another codec than that of model_dir .*other: choose"):
        run(settings, *moved, f"model_dir={other}")


@pytest.mark.parametrize(
    "state",
    [[], "text", {}, {"step": 1}, {"step": "1", "config": "steps: 2"}, {1: 2}, torch.ones(3), b"bytes"],
    ids=str,
)
def test_a_file_of_torch_that_is_no_checkpoint_is_named(settings: Path, state: Any) -> None:
    path = Path(load_config(settings).output_dir) / "checkpoints/step_0000001" / STATE
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"step_0000001 cannot be read \(it .*delete this folder"):
        run(settings)


def test_a_checkpoint_with_the_weights_of_something_else_is_named(settings: Path) -> None:
    config = run(settings, "steps=1", "save_every=1")
    state = torch.load(newest(config), weights_only=True)
    for part, content in (("trained", {}), ("ema", {"a": 1}), ("best", {}), ("optimizer", {1: 2})):
        torch.save(state | {part: content}, newest(config))
        with pytest.raises(CheckpointError, match=r"networks cannot take .*: choose another output_dir"):
            run(settings, "steps=2")


def test_a_run_can_start_from_the_weights_of_another(settings: Path, tmp_path: Path) -> None:
    first = run(settings)
    second = load_config(
        settings, [f"start_from={first.output_dir}", "losses.stft=0", f"output_dir={tmp_path / 'next'}"]
    )
    train_encoder.train(second, ALONE)
    lines = [
        [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
        for config in (first, second)
    ]
    assert lines[1][0]["validation/mel"] == lines[0][-1]["validation/mel"]
    with pytest.raises(ConfigError, match="start_from"):
        run(settings, "start_from=/nowhere", f"output_dir={tmp_path / 'other'}")


def test_an_encoder_started_from_another_keeps_to_its_own_releases_codebook(settings: Path, tmp_path: Path) -> None:
    other = write_release(tmp_path / "other", random_codec(TINY, seed=7))
    first = run(settings, f"model_dir={other}")
    second = load_config(settings, [f"output_dir={tmp_path / 'next'}"])
    training = train_encoder.Trainer(second, ALONE)
    own = training.quantizer.semantic_codebook.embedding.clone()
    training.state.start_from(Path(first.output_dir))
    assert torch.equal(training.quantizer.semantic_codebook.embedding, own)
    expected = torch.load(newest(first), weights_only=True)["ema"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in training.trained.state_dict().items())


def test_an_encoder_cannot_start_from_a_whole_codec(settings: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.json"
    params.write_text(json.dumps(params_json(TINY)))
    codec = run(settings, "train=codec", f"params={params}", f"output_dir={tmp_path / 'codec'}")
    with pytest.raises(
        ConfigError, match=r"start_from is .*codec, but that run trained other networks than train=encoder"
    ):
        run(settings, f"start_from={codec.output_dir}")


def test_a_checkpoint_with_the_old_names_of_its_parts_is_resumed(settings: Path) -> None:
    config = run(settings, "steps=2", "save_every=2")
    path = Path(config.output_dir) / "checkpoints/step_0000002/state.pt"
    state = torch.load(path, weights_only=True)
    old = {new: old for old, new in RENAMED_STATE.items()}
    torch.save({old.get(key, key): value for key, value in state.items()}, path)
    run(settings, "steps=3")
    assert torch.load(path.parents[1] / "step_0000003/state.pt", weights_only=True)["clips_seen"] == 6


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(settings: Path) -> None:
    run(settings, "steps=2")
    with pytest.raises(ConfigError, match=r"losses\.mel \(4\.0 there, 2\.0 now\)"):
        run(settings, "steps=4", "losses.mel=2")


def test_metrics_are_read_from_the_device_only_where_they_are_logged(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, combine_over_ranks = [], train_encoder.combine_over_ranks
    monkeypatch.setattr(
        train_encoder, "combine_over_ranks", lambda *given: read.append(1) or combine_over_ranks(*given)
    )
    run(settings, "steps=6", "log_every=3", "save_every=1", "validate_every=2")
    assert len(read) == 2


def test_a_gradient_that_overflows_in_the_encoder_is_not_saved(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = train_encoder.Trainer.compute

    def overflow(self: train_encoder.Trainer, inputs: Any, losses: frozenset[str]) -> Any:
        parameter = next(self.trained.parameters())
        hook = parameter.register_hook(lambda gradient: gradient * torch.inf if self.state.clips_seen else gradient)
        found = compute(self, inputs, losses)
        hook.remove()
        return found

    monkeypatch.setattr(train_encoder.Trainer, "compute", overflow)
    with pytest.raises(train_encoder.TrainingError, match=r"step 2: gradient_norm/encoder not finite, in .*\.wav"):
        run(settings, "save_every=1", "log_every=100")
    folder = Path(load_config(settings).output_dir)
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step_0000001"]


def test_a_resumed_run_does_not_compute_its_start_again(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings, "steps=2")
    monkeypatch.setattr("codec.codec.start_as_inverse", None)
    run(settings, "steps=4")
    with pytest.raises(TypeError):
        run(settings, f"output_dir={settings.parent / 'anew'}")


@pytest.mark.parametrize("off", ["mel", "l1", "stft", "commitment"])
def test_any_one_loss_can_be_switched_off(settings: Path, off: str) -> None:
    config = run(settings, f"losses.{off}=0", "steps=2")
    lines = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "sem_util" in line)
    assert off not in logged
    assert {"mel", "l1", "stft", "commitment"} - {off} <= set(logged)


def test_training_brings_the_reconstruction_nearer(settings: Path) -> None:
    """With few crops a step, a high rate is chaotic: what 40 steps reached at 0.003 depended on the CPU's rounding."""
    quick = ("init=mirror", "optimizer.lr=0.001", "losses.balancer_decay=0.9", "validate_every=80", "save_every=80")
    config = run(settings, "steps=80", *quick)
    lines = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    mel = [line["validation/mel"] for line in lines if "validation/mel" in line]
    assert mel[-1] < 0.9 * mel[0]


def test_a_whole_codec_is_trained_into_a_release_without_encoder(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(params_json(TINY)))
    config = run(settings, "train=codec", f"params={tmp_path / 'params.json'}")
    codec = load_release(Path(config.output_dir) / "release")
    assert not codec.has_encoder
    assert codec.quantizer.semantic_codebook.embedding.unique(dim=0).shape[0] > 10
    tensors, metadata = read(Path(config.output_dir) / "encoder.safetensors")
    assert all(name.startswith(ENCODER_PREFIXES) for name in tensors)
    assert metadata["codec_fingerprint"] == codec_fingerprint(codec)
    best = load_release(Path(config.output_dir) / "release_best")
    assert with_encoder(best, Path(config.output_dir) / "encoder_best.safetensors").has_encoder


def test_two_ranks_train_as_one_with_the_whole_batch(settings: Path, tmp_path: Path) -> None:
    parts = ("losses.feature_matching=1", "discriminator.channels=2")
    one = run(settings, f"output_dir={tmp_path / 'one'}", "batch_size=4", *parts)
    folder = tmp_path / "two"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_encoder.py"]
    arguments = ["--config", str(settings), f"output_dir={folder}", *parts]
    result = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    states = [Path(where) / "checkpoints/step_0000006/state.pt" for where in (one.output_dir, folder)]
    found = [torch.load(path, weights_only=True) for path in states]
    begun = train_encoder.Trainer(one, ALONE)
    networks = [state["auxiliary"]["discriminator"]["network"] for state in found]
    cases = (
        (begun.trained.state_dict(), *(state["trained"] for state in found)),
        (begun.auxiliary["discriminator"].network.state_dict(), *networks),
    )
    for before, single, double in cases:
        moved, off = (
            torch.cat([(single[name] - other[name]).flatten() for name in single]) for other in (before, double)
        )
        # The sums have another order, and Adam enlarges differences in the smallest gradients: encoders are off by 0.1
        # to 2.2 % of their way after six steps. Ranks that do not share their gradients would be off by all of it.
        assert off.norm() < 0.05 * moved.norm()


def test_eight_ranks_have_the_gradients_of_one_with_the_whole_batch_and_name_one_that_strays(
    settings: Path, tiny_release: Path, tmp_path: Path
) -> None:
    """Gradients before Adam, which moves a weight as far for a gradient of rounding errors as for any other."""
    parts = [
        "losses.feature_matching=1",
        "discriminator.channels=2",
        "losses.diversity=0.3",
        "losses.shaping=0.3",
        *("losses.inversion=5", "losses.second_pass=3", "losses.pseudo_labels=2"),
        f"data.pairs={random_shards(tiny_release, tmp_path / 'pairs')}",
        *("steps=2", "save_every=1", "data.crop_seconds=0.2"),
    ]
    stray = """
import pytest, train_encoder
from tests.random_teacher import use_random_teacher
use_random_teacher(pytest.MonkeyPatch())
step = train_encoder.Trainer.step
def strayed(self, waveform, number, *pairs):
    if rank == 5 and number == 1:
        next(self.trained.parameters()).data.view(-1)[0] += 1e-6
    return step(self, waveform, number, *pairs)
train_encoder.Trainer.step = strayed
"""
    log, gradients = tmp_path / "log", []
    for ranks, batch_size, status in ((1, 16, 0), (8, 2, 2)):
        folder = tmp_path / f"{ranks}"
        command = ["--config", str(settings), f"output_dir={folder}", f"batch_size={batch_size}", *parts]
        assert statuses(start(ranks, command, log, stray)) == [status] * ranks, log.read_text()
        state = torch.load(folder / "checkpoints/step_0000001/state.pt", weights_only=True)
        optimizers = [state["optimizer"], *(each["optimizer"] for each in state["auxiliary"].values())]
        gradients.append([torch.cat([p["exp_avg"].flatten() for p in o["state"].values()]) for o in optimizers])
    for one, eight in zip(*gradients, strict=True):
        assert (one - eight).norm() < 2e-3 * one.norm()
    assert re.search(r"error: (ema|trained)\.encoder\.\S+ differs between rank 0 and rank 5", log.read_text())
    assert [path.name for path in (tmp_path / "8/checkpoints").iterdir()] == ["step_0000001"]


def test_values_that_are_not_finite_stop_the_run_with_their_name(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(settings)
    training_step = train_encoder.Trainer.step

    def broken(self: train_encoder.Trainer, waveform: torch.Tensor, step: int, *others: Any) -> dict[str, torch.Tensor]:
        return training_step(self, waveform * float("nan") if step == 3 else waveform, step, *others)

    monkeypatch.setattr(train_encoder.Trainer, "step", broken)
    with pytest.raises(train_encoder.TrainingError, match=r"step 4: .*mel.* not finite"):
        train_encoder.train(config, ALONE)
    state = torch.load(Path(config.output_dir) / "checkpoints/step_0000002/state.pt", weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["trained"].values())


def test_a_full_disk_is_an_error_and_the_checkpoint_before_is_kept(settings: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: enough for metrics and sound, not for a state."""
    config = run(settings, "steps=2")
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import train_encoder
sys.argv = ["train_encoder.py", "--config", {str(settings)!r}]
sys.exit(train_encoder.main())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "cannot be written" in result.stderr.splitlines()[-1]
    folders = list((Path(config.output_dir) / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step_0000002"]
    assert torch.load(folders[0] / "state.pt", weights_only=True)["step"] == 2


def fill(path: Path, line: str, size: int) -> None:
    """Makes a file of whole lines as large as that, within a line."""
    with path.open("a") as file:
        file.write(line * ((size - path.stat().st_size) // len(line)))


@pytest.mark.parametrize(
    ("file", "limit"), [("metrics.jsonl", 3_000_000), ("skipped_clips.txt", 3_000_000), ("tensorboard", 20_000)]
)
def test_a_report_that_cannot_be_written_is_one_sentence_and_the_checkpoint_is_kept(
    settings: Path, tmp_path: Path, file: str, limit: int
) -> None:
    """A limit on the size of files, which this one has reached, stands in for the disk."""
    config = run(settings, "steps=2")
    folder = Path(config.output_dir)
    if file == "metrics.jsonl":
        fill(folder / file, json.dumps({"step": 1, "x": "y" * 60}) + "\n", limit)
    if file == "skipped_clips.txt":
        (folder / file).unlink()
        fill(folder / file, "y" * 60 + "\n", limit)
    script = f"""
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import train_encoder
sys.argv = ["train_encoder.py", "--config", {str(settings)!r}, "steps=30", "save_every=100", "validate_every=100"]
sys.exit(train_encoder.main())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    expected = (
        f"error: {folder / file}: cannot be written (File too large): see to the disk; the last checkpoint is kept"
    )
    assert result.stderr.splitlines()[-1] == expected
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_0000002"]
    assert load_newest(folder / "checkpoints") is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model_dir=/nowhere"], "is not a folder"),
        (["data.train=/nowhere"], "does not exist"),
        (["data.validation_clips=500"], "expected 500"),
        (["lossess.mel=1"], "nearest known one is losses"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_status_2(
    settings: Path,
    overrides: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_encoder.py", "--config", str(settings), *overrides])
    assert train_encoder.main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
