"""Parquet files and other tables as others make them: names, types, columns, and where the sound is."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataError, Source, decode, open_clips, open_sources
from data.audio import BadClipError
from data.clips import Clips
from data.sources import JoinedClips
from experiments.random_speech import audio_bytes, write_parquet

RATE = 24000


def table(count: int = 2, **columns: Any) -> pa.Table:
    """Rows with LibriTTS-R's columns, some of them replaced, or left out with None."""
    usual = {
        "audio": [{"bytes": audio_bytes(0.1 + i / 10), "path": f"{i}.wav"} for i in range(count)],
        "text_normalized": ["words"] * count,
        "speaker_id": [str(i) for i in range(count)],
        "id": [f"id{i}" for i in range(count)],
    }
    return pa.table({name: values for name, values in (usual | columns).items() if values is not None})


def write(path: Path, rows: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # pyarrow takes some names for URLs
        pq.write_table(rows, file)
    return path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def opened(path: Path, cache: Path, **section: str) -> Clips:
    return JoinedClips(open_sources([Source(str(path), **section)], str(cache)))


SECTIONS = {
    "{path: a.tsv": r"is not valid YAML: .*\(line 1, column \d+\)",
    "{path: a.tsv, text: [a, b]}": "text cannot be read, expected texts for path, split, audio, text, speaker, id, lan",
    "{path: a.tsv, sentence: b}": "sentence cannot be read, expected",
    "{path: a.tsv, weight: 1}": "weight cannot be read, expected",
    "{text: sentence}": "has no path",
    "{path: , text: sentence}": "has no path",
    "{*a: b}": "is not valid YAML: aliases",
    "{path: gone.tsv, text: sentence}": r"^gone\.tsv does not exist",
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_on_a_command_line_that_is_none_of_a_source_is_a_sentence(section: str) -> None:
    with pytest.raises(DataError, match=SECTIONS[section]):
        open_clips([section])


def test_a_section_on_a_command_line_names_columns_and_expands_the_home_folder(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x.parquet", table(2).rename_columns(["sound", "words", "who", "id"]))
    monkeypatch.setenv("HOME", str(tmp_path))
    clips = open_clips(["{path: ~/x.parquet, audio: sound, text: words, speaker: who}"], str(cache))
    assert [(clips.read(i).text, clips.read(i).speaker) for i in range(2)] == [("words", "0"), ("words", "1")]


ODD_NAMES = ("[24k] speech", "x[1]", "a::b", "wild*card?", "50%20", "#1", "file:x", "hf:", "声 é", "{a,b}", "~", "a\nb")


@pytest.mark.parametrize("name", [*ODD_NAMES, os.fsdecode(b"caf\xe9")])
def test_any_name_of_a_parquet_file_and_of_its_folder_works(tmp_path: Path, cache: Path, name: str) -> None:
    """Also with a second file beside it that the name matches as a pattern."""
    write(tmp_path / "x1.parquet", table(1))
    path = write(tmp_path / name / f"{name}.parquet", table(2))
    assert [opened(place, cache).read(1).name for place in (path, path.parent)] == ["id1", "id1"]


def test_a_copy_in_the_cache_is_made_anew_when_the_file_changes(tmp_path: Path, cache: Path) -> None:
    for count in (2, 3, 4):
        assert len(opened(write(tmp_path / "x[1].parquet", table(count)), cache)) == count
    copies = len(list(cache.rglob("*.arrow")))
    opened(tmp_path / "x[1].parquet", cache)
    assert len(list(cache.rglob("*.arrow"))) == copies


def test_upper_case_suffixes_are_parquet_too(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "speech" / "x.PARQUET", table(2))
    write(tmp_path / "speech" / "y.Parquet", table(1))
    assert len(opened(tmp_path / "speech", cache)) == 3
    assert len(opened(tmp_path / "speech" / "x.PARQUET", cache)) == 2


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.int64(), pa.int8(), pa.dictionary(pa.int32(), pa.string())]
)
def test_files_of_a_folder_may_differ_in_their_types(tmp_path: Path, cache: Path, kind: pa.DataType) -> None:
    write(tmp_path / "speech" / "a.parquet", table(3))
    write(tmp_path / "speech" / "b.parquet", table(2, speaker_id=pa.array([2, 0]).cast(pa.string()).cast(kind)))
    clips = opened(tmp_path / "speech", cache)
    assert [clips.read(i).speaker for i in range(5)] == ["0", "1", "2", "2", "0"]
    assert clips.speakers().tolist() == [0, 1, 2, 2, 0]


def test_speakers_are_numbered_in_the_order_of_their_names(tmp_path: Path, cache: Path) -> None:
    names = [10, 9, 9, None, 100]
    clips = opened(write(tmp_path / "x.parquet", table(5, speaker_id=names)), cache)
    expected = np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1]
    assert clips.speakers().tolist() == expected.tolist()


SOUND = audio_bytes(0.1)
STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    "audio",
    [
        lambda path: pa.array([SOUND]),
        lambda path: pa.array([SOUND], pa.large_binary()),
        lambda path: pa.array([{"bytes": SOUND}]),
        lambda path: pa.array([{"path": "x", "bytes": SOUND, "sampling_rate": 24000}]),
        lambda path: pa.array([{"bytes": SOUND}], pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})),
        lambda path: pa.array([{"bytes": None, "path": str(path)}], STORED),
        lambda path: pa.array([{"bytes": None, "path": path.name}], STORED),
        lambda path: pa.array([f"file://{path}"]),
        lambda path: pa.array([str(path)], pa.large_string()),
    ],
)
def test_sound_is_read_from_bytes_and_from_paths(
    tmp_path: Path, cache: Path, audio: Callable[[Path], pa.Array]
) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(SOUND)
    clip = opened(write(tmp_path / "x.parquet", table(1, audio=audio(path))), cache).read(0)
    assert decode(clip, RATE).shape == (1, 2400)


def test_sound_that_was_not_embedded_is_said_with_its_path(tmp_path: Path, cache: Path) -> None:
    audio = pa.array([{"bytes": None, "path": "/gone/a.wav"}], STORED)
    clips = opened(write(tmp_path / "x.parquet", table(1, audio=audio)), cache)
    with pytest.raises(
        BadClipError, match=r"id0 holds no audio \(no bytes, and its path /gone/a\.wav does not exist: "
    ):
        clips.read(0)


@pytest.mark.parametrize("texts", [pa.nulls(2), pa.nulls(2, pa.string()), None, pa.array(["", None])])
def test_clips_without_transcripts_train(tmp_path: Path, cache: Path, texts: Any) -> None:
    clips = opened(write(tmp_path / "x.parquet", table(2, text_normalized=texts)), cache)
    assert [clips.read(i).text for i in range(2)] == ["", ""]


def test_columns_are_named_in_the_sources_section(tmp_path: Path, cache: Path) -> None:
    rows = {
        "sound": [{"bytes": SOUND, "path": f"{i}.wav"} for i in range(2)],
        "info": [{"who": "ann", "tongue": "de"}, {"who": None, "tongue": None}],
        "sentence": ["Hallo.", "Hello."],
    }
    path = write(tmp_path / "x.parquet", pa.table(rows))
    section = {"audio": "sound", "text": "sentence", "speaker": "info.who", "language": "info.tongue"}
    clips = opened(path, cache, **section, asr_language="en")
    found = [clips.read(i) for i in range(2)]
    assert [(clip.name, clip.speaker, clip.text, clip.language) for clip in found] == [
        ("0.wav", "ann", "Hallo.", "de"),
        ("1.wav", "", "Hello.", "en"),
    ]
    assert clips.speakers().tolist() == [1, 0]  # None comes before ann


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "x.parquet", table(2))
    with pytest.raises(DataError, match=r"lacks the column client_id; it has audio, text_normalized, speaker_id, id"):
        opened(path, cache, speaker="client_id")
    with pytest.raises(DataError, match=r"lacks the column id\.x"):
        opened(path, cache, text="id.x")
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(SOUND)
    with pytest.raises(DataError, match="is a folder of audio files, which has no columns"):
        opened(tmp_path / "speech", cache, speaker="client_id")


def test_a_saved_data_set_is_read_where_it_lies(tmp_path: Path, cache: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"audio": {"bytes": audio_bytes(0.1 + i / 10), "path": None}, "speaker_id": i % 3} for i in range(7)]
    saved = Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "own", num_shards=2)
    clips = opened(tmp_path / "own", cache)
    assert [decode(clips.read(i), RATE).shape[-1] for i in (0, 6)] == [2400, 16800]
    assert clips.speakers().tolist() == [i % 3 for i in range(7)]
    assert not list(cache.iterdir())
    DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"holds several splits: name one of them, .*/splits/test, .*/splits/train"):
        opened(tmp_path / "splits", cache)
    assert len(opened(tmp_path / "splits" / "test", cache)) == 7
    (tmp_path / "own" / "state.json").write_text('{"_data_files": [{"filename": "../../../etc/passwd"}]}')
    with pytest.raises(DataError, match=r"own/passwd cannot be read as"):
        opened(tmp_path / "own", cache)
    (tmp_path / "own" / "state.json").write_text("null")
    with pytest.raises(DataError, match=r"state\.json names no tables"):
        opened(tmp_path / "own", cache)


@pytest.mark.parametrize(("name", "between"), [("train.tsv", "\t"), ("train.csv", ",")])
def test_a_list_of_files_is_a_table_too(tmp_path: Path, cache: Path, name: str, between: str) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp3").write_bytes(audio_bytes(0.5, kind="MP3"))
    rows = [["client_id", "path", "sentence"], ["ann", "a.mp3", 'She said: "no".'], ["bob", "gone.mp3", ""]]
    if name.endswith(".csv"):
        rows[1][2] = '"She said: ""no""."'
    (tmp_path / name).write_text("\n".join(map(between.join, rows)) + "\n", encoding="utf-8")
    clips = opened(tmp_path / name, cache, audio="path", text="sentence", speaker="client_id")
    assert (clips.read(0).speaker, clips.read(0).text) == ("ann", 'She said: "no".')
    assert decode(clips.read(0), RATE).shape[-1] == pytest.approx(12000, rel=0.2)
    with pytest.raises(BadClipError, match=r"gone\.mp3 holds no audio"):
        clips.read(1)


def test_parquet_files_below_a_folder_are_found_or_their_folders_are_named(tmp_path: Path, cache: Path) -> None:
    snapshot = tmp_path / "snapshots" / "rev"
    write(snapshot / "data" / "train.clean.100" / "a.parquet", table(2))
    assert len(opened(snapshot, cache)) == 2
    write(snapshot / "data" / "dev.clean" / "a.parquet", table(1))
    with pytest.raises(DataError, match=r"parquet files in 2 folders, .*/data/dev\.clean, .*/train\.clean\.100$"):
        opened(snapshot, cache)
    (snapshot / "a.wav").write_bytes(SOUND)
    assert len(opened(snapshot, cache)) == 1  # a folder of audio, as before


def test_a_file_of_another_kind_is_said(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.wav").write_bytes(SOUND)
    with pytest.raises(DataError, match=r"a\.wav is no table \(\.parquet, \.arrow, \.tsv, \.csv\); data is a folder"):
        opened(tmp_path / "a.wav", cache)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        opened(tmp_path / "a.parquet", cache)


def test_text_that_is_no_utf_8_spoils_its_row_only(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "x.parquet", table(2, text_normalized=["QQQQQQ", "words"]))
    content = path.read_bytes()
    assert content.count(b"QQQQQQ") == 3  # the value, and twice in the statistics
    path.write_bytes(content.replace(b"QQQQQQ", b"QQ\xff\xffQQ"))
    clips = opened(path, cache)
    with pytest.raises(BadClipError, match=r"row 0 of x\.parquet cannot be read"):
        clips.read(0)
    assert clips.read(1).text == "words"


def test_tables_can_be_sent_to_other_processes(tmp_path: Path, cache: Path) -> None:
    parquet = write_parquet(tmp_path / "rows.parquet", {"x": audio_bytes(1.0), "y": audio_bytes(2.0)})
    clips = open_clips([str(parquet)], str(cache))
    assert len(pickle.dumps(clips)) < 10_000
    assert pickle.loads(pickle.dumps(clips)).read(1).name == "y"


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_a_package_that_tables_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path = write(tmp_path / "a.parquet", table())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"a.parquet: reading tables needs {package}: `pip install datasets`"):
        open_clips([str(path)])
