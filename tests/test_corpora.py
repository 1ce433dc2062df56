"""The corpora of docs/data.md, in small: files of the same schema, opened by the document's own sections."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml

import train_encoder
from data import Source, decode, open_sources
from evaluation.speech import read_speech
from experiments.random_speech import write_parquet
from tests.random_teacher import RandomTeacher, use_random_teacher
from training.config import load_config
from training.distributed import Ranks

DOCUMENT = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
RATE = 24000


def sound(number: int, rate: int, **form: str) -> bytes:
    stream = io.BytesIO()
    samples = 0.1 * np.random.default_rng(number).standard_normal(int((0.6 + 0.05 * number) * rate))
    soundfile.write(stream, samples, rate, **form)
    return stream.getvalue()


MP3 = {"format": "MP3"}
OPUS = {"format": "OGG", "subtype": "OPUS"}


def common_voice(path: Path) -> None:
    """The parquet files of the hub: mp3 at 48 kHz. The second clip's client says nothing of its language."""
    rows = [
        {
            "client_id": f"{i % 2}" * 128,
            "path": f"common_voice_de_{i}.mp3",
            "audio": {"bytes": sound(i, 48000, **MP3), "path": f"common_voice_de_{i}.mp3"},
            "sentence": f"Satz {i}.",
            "up_votes": 2,
            "down_votes": 0,
            "age": "",
            "gender": "",
            "accent": None,
            "locale": "de" if i != 1 else None,
            "segment": "",
        }
        for i in range(4)
    ]
    path.mkdir(parents=True)
    for first in (0, 2):
        pq.write_table(pa.Table.from_pylist(rows[first : first + 2]), path / f"train-{first}.parquet")


def common_voice_download(path: Path) -> None:
    """The archive of Common Voice: a list beside the folder of clips, mp3 at 32 kHz."""
    (path.parent / "clips").mkdir(parents=True)
    lines = ["client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale"]
    for i in range(3):
        (path.parent / "clips" / f"{i}.mp3").write_bytes(sound(i, 32000, **MP3))
        lines.append(f'{"b" * 128}\t{i}.mp3\t{"c" * 64}\tEr sagte: "{i}\t2\t0\t\t\t\t\tde')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def mls(path: Path) -> None:
    """The parquet files of the hub: 16 kHz, numbers as speakers."""
    rows = [
        {
            "audio": {"bytes": sound(i, 16000, format="FLAC"), "path": f"{i}.flac"},
            "original_duration": 14.5,
            "begin_time": 1.5,
            "end_time": 16.0,
            "transcript": f"satz {i}",
            "speaker_id": f"{10 + i % 2}",
            "chapter_id": "7",
            "file": f"{i}.flac",
            "id": f"10_7_{i}",
        }
        for i in range(4)
    ]
    path.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "train-00000-of-00001.parquet")


def folder_of(names: list[str], rate: int, form: dict[str, str]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for i, name in enumerate(names):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(sound(i, rate, **form))

    return write


def emilia(path: Path) -> None:
    """Tar files of mp3 at 24 kHz and json, converted by the document's program."""
    path.mkdir(parents=True)
    tars = path.parent / "tars"
    tars.mkdir()
    with tarfile.open(tars / "DE-B000000.tar", "w") as tar:
        for i in range(3):
            about = {"id": f"DE_{i}", "wav": f"DE/{i}.mp3", "text": f" Satz {i}", "duration": 0.6}
            about |= {"speaker": f"DE_S{i}", "language": "de", "dnsmos": 3.3}
            for suffix, content in (("mp3", sound(i, RATE, **MP3)), ("json", json.dumps(about).encode())):
                entry = tarfile.TarInfo(f"DE_{i}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.S) if "tarfile" in block]
    exec(program.replace("/emilia/DE", str(tars)).replace("/speech/emilia_de", str(path)), {})


def own(path: Path) -> None:
    from datasets import Dataset

    rows = [
        {
            "audio": {"bytes": sound(i, 44100, format="WAV"), "path": None},
            "transcription": f"Frase {i}.",
            "speaker": "io",
        }
        for i in range(3)
    ]
    Dataset.from_list(rows).save_to_disk(path)


# by the path in the document: the writer, then the first clip's speaker, text and language, and the number of speakers
CORPORA: dict[str, tuple[Callable[[Path], None], str, str, str, int]] = {
    "/cv-corpus/de/train.tsv": (common_voice_download, "b" * 128, 'Er sagte: "0', "de", 1),
    "/speech/common_voice_de": (common_voice, "0" * 128, "Satz 0.", "de", 2),
    "facebook/multilingual_librispeech": (mls, "10", "satz 0", "de", 2),
    "/mls_german/train/audio": (folder_of(["10/7/10_7_0.opus", "11/8/11_8_0.opus"], 16000, OPUS), "7", "", "de", 2),
    "/VCTK/wav48_silence_trimmed": (
        folder_of(["p225/p225_001_mic1.flac", "p226/p226_001_mic1.flac"], 48000, {"format": "FLAC"}),
        *("p225", "", "en", 2),
    ),
    "/speech/emilia_de": (emilia, "DE_S0", " Satz 0", "de", 3),
    "/speech/own": (own, "io", "Frase 0.", "it", 1),
}


def sections() -> dict[str, dict[str, Any]]:
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S) if "client_id" in block]
    return {section["path"]: section for section in yaml.safe_load(example)["data"]["train"]}


def prepared(name: str, folder: Path) -> Source:
    """Writes a corpus below a folder. Returns the document's source for it; what lies on the hub lies here, too."""
    path = folder / name.lstrip("/")
    CORPORA[name][0](path)
    return Source(**(sections()[name] | {"path": str(path), "split": ""}))


@pytest.mark.parametrize("name", CORPORA)
def test_the_documents_section_for_a_corpus_gives_its_clips(tmp_path: Path, name: str) -> None:
    _, speaker, text, language, speakers = CORPORA[name]
    (clips,) = open_sources([prepared(name, tmp_path)], str(tmp_path / "cache"))
    found = [clips.read(i) for i in range(len(clips))]
    assert (found[0].speaker, found[0].text, found[0].language) == (speaker, text, language)
    assert len(set(clips.speakers().tolist())) == speakers
    lengths = [decode(clip, RATE, resample=True).shape[-1] / RATE for clip in found]
    assert lengths == pytest.approx([0.6 + 0.05 * i for i in range(len(found))], abs=0.1)


def test_the_documents_command_evaluates_common_voice(tmp_path: Path) -> None:
    (section,) = re.findall(r"--data '(\{.*\})'", DOCUMENT)
    common_voice_download(tmp_path / "de" / "test.tsv")
    speech, problems, _ = read_speech([section.replace("/cv-corpus", str(tmp_path))])
    assert [(clip.text, clip.speaker) for clip in speech] == [(f'Er sagte: "{i}', "b" * 128) for i in range(3)]
    assert not problems


def test_the_document_shows_every_corpus_that_is_tested() -> None:
    assert sections().keys() == CORPORA.keys()


def test_common_voice_and_mls_train_beside_libritts_r(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clip reaches the teacher with its language, whether its row, its source or nobody says it."""
    told: list[str] = []

    class Listening(RandomTeacher):
        def numbered_languages(self, names: Any) -> torch.Tensor:
            told.extend(names)
            return super().numbered_languages(names)

    use_random_teacher(monkeypatch, Listening())
    libritts = write_parquet(tmp_path / "libritts.parquet", {f"{i}": sound(i, RATE, format="WAV") for i in range(4)})
    values = yaml.safe_load(settings.read_text())
    names = ("/speech/common_voice_de", "facebook/multilingual_librispeech")
    sources = [prepared(name, tmp_path).as_setting() for name in names]
    values["data"] |= {"train": [str(libritts), *sources], "resample": True}
    values |= {"hf_cache": str(tmp_path / "cache"), "steps": 3, "batch_size": 4, "losses": {"asr": 0.5}}
    settings.write_text(yaml.safe_dump(values))
    config = load_config(settings)
    train_encoder.train(config, Ranks(0, 1, torch.device("cpu")))
    assert sorted(told) == ["", "", "", "", "", *["de"] * 7]  # an epoch; one row of Common Voice names no language
    assert not (Path(config.output_dir) / "skipped_clips.txt").read_text()
    assert load_config(Path(config.output_dir) / "config.yaml").data == config.data
