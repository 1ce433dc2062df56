"""Settings: what is read, what wins, what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from data import Source
from training.config import RENAMED, ConfigError, dump_config, load_config
from training.same_run import check_same_run

MINIMAL = {"model_dir": "somewhere", "data": {"train": ["a"], "validation": "b"}}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_DIR", "OUTPUT_DIR", "HF_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_the_command_line_beats_the_environment_and_that_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(file).model_dir == "somewhere"
    monkeypatch.setenv("MODEL_DIR", "/environment")
    assert load_config(file).model_dir == "/environment"
    assert load_config(file, ["model_dir=/argument"]).model_dir == "/argument"


def test_overrides_reach_into_sections_and_keep_their_types(file: Path) -> None:
    config = load_config(
        file, ["losses.mel=2", "optimizer.lr=1e-4", "cuda_graph=false", "data.train=[x, y]", "steps=7"]
    )
    assert (config.losses.mel, config.optimizer.lr, config.cuda_graph, config.steps) == (2.0, 1e-4, False, 7)
    assert config.data.train == (Source("x"), Source("y"))
    assert config.data.validation == (Source("b"),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bach_size=3", "nearest known one is batch_size"),
        ("losses.mell=3", "nearest known one is losses.mel"),
        ("steps=many", "steps is 'many', expected a whole number"),
        ("steps=0", "steps is 0, expected 1 or more"),
        ("losses.mel=-1", "losses.mel is -1.0, expected 0 or more"),
        ("optimizer.lr=0", "optimizer.lr is 0.0, expected more than 0"),
        ("optimizer.beta1=1", "optimizer.beta1 is 1.0, expected 0 or more and less than 1"),
        ("cuda_graph=1", "cuda_graph is 1, expected true or false"),
        ("compile=true", "compile was removed: what is faster compiled is compiled without it"),
        ("precision=fp16", "precision is 'fp16', expected 'bf16' or 'fp32'"),
        ("losses=3", "losses is 3, expected a section"),
        ("losses.asr_every=0", "losses.asr_every is 0, expected 1 or more"),
        ("discriminator.every=0", "discriminator.every is 0, expected 1 or more"),
        ("discriminator.crop_seconds=0.05", "discriminator.crop_seconds is 0.05, expected 0.1 or more"),
        ("discriminator.crop_seconds=60", "is 60.0, expected at most data.crop_seconds"),
        ("losses.diversity_temperature=0", "losses.diversity_temperature is 0.0, expected more than 0"),
        ("steps", "expected key=value"),
        ("model_dir=", "set MODEL_DIR"),
        ("data.train=[]", "data.train is empty"),
        ("data.train=", "data.train is empty"),
        ("data.train=['']", "expected a path, a hub name, or a section with a path"),
        ("data.train=[{weight: 1}]", "expected a path, a hub name, or a section with a path"),
        ("data.train=[[a]]", "data.train has ['a'], expected a path"),
        ("data.train=[a.parquet", "data.train=[a.parquet is not valid YAML: "),
        ("data.train.0=a", "data.train.0 is unknown: train is a value, not a section"),
        ("data.crop_seconds=.inf", "data.crop_seconds is '.inf', expected a number"),
        ("data.crop_seconds=inf", "data.crop_seconds is 'inf', expected a finite number"),
        ("losses.mel=nan", "losses.mel is 'nan', expected a finite number"),
        ("data.crop_seconds=1e9", "data.crop_seconds is 1000000000.0, expected 3600 or less"),
        (f"seed={10**23}", f"seed is {10**23}, expected {2**63 - 1} or less"),
        pytest.param(f"steps={'9' * 5000}", "expected a whole number", id="many digits"),
        ("steps=1e3", "steps is 1e3, expected a whole number"),
        ("steps=", "steps is '', expected a whole number"),
        ("batch_size=1000000000", "batch_size is 1000000000, expected 100000 or less"),
        ("output_dir=", "output_dir is empty, expected a folder: is a variable of the shell not set?"),
        ("losses.speaker_model=", "losses.speaker_model is empty"),
        ("model_dir=a\0b", "expected characters that a file name can have"),
        ("losses=", "losses is empty, expected a section"),
        ("losses=[1]", "losses is ['1'], expected a section"),
        ("=1", "is no configuration key"),
        (".=1", "is no configuration key"),
        ("losses.=1", "is no configuration key"),
        pytest.param(f"{'x' * 100_000}=1", "is no configuration key", id="a long key"),
    ],
)
def test_what_cannot_be_run_is_refused_with_key_value_and_expectation(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, [override])
    assert message in str(error.value)


NO_SETTINGS = {
    "a bracket is missing": (b"a: [", r"is not valid YAML: .*\(line 1, column 5\)"),
    "tabs": (b"losses:\n\tmel: 1\n", r"is not valid YAML: .*\(line 2, column 1\)"),
    "Latin-1": ("output_dir: caf\xe9\n".encode("latin-1"), "is not UTF-8 text .* save it as UTF-8"),
    "UTF-16": ("steps: 3\n".encode("utf-16"), "is not UTF-8 text"),
    "a network": (bytes(range(256)) * 1000, "is too large for settings"),
    "NULs": (b"steps: 3\n\0\0\0", "is not valid YAML: unacceptable character"),
    "a list": (b"- steps: 3", "holds a list, expected lines of key: value"),
    "a word": (b"steps", "holds a single value, expected lines of key: value"),
    "two documents": (b"steps: 3\n---\nsteps: 4\n", "is not valid YAML: .*another document"),
    "a key twice": (b"steps: 3\nsteps: 4\n", r"the key 'steps' is there twice \(line 2, column 1\)"),
    "a section as a key": (b"? {steps: 3}\n: 4\n", "a key is a list or a section"),
    "a million laughs": (
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nsteps: *c",
        r"aliases \(\*name\) are not supported: write the value out \(line 2, column 8\)",
    ),
    "a list in itself": (b"steps: &a [*a]", "aliases"),
    "deep brackets": (b"steps: " + b"[" * 50_000, "more than 8 levels"),
    "a character that does not exist": (b'steps: "\\UFFFFFFFF"', "is not valid YAML"),
    "half a pair": (b'output_dir: "\\ud800"', "output_dir is .*, expected characters that a file name can have"),
    "a NUL in a path": (b'model_dir: "a\\0b"', "model_dir is .*, expected characters that a file name can have"),
    "a list for a path": (b"output_dir: [a, b]", r"output_dir is \['a', 'b'\], expected text"),
    "its own base": (b"base: run.yaml", r"base leads back to .*run\.yaml"),
    "its own base in a circle": (b"base: ../NAME/run.yaml", r"base leads back to .*run\.yaml"),
    "a list of bases": (b"base: [a, b]", r"base is \['a', 'b'\], expected the name of a YAML file"),
    "a folder as its base": (b"base: .", "cannot be read .it is not a regular file"),
    "a base that no file can be named": (b'base: "a\\0b"', "cannot be read"),
}


@pytest.mark.parametrize("kind", NO_SETTINGS)
def test_a_file_that_holds_no_settings_is_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    content, message = NO_SETTINGS[kind]
    path = tmp_path / "run.yaml"
    path.write_bytes(content.replace(b"NAME", tmp_path.name.encode()))
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert len(str(error.value)) < 1000


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "", "/dev/zero"):
        with pytest.raises(
            ConfigError, match=r"cannot be read \(it is not a regular file\): --config takes a YAML file"
        ):
            load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / ("x" * 5000))


def test_a_circle_of_bases_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: base leads back to .*a\.yaml"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "/runs/run #1",
            "2026",
            "2026-03-01",
            "@scratch",
            "%x",
            "`x`",
            "a: b",
            "- a",
            "[x",
            "{x}",
            "*x",
            "&x",
            "!x",
            "|",
        ),
        *("true", "null", "1e3", "'quoted'", '"', "a=b", " blanks ", "café", "声", "caf\udce9", "|"),
    ],
)
def test_a_path_on_the_command_line_is_what_the_user_typed(file: Path, tmp_path: Path, typed: str) -> None:
    config = load_config(file, [f"output_dir={typed}", f"model_dir={typed}", f"data.validation={typed.lstrip('[{')}"])
    assert config.output_dir == config.model_dir == typed
    assert config.data.validation == (Source(typed.lstrip("[{")),)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("typed", ["2026", "2026-03-01", "1e3", "yes", "0x10", "1_000", "12:30:45"])
def test_a_path_in_a_file_is_what_the_user_typed(file: Path, typed: str) -> None:
    file.write_text(f"{file.read_text()}output_dir: {typed}\n")
    assert load_config(file).output_dir == typed


def test_a_folder_with_brackets_in_its_name_is_no_list(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[24k] speech").mkdir()
    assert load_config(file, ["data.train=[24k] speech"]).data.train == (Source("[24k] speech"),)


def test_a_tilde_is_the_home_folder_wherever_a_path_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("OUTPUT_DIR", "~/runs")
    file.write_text(
        "model_dir: ~/release\ndata: {train: [~/a, {path: ~/b}], validation: ~/c}\nlosses: {asr_cache: ~/d}\n"
    )
    config = load_config(file, ["hf_cache=~/cache", "start_from=~"])
    assert (config.output_dir, config.model_dir) == ("/home/anna/runs", "/home/anna/release")
    assert [source.path for source in (*config.data.train, *config.data.validation)] == [
        f"/home/anna/{name}" for name in "abc"
    ]
    assert (config.losses.asr_cache, config.hf_cache) == ("/home/anna/d", "/home/anna/cache")
    assert config.start_from == "/home/anna"


def test_the_projects_configurations_work_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Path.cwd()
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/demo.yaml")
    assert Path(config.model_dir) == project / "data/demo/release"
    assert config.data.train == (Source(str(project / "data/demo/seen.parquet")),)
    assert config.output_dir == "runs/demo_encoder"
    assert load_config("configs/ablations/recipe.yaml", ["model_dir=x"]).steps > 0
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.yaml").write_text("steps: 0\n")
    with pytest.raises(ConfigError, match="steps is 0"):
        load_config("configs/demo.yaml")


def test_a_written_configuration_reads_back_the_same(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["losses.l1=0.25"])
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


def test_a_checkpoint_of_another_configuration_is_refused_with_the_keys(file: Path) -> None:
    before = dump_config(load_config(file))
    check_same_run(
        before,
        dump_config(load_config(file, ["steps=5", "save_every=9", "activation_checkpointing=true", "accumulate=2"])),
    )
    with pytest.raises(ConfigError, match=r"losses\.mel \(4\.0 there, 2\.0 now\), seed \(0 there, 1 now\)"):
        check_same_run(before, dump_config(load_config(file, ["losses.mel=2", "seed=1"])))


def test_a_setting_that_the_checkpoints_version_did_not_have_counts_as_its_default(settings: Path) -> None:
    now = yaml.safe_load(dump_config(load_config(settings, ["losses.inversion=1", "data.pairs=[a]"])))
    before = yaml.safe_load(dump_config(load_config(settings)))
    for values in (before["losses"], now["losses"]):
        del values["inversion_temperature"]
    del before["losses"]["inversion"], before["data"]["pairs"]
    check_same_run(yaml.safe_dump(before), dump_config(load_config(settings)))
    with pytest.raises(ConfigError, match=r"data\.pairs .*losses\.inversion \(0\.0 there, 1\.0 now\)"):
        check_same_run(yaml.safe_dump(before), yaml.safe_dump(now))


def test_the_same_run_goes_on_whatever_way_its_paths_are_spelt(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("release", "a", "b", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    before = dump_config(load_config(file, ["model_dir=release", "data.train=[a, {path: b}]"]))
    monkeypatch.chdir(tmp_path / "elsewhere")
    spellings = (
        ["model_dir=../release/", "data.train=[../a/, ../b]", "data.validation=../b/../b"],
        [f"model_dir={tmp_path}/a/../release", f"data.train=[{tmp_path}/a, {tmp_path}/./b]", "data.validation=../b"],
        ["model_dir=../release", "data.train=[../link, ../elsewhere/../b]", f"data.validation={tmp_path}//b"],
    )
    for spelt in spellings:
        check_same_run(before, dump_config(load_config(file, spelt)), str(tmp_path))
    others = (
        (["data.train=[../a]"], "data.train"),
        (["data.train=[../b, ../a]"], "data.train"),
        (["data.train=[{path: ../a, weight: 1}, {path: ../b, weight: 1}]"], "data.train"),
        (["data.validation=../a"], "data.validation"),
        (["model_dir=../a"], "model_dir"),
    )
    for spelt, named in others:
        with pytest.raises(ConfigError, match=rf"another configuration: {named} \(.*add moved=true"):
            check_same_run(before, dump_config(load_config(file, [*spellings[0], *spelt])), str(tmp_path))


def test_moved_data_is_named_by_a_setting(file: Path) -> None:
    before = dump_config(load_config(file, ["data.train=[/old/a, {path: /old/b}]", "losses.asr_teacher=/old/small.pt"]))
    now = ["data.train=[/new/a, /new/b]", "losses.asr_teacher=/new/small.pt", "model_dir=/new/release"]
    with pytest.raises(ConfigError, match="add moved=true"):
        check_same_run(before, dump_config(load_config(file, now)))
    check_same_run(before, dump_config(load_config(file, [*now, "moved=true"])))
    with pytest.raises(ConfigError, match=r"data\.train \("):
        check_same_run(before, dump_config(load_config(file, [*now, "moved=true", "data.train=[/new/a]"])))
    with pytest.raises(
        ConfigError, match=r"configuration: seed \(0 there, 1 now\); choose another output_dir, or the same v"
    ):
        check_same_run(before, dump_config(load_config(file, [*now, "moved=true", "seed=1"])))


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_old_name_of_a_setting_is_refused_with_the_new_one(file: Path, old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{old} was renamed: write {new}")):
        load_config(file, [f"{old}=0"])


def test_a_checkpoint_with_the_old_names_of_settings_is_the_same_run(file: Path) -> None:
    now = dump_config(load_config(file))
    before = now
    for old, new in RENAMED.items():
        before = before.replace(f" {new.rpartition('.')[2]}:", f" {old.rpartition('.')[2]}:")
    assert before != now
    check_same_run(before, now)


def test_a_crop_has_to_fit_into_the_teachers_window(file: Path) -> None:
    window = ["losses.asr_context_seconds=3", "data.crop_seconds=4"]
    assert load_config(file, window).losses.asr == 0
    with pytest.raises(ConfigError, match=r"data\.crop_seconds is 4\.0, expected at most .* 3\.0"):
        load_config(file, [*window, "losses.asr=1"])


def test_a_file_changes_the_settings_of_its_base(file: Path) -> None:
    file.with_name("other.yaml").write_text("base: run.yaml\nlosses:\n  mel: 2\ndata:\n  train: [c]\n")
    config = load_config(file.with_name("other.yaml"))
    assert (config.model_dir, config.losses.mel, config.losses.stft) == ("somewhere", 2.0, 1.0)
    assert config.data.train == (Source("c"),)
    assert config.data.validation == (Source("b"),)


def test_a_base_that_is_not_there_is_named(file: Path) -> None:
    file.write_text("base: gone.yaml\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        load_config(file)


@pytest.mark.parametrize("path", sorted(Path("configs").rglob("*.yaml")), ids=str)
def test_every_file_of_settings_can_be_read(path: Path) -> None:
    speech = [] if "v3" in path.name else ["data.train=a", "data.validation=b"]
    assert load_config(path, ["model_dir=somewhere", *speech]).steps > 0
