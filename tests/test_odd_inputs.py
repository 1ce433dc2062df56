"""Every command with a folder of odd inputs: a status of 0, 1 or 2 and a sentence, and no traceback."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest
import torch
import yaml
from huggingface_hub import constants

import evaluate_cloning
import evaluate_encoder
import inject_encoder
import patch_tokenizer
import speak_pairs
import train_encoder
from data import export
from evaluation.judges.available import open_judges
from examples import clone_voice
from experiments.random_speech import audio_bytes, write_parquet
from tests.injecting import make_case

LIMIT = 120  # seconds of a single command, on a machine that is as busy as can be
GOOD, ODD, RELEASE, ENCODER, NEW = "GOOD", "ODD", "RELEASE", "ENCODER", "NEW"  # what arguments stand for
TEXTS, ROWS = "texts.txt", "rows.parquet"


FEW = ("empty", "NULs", "page", "cut", "parquet", "deep")  # for commands that build networks before they read the file


def contents() -> dict[str, bytes]:
    wav, archive, saved = audio_bytes(0.3), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/b.txt", "text")
    torch.save([1, "two"], saved)
    return {
        "empty": b"",
        "one byte": b"x",
        "NULs": bytes(5000),
        "text": b"just some text\n" * 20,
        "page": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "list": b"[1, 2, 3]",
        "object": b'{"a": {"b": null}, "multimodal": [], "step": "x"}',
        "deep": b"[" * 20_000,
        "digits": b'{"dim": ' + b"9" * 5000 + b"}",
        "Latin-1": "caf\xe9 ".encode("latin-1") * 20,
        "UTF-16": "settings: 1\n".encode("utf-16"),
        "noise": bytes(torch.randint(256, (3000,), generator=torch.Generator().manual_seed(0)).tolist()),
        "cut": wav[: len(wav) // 2],
        "header": wav[:44],
        "FLAC": b"fLaC" + bytes(60),
        "MP3": b"ID3\x04" + bytes(100),
        "zip": archive.getvalue(),
        "torch": saved.getvalue(),
        "tensors": (2**62).to_bytes(8, "little") + b"{}",
        "no tensors": (2).to_bytes(8, "little") + b"{}",
        "a tensor that lies": (77).to_bytes(8, "little")
        + b'{"a": {"dtype": "BF16", "shape": [99999999999, 9], "data_offsets": [0, 99]}}'.ljust(77),
        "parquet": b"PAR1" + bytes(50) + b"PAR1",
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }


def make_odd(folder: Path, ending: str, few: bool = False) -> list[str]:
    """Paths of odd files, whose names end in `ending`, and of things that are no files."""
    folder.mkdir()
    paths = []
    for name, content in contents().items():
        if few and name not in FEW:
            continue
        (folder / f"{name}{ending}").write_bytes(content)
        paths.append(str(folder / f"{name}{ending}"))
    (folder / f"folder{ending}").mkdir()
    (folder / f"dangling{ending}").symlink_to("nowhere")
    (folder / f"loop{ending}").symlink_to(f"loop{ending}")
    os.mkfifo(folder / f"pipe{ending}")
    strange = folder / os.fsdecode(b"caf\xe9 #1 [x] \xff" + ending.encode())
    strange.write_bytes(audio_bytes(0.3))
    names = ["folder", "dangling", "pipe", "gone", *([] if few else ["loop", "x" * 300])]
    others = [str(folder / f"{name}{ending}") for name in names]
    typed = [""] if few else ["", f"{folder}/text{ending}/inside", "/dev/null", "-", "=", "a=b=c", ":"]
    return [*paths, *others, str(strange), *typed]


@dataclass(frozen=True)
class Command:
    """A program, its arguments, and the ending of the odd files that it gets in the place of ODD."""

    main: Callable[[], int]
    arguments: tuple[str, ...]
    ending: str = ""
    few: bool = False

    def with_places(self, places: dict[str, str]) -> list[str]:
        filled = []
        for argument in self.arguments:
            for name, place in places.items():
                argument = argument.replace(name, place)
            filled.append(argument)
        return filled


def main_of(program: Callable[[list[str]], int]) -> Callable[[], int]:
    return lambda: program(sys.argv[1:])


TRAIN = ("--config", "settings.yaml", "steps=1", "init=random")
NOTHING_ELSE = ("data.validation=gone",)  # ends a run that has taken what is odd
EVALUATE = (
    "--encoder",
    ENCODER,
    "--model-dir",
    RELEASE,
    "--device",
    "cpu",
    "--jobs",
    "1",
    "--data",
    "gone",
    "--without",
)
JUDGES = ("pesq", "estoi", "words", "resemblyzer", "ecapa", "wavlm", "quality", "speed")
CLONE = (GOOD, "text", NEW, "--url")
SILENT = ("--output", NEW, "--server", "http://127.0.0.1:1")
NOBODY = ("--model-dir", RELEASE, "--voices", "nobody")  # texts are read before voices
pairs = main_of(speak_pairs.main)
train, inject, patch = train_encoder.main, main_of(inject_encoder.main), main_of(patch_tokenizer.main)
evaluate, speak, cloning = main_of(evaluate_encoder.main), main_of(clone_voice.main), main_of(evaluate_cloning.main)
COMMANDS = {
    "train --config": Command(train, ("--config", ODD), ".yaml"),
    "train base": Command(train, ("--config", "based.yaml"), ".yaml"),
    "train model_dir": Command(train, (*TRAIN, *NOTHING_ELSE, f"model_dir={ODD}")),
    "train params": Command(train, (*TRAIN, *NOTHING_ELSE, "train=codec", f"params={ODD}"), ".json"),
    "train output_dir": Command(train, (*TRAIN, *NOTHING_ELSE, f"output_dir={ODD}"), few=True),
    "train start_from": Command(train, (*TRAIN, f"start_from={ODD}", "data.validation_clips=99")),
    "train data": Command(train, (*TRAIN, f"data.train={ODD}", "data.validation_clips=99"), ".parquet", few=True),
    "train validation": Command(
        train, (*TRAIN, f"data.validation={ODD}", "data.validation_clips=99"), ".wav", few=True
    ),
    "train speaker_model": Command(
        train, (*TRAIN, *NOTHING_ELSE, "losses.speaker=1", f"losses.speaker_model={ODD}"), few=True
    ),
    "train asr_teacher": Command(train, (*TRAIN, "losses.asr=1", f"losses.asr_teacher={ODD}"), ".pt", few=True),
    "train hf_cache": Command(train, (*TRAIN, *NOTHING_ELSE, f"data.train={ROWS}", f"hf_cache={ODD}"), few=True),
    "train --profile": Command(train, (*TRAIN, "--profile", ODD), few=True),
    "train pairs": Command(
        train, (*TRAIN, *NOTHING_ELSE, "losses.inversion=1", f"data.pairs={ODD}"), ".safetensors", few=True
    ),
    "train override": Command(train, (*TRAIN, *NOTHING_ELSE, ODD)),
    "inject --model-dir": Command(inject, ("--model-dir", ODD, "--encoder", ENCODER)),
    "inject --check": Command(inject, ("--model-dir", ODD, "--check")),
    "inject --encoder": Command(inject, ("--model-dir", RELEASE, "--encoder", ODD, "--dry-run"), ".safetensors"),
    "inject --output": Command(inject, ("--model-dir", RELEASE, "--encoder", ENCODER, "--merge", "--output", ODD)),
    "patch --model-dir": Command(patch, ("--model-dir", ODD)),
    "patch --list": Command(patch, ("--model-dir", ODD, "--list")),
    "patch --voice": Command(patch, ("--model-dir", RELEASE, "--voice", f"anna={ODD}"), ".wav"),
    "patch --voice NAME": Command(patch, ("--model-dir", RELEASE, "--voice", ODD)),
    "patch --remove": Command(patch, ("--model-dir", RELEASE, "--remove", ODD)),
    "evaluate --model-dir": Command(evaluate, ("--model-dir", ODD)),
    "evaluate --encoder": Command(evaluate, ("--model-dir", RELEASE, "--encoder", ODD), ".safetensors", few=True),
    "evaluate --against": Command(evaluate, (*EVALUATE, *JUDGES, "--against", ODD), ".safetensors", few=True),
    "evaluate --data": Command(evaluate, (*EVALUATE, *JUDGES, "--data", ODD), ".parquet", few=True),
    "evaluate --metrics": Command(evaluate, (*EVALUATE, *JUDGES, "--metrics", ODD), ".jsonl", few=True),
    "evaluate --json": Command(evaluate, (*EVALUATE, *JUDGES, "--json", ODD), few=True),
    "evaluate --report": Command(evaluate, (*EVALUATE, *JUDGES, "--report", ODD), few=True),
    "evaluate --require": Command(evaluate, (*EVALUATE, *JUDGES, "--require", ODD), few=True),
    "evaluate --pairs": Command(evaluate, (*EVALUATE, *JUDGES, "--pairs", ODD), ".safetensors", few=True),
    "evaluate --shown": Command(evaluate, (*EVALUATE, *JUDGES, "--shown", ODD), few=True),
    "evaluate --seed": Command(evaluate, (*EVALUATE, *JUDGES, "--seed", ODD), few=True),
    "export FOLDER": Command(main_of(export.main), (ODD, "gone")),
    "export SOURCE": Command(main_of(export.main), (NEW, ODD), ".parquet"),
    "clone_voice CLIP": Command(speak, (ODD, "text", NEW, "--url", "http://127.0.0.1:1"), ".wav"),
    "clone_voice OUT": Command(speak, (GOOD, "text", ODD, "--url", "http://127.0.0.1:1"), ".wav"),
    "clone_voice --url": Command(speak, (*CLONE, ODD)),
    "cloning --list": Command(cloning, (*SILENT, "--list", ODD), ".lst"),
    "cloning --data": Command(cloning, (*SILENT, "--data", ODD), ".parquet"),
    "cloning --texts": Command(cloning, (*SILENT, "--voice", "anna", "--texts", ODD), ".txt"),
    "cloning --voice": Command(cloning, (*SILENT, "--texts", TEXTS, "--voice", f"anna={ODD}"), ".wav"),
    "cloning --output": Command(cloning, ("--output", ODD, "--data", "gone")),
    "cloning --server": Command(cloning, ("--output", NEW, "--data", "gone", "--server", ODD)),
    "speak_pairs --model-dir": Command(pairs, ("--model-dir", ODD)),
    "speak_pairs --texts": Command(pairs, (*NOBODY, "--texts", ODD), ".txt"),
    "speak_pairs table": Command(pairs, (*NOBODY, "--texts", ODD), ".csv", few=True),
    "speak_pairs --engine": Command(pairs, (*NOBODY, "--texts", TEXTS, "--engine", ODD), few=True),
}


@pytest.fixture
def places(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A current folder for the commands, with the good inputs that they need."""
    case = make_case(tmp_path / "case")
    (tmp_path / "good.wav").write_bytes(audio_bytes(4.0))
    (tmp_path / TEXTS).write_text("Hello there.\n")
    write_parquet(tmp_path / ROWS, {"a": audio_bytes(1.0)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {GOOD: "good.wav", RELEASE: str(case.release), ENCODER: str(case.encoder), NEW: str(tmp_path / "new")}
    assert settings.name == "settings.yaml"
    return found


@pytest.fixture
def no_longer() -> Iterator[None]:
    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"a command takes more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, fail)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def status_of(main: Callable[[], int], arguments: list[str]) -> int:
    sys.argv = ["program", *arguments]
    signal.alarm(LIMIT)
    try:
        return main()
    except SystemExit as ended:  # argparse
        return int(ended.code or 0)


def fault(main: Callable[[], int], arguments: list[str], capsys: pytest.CaptureFixture[str], usage: bool) -> str:
    """What is wrong with a program's answer, empty if nothing is: it ends with a known status, and with 2 its last line
    is a sentence of bounded length. With `usage` argparse's own errors, which name the program first, count too."""
    try:
        status = status_of(main, arguments)
    except Exception as error:  # noqa: BLE001 (what a user would see as a traceback)
        return f"{type(error).__name__}: {error}"
    said = capsys.readouterr().err.strip().splitlines() or [""]
    before, _, sentence = said[-1].partition("error: ")
    answered = status in (0, 1) or (status == 2 and sentence and (usage or not before))
    return "" if answered and len(said[-1]) <= 3000 else f"status {status}, {said[-1]}"


@pytest.mark.parametrize("name", COMMANDS)
def test_odd_input_is_answered_with_a_sentence(
    name: str,
    places: dict[str, str],
    tmp_path: Path,
    no_longer: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [])
    failed = []
    for path in make_odd(tmp_path / "odd", command.ending, command.few):
        if name == "train base":
            (tmp_path / "based.yaml").write_text(yaml.safe_dump({"base": path}))
        if found := fault(command.main, command.with_places(places | {ODD: path}), capsys, usage=True):
            failed.append(f"{path}: {found}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(("judge", "option"), [("words", "whisper"), ("ecapa", "speaker_model")])
def test_a_judge_from_an_odd_file_is_left_out_with_the_reason(
    judge: str, option: str, tmp_path: Path, no_longer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate_encoder.py --whisper` and `--speaker-model`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    signal.alarm(LIMIT)
    for path in filter(None, make_odd(tmp_path / "odd", "")):  # an empty option is none
        opened, missing = open_judges([judge], **{option: path})
        assert not opened
        assert 0 < len(missing[judge]) < 1000
        assert "\n" not in missing[judge]


@pytest.mark.parametrize("file", ["params.json", "consolidated.safetensors", "voice_embedding/odd.pt"])
def test_a_release_with_an_odd_file_is_answered_with_a_sentence(
    file: str,
    places: dict[str, str],
    tmp_path: Path,
    no_longer: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = Path(places[RELEASE])
    (release / "voice_embedding").mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "argv", [])
    failed = []
    for content in make_odd(tmp_path / "odd", "", few=True)[:-1]:
        (release / file).unlink(missing_ok=True)
        (release / file).symlink_to(content)
        for main, arguments in (
            (inject, ["--model-dir", str(release), "--check"]),
            (patch, ["--model-dir", str(release), "--check"]),
            (patch, ["--model-dir", str(release), "--list"]),
            (evaluate, ["--model-dir", str(release), "--data", "gone"]),
            (train, [*TRAIN, *NOTHING_ELSE, f"model_dir={release}", "losses.shaping=1"]),
        ):
            if found := fault(main, arguments, capsys, usage=False):
                failed.append(f"{content} {arguments[-1]}: {found}")
    assert not failed, "\n".join(failed)


def test_a_folder_of_odd_clips_is_exported_and_evaluated_as_far_as_it_can(
    places: dict[str, str],
    tmp_path: Path,
    no_longer: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_odd(tmp_path / "odd", ".wav")
    shutil.copy("good.wav", "odd/good.wav")
    monkeypatch.setattr(sys, "argv", [])
    assert status_of(main_of(export.main), ["exported", "odd", "--workers", "1"]) == 0
    assert "odd/noise.wav" in capsys.readouterr().err
    arguments = [*EVALUATE, *JUDGES, "--data", "odd"]
    filled = Command(evaluate, tuple(arguments)).with_places(places)
    assert status_of(evaluate, filled) == 0
    said = capsys.readouterr()
    assert "odd/deep.wav cannot be decoded" in said.out + said.err


ANSWERS = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "no header": b"HTTP/1.1 200 OK\r\n\r\n",
    "a wrong length": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc",
    "less than promised": b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nContent-Length: 99999\r\n\r\nabcd",
    "a wrong chunk": b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabcd\r\n",
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000,
    "a long header": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    "half a sample": b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nContent-Length: 3\r\n\r\nabc",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>login</html>",
    "a list of errors": b"HTTP/1.1 500 No\r\nContent-Type: application/json\r\n\r\n[[[1]]]",
    "deep JSON": b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\n\r\n" + b"[" * 100_000,
    "elsewhere": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_whoever_answers_the_client_it_says_a_sentence(
    answer: str,
    places: dict[str, str],
    no_longer: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 20)
            connection.sendall(ANSWERS[answer])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    monkeypatch.setattr(sys, "argv", [])
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert status_of(speak, ["--voice", "anna", "text", places[NEW], "--url", url]) == 2
    assert capsys.readouterr().err.strip().startswith("error: ")
    assert not Path(places[NEW]).exists()
    listener.close()
