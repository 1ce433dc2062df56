"""Data sets of the hub, against a small server on this machine that speaks the few requests that are made of it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from data import DataError
from data.hub import download, of_split
from experiments.random_speech import audio_bytes, write_parquet

NAME = "somebody/speech"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(NamedTuple):
    url: str
    files: dict[str, bytes]
    asked: list[str]  # files whose content was sent
    broken: set[str]  # files whose content breaks off


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files: dict[str, bytes] = {"README.md": b"a data set"}
    for split, count in (("train.clean.100", 2), ("train.clean.360", 1), ("train.other.500", 1), ("dev.clean", 1)):
        for i in range(count):
            path = write_parquet(tmp_path / "rows.parquet", {f"{split}_{i}": audio_bytes(0.5)})
            files[f"data/{split}/{split}-{i:05}-of-{count:05}.parquet"] = path.read_bytes()
    asked: list[str] = []
    broken: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, body: bytes, headers: dict[str, str], send: bool) -> None:
            self.send_response(200)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def reply(self, send: bool) -> None:
            path = self.path.partition("?")[0]
            if path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/main"):
                about = {"_id": "1", "id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.answer(json.dumps(about).encode(), {"Content-Type": "application/json"}, send)
            elif path == f"/api/datasets/{NAME}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.answer(json.dumps(tree).encode(), {"Content-Type": "application/json"}, send)
            elif path.startswith(f"/datasets/{NAME}/resolve/{COMMIT}/"):
                name = path.removeprefix(f"/datasets/{NAME}/resolve/{COMMIT}/")
                content = files[name]
                if send:
                    asked.append(name)
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                if send and name in broken:
                    self.send_error(503)
                else:
                    self.answer(content, headers, send)
            else:
                self.send_error(404)

        def do_GET(self) -> None:
            self.reply(send=True)

        def do_HEAD(self) -> None:
            self.reply(send=False)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hub(f"http://127.0.0.1:{server.server_port}", files, asked, broken)
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_split_is_downloaded_once_and_then_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    paths = download(NAME, "train.clean.100", str(tmp_path / "cache"), hub.url)
    assert [path.name for path in paths] == [f"train.clean.100-{i:05}-of-00002.parquet" for i in range(2)]
    assert [path.read_bytes() for path in paths] == [hub.files[name] for name in sorted(hub.asked)]
    assert len(hub.asked) == 2
    assert download(NAME, "train.clean.100", str(tmp_path / "cache"), "http://127.0.0.1:9") == paths
    assert len(hub.asked) == 2


def test_an_interrupted_download_goes_on_with_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    second = "data/train.clean.100/train.clean.100-00001-of-00002.parquet"
    hub.broken.add(second)
    with pytest.raises(DataError, match=r"was not downloaded .* repeat the command to download the rest.*local data"):
        download(NAME, "train.clean.100", str(tmp_path), hub.url)
    hub.broken.clear()
    hub.asked.clear()
    assert len(download(NAME, "train.clean.100", str(tmp_path), hub.url)) == 2
    assert hub.asked == [second]


@pytest.mark.parametrize("note", [b"", b"[", b"null", b"[1]", b"{}", b"[]", b"\xff", b"[" * 5000])
def test_a_damaged_note_of_what_was_downloaded_is_written_anew(hub: Hub, tmp_path: Path, note: bytes) -> None:
    paths = download(NAME, "train.clean.100", str(tmp_path / "cache"), hub.url)
    (listing,) = (tmp_path / "cache").glob("*.json")
    written = listing.read_bytes()
    listing.write_bytes(note)
    assert download(NAME, "train.clean.100", str(tmp_path / "cache"), hub.url) == paths
    assert listing.read_bytes() == written


def test_of_several_processes_one_downloads(hub: Hub, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        arguments = [(NAME, "train", str(tmp_path / "cache"), hub.url)] * 3
        found = pool.starmap(download, arguments)
    assert len(found[0]) == 4
    assert found[0] == found[1] == found[2]
    assert len(hub.asked) == 4


@pytest.mark.parametrize(
    ("split", "file", "belongs"),
    [
        ("train.clean.100", "data/train.clean.100/train.clean.100-00000-of-00030.parquet", True),
        ("train-clean-100", "data/train.clean.100/train.clean.100-00000-of-00030.parquet", True),
        ("train", "data/train.other.500/train.other.500-00000-of-00080.parquet", True),
        ("train.clean.1", "data/train.clean.100/train.clean.100-00000-of-00030.parquet", False),
        ("clean", "data/dev.clean/dev.clean-00000-of-00004.parquet", False),
        ("", "data/dev.clean/dev.clean-00000-of-00004.parquet", True),
        ("train", "train.parquet", True),
        ("german/train", "german/train-00000-of-00002.parquet", True),
        ("german/train", "data/german/train-00000-of-00002.parquet", True),
        ("german/train", "french/train-00000-of-00002.parquet", False),
        ("german/train", "pregerman/train-00000-of-00002.parquet", False),
        ("german/", "german/dev-00000-of-00002.parquet", True),
    ],
)
def test_a_split_takes_the_files_whose_names_begin_with_it(split: str, file: str, belongs: bool) -> None:
    assert of_split(file, split) is belongs


def test_a_hub_that_does_not_answer_is_an_error_that_names_the_local_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be had from the hub \(.+\)\. A source can .*speaker/chapter/\*\.wav"):
        download(NAME, "train", str(tmp_path), "http://127.0.0.1:9")


def test_what_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'test'; it has dev\.clean, train\.clean\.100"):
        download(NAME, "test", str(tmp_path), hub.url)
    with pytest.raises(DataError, match="cannot be had from the hub"):
        download("somebody/else", "train", str(tmp_path), hub.url)
    assert not hub.asked


def test_a_cache_without_space_is_an_error_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"has 0\.0 GB free, .* needs .* set HF_CACHE"):
        download(NAME, "train", str(tmp_path), hub.url)
    assert not hub.asked


def snapshot(root: Path, files: dict[str, bytes]) -> Path:
    """The cache as `hf download --repo-type dataset` leaves it. Returns the snapshot's folder."""
    about = root / f"datasets--{NAME.replace('/', '--')}"
    (about / "refs").mkdir(parents=True)
    (about / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = about / "blobs" / hashlib.sha1(content).hexdigest()
        path = about / "snapshots" / COMMIT / name
        for folder in (blob.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        path.symlink_to(blob)
    return about / "snapshots" / COMMIT


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_its_snapshot_in_the_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    names = [f"data/train.clean.100/train.clean.100-{i:05}-of-00002.parquet" for i in range(2)]
    names.append("data/dev.clean/dev.clean-00000-of-00001.parquet")
    folder = snapshot(tmp_path, {name: name.encode() for name in names})
    with pytest.warns(UserWarning, match=r"cannot be had from the hub .*: using 2 files of train\.clean\.100 in "):
        paths = download(NAME, "train.clean.100", str(tmp_path), "http://127.0.0.1:9")
    assert paths == [folder / name for name in names[:2]]


def test_a_snapshot_that_is_not_complete_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    first, second = (f"data/train/train-{i:05}-of-00002.parquet" for i in range(2))
    folder = snapshot(tmp_path, {first: b"1", second: b"2"})
    for damage in ((folder / second).resolve(), folder / second):  # the link leads nowhere, then there is none
        damage.unlink()
        with pytest.raises(DataError, match=rf"{COMMIT}, is not complete for 'train': it lacks 1 .*train-00001-of-"):
            download(NAME, "train", str(tmp_path), "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"is not complete for 'test': it lacks all files of it"):
        download(NAME, "test", str(tmp_path), "http://127.0.0.1:9")


CARD = """---
license: cc-by-4.0
dataset_info: [{features: [{name: audio, dtype: {audio: {sampling_rate: {a: {b: {c: 1}}}}}}]}]
configs:
- config_name: all
  data_files:
  - split: train.clean.100
    path: data/train.clean.100/train.clean.100*.parquet
  - {split: train.other.500, path: [data/train.other.500/train.other.500-*]}
- config_name: german
  data_files: [{split: train, path: german/train-*}, {split: odd, path: ""}]
---
# Speech
"""


def test_offline_a_beginning_of_splits_takes_all_that_the_card_names(tmp_path: Path) -> None:
    names = ["german/train-00000-of-00001.parquet"]
    names += [f"data/{split}/{split}-00000-of-00001.parquet" for split in ("train.clean.100", "train.other.500")]
    folder = snapshot(tmp_path, {name: name.encode() for name in names} | {"README.md": CARD.encode()})
    with pytest.warns(UserWarning, match=r"using 3 files of train, train\.clean\.100, train\.other\.500 in "):
        assert download(NAME, "train", str(tmp_path), "http://127.0.0.1:9") == [folder / name for name in sorted(names)]
    (folder / names[2]).unlink()
    for split in ("train", ""):
        with pytest.raises(
            DataError, match=r"is not complete for .*: it lacks 1 .*train\.other\.500/train\.other\.500-\*"
        ):
            download(NAME, split, str(tmp_path), "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"using 1 files of train in "):
        assert download(NAME, "german/train", str(tmp_path), "http://127.0.0.1:9") == [folder / names[0]]


@pytest.mark.parametrize(
    "card", [None, b"", b"# Speech", b"\xff", b"---\nconfigs: [{data_files: 3}]\n---\n", b"---\n[\n---\n"]
)
def test_offline_a_beginning_of_splits_is_refused_if_nothing_says_what_these_are(
    tmp_path: Path, card: bytes | None
) -> None:
    files = {f"data/{split}-00000-of-00001.parquet": split.encode() for split in ("train.a", "train.b")}
    snapshot(tmp_path, files | ({} if card is None else {"README.md": card}))
    for split, said in (("train", "'train'"), ("", "'the whole data set'")):
        with pytest.raises(DataError, match=rf"no README\.md that says whether {said} .* as in {NAME}:train\.a$"):
            download(NAME, split, str(tmp_path), "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"using 1 files of train\.b in "):
        download(NAME, "train-b", str(tmp_path), "http://127.0.0.1:9")


def test_a_snapshot_of_another_revision_is_named(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, {"train.parquet": b"1"})
    (folder.parents[1] / "refs" / "main").unlink()
    with pytest.raises(DataError, match=rf"The cache has {folder}: name the folder in it"):
        download(NAME, "train", str(tmp_path), "http://127.0.0.1:9")
