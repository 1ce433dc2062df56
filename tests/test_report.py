"""The report, as text and in a real browser."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codec import Codec, load_release
from codec.checkpoint import with_encoder
from evaluation import Compared, Speech, add_agreement, compare, evaluate, evaluate_originals, open_judges, read_speech
from evaluation.codes import read_presets
from evaluation.judges.judge import Metric
from evaluation.report.charts import Series, lines
from evaluation.report.page import recovered, write_report
from evaluation.report.training_curves import CurvesError, read_curves
from evaluation.results import Results
from evaluation.statistics import Interval
from losses.shaping import voices_target
from tests.run_metrics import METRICS

DEMO = Path("data/demo")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PHONE, DESKTOP = (390, 844), (1280, 900)

pytestmark = pytest.mark.usefixtures("one_thread_for_all")


@pytest.fixture(scope="module")
def one_thread_for_all() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Codec]:
    """Results on two clips, the stand-in's encoder against itself. One clip's name tries to inject a script."""
    folder = tmp_path_factory.mktemp("evaluated")
    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], str(folder / "cache"), limit=2)
    speech[0] = replace(speech[0], name='<script>alert("name")</script>')
    codec = with_encoder(load_release(DEMO / "release"), DEMO / "withheld_encoder.safetensors")
    judges, _ = open_judges(["distances", "pesq", "estoi"])
    voices = DEMO / "release" / "voice_embedding"
    target, presets = voices_target(codec, voices), read_presets(voices, codec.config.embedding_dim)
    scores = [
        evaluate(codec, speech, judges, name=name, presets=presets, target=target) for name in ("encoder", "against")
    ]
    torch.manual_seed(0)
    fresh = load_release(DEMO / "release", torch.float32).with_new_encoder().to(torch.bfloat16)
    scores.append(evaluate(fresh, speech, judges, name="untrained", presets=presets, target=target))
    for each in scores:
        add_agreement(codec, each, scores[1])
    settings = {
        "encoder": "withheld",
        "encoders": ["encoder: withheld"],
        "against": "withheld",
        "release": "the demo's",
        "data": ["unseen"],
        "seed": 0,
    }
    settings |= {"arithmetic": "bf16", "machine": "a machine", "resampler": "soxr", "whisper": "none", "language": "en"}
    settings |= {"clips": "all", "without": [], "extra_systems": {}}
    settings |= {
        "speaker_model": "none",
        "bootstrap_draws": 2000,
        "bootstrap_over": "speakers",
        "versions": {"torch": torch.__version__},
    }
    results = Results(
        settings=settings,
        speech=speech,
        encoders=scores[:1],
        originals=evaluate_originals(speech, judges),
        target=target,
        presets=presets,
        levels=codec.config.acoustic_codebook_size,
        other=scores[1],
        untrained=scores[2],
        comparisons={"encoder": compare(*scores)},
        missing={"words": "Whisper is not here"},
    )
    return results, codec


@pytest.fixture(scope="module")
def page(evaluated: tuple[Results, Codec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "metrics.jsonl").write_text(METRICS, encoding="utf-8")
    return write_report(folder / "report", *evaluated, 2, read_curves(folder / "metrics.jsonl"))


def test_the_page_needs_no_other_file_and_no_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{1,40})', text)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in text
    assert "url(" not in text
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]


def test_names_from_the_data_are_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert '<script>alert("name")' not in text
    assert "&lt;script&gt;alert" in text


def test_what_was_left_out_is_on_the_page(page: Path) -> None:
    assert "Whisper is not here" in page.read_text(encoding="utf-8")


def test_a_bar_over_fewer_clips_than_all_says_how_many() -> None:
    share = Interval(0.5, 0.4, 0.6)
    metrics = [Metric(name, name, "lower", "made up") for name in ("all", "some")]
    compared = {m.name: Compared(m, 3, share, share, clips) for m, clips in zip(metrics, (3, 2), strict=True)}
    speech = [Speech(str(i), torch.zeros(1)) for i in range(3)]
    bars = recovered(SimpleNamespace(comparisons={"encoder": compared}, speech=speech))  # type: ignore[arg-type]
    assert [bar.text for bar in bars["encoder"]] == ["50 % [40, 60]", "50 % [40, 60], 2 clips"]


def test_of_a_step_that_was_logged_twice_the_last_value_counts(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(METRICS, encoding="utf-8")
    charts = {chart.title: chart for chart in read_curves(tmp_path / "metrics.jsonl")}
    shares = ["shares of the gradient, waveform", "shares of the gradient, latent"]
    assert list(charts) == ["mel", "learning_rate", "acoustic_at_ends", *shares]
    assert charts["mel"].series == ("training", "validation")
    assert charts[shares[0]].series == ("mel", "l1")
    assert charts[shares[1]].series == ("commitment",)
    assert charts["mel"].svg.count("<circle") == 1  # a curve of one point is a point


def test_a_metric_that_is_always_nan_has_no_curve(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "asr": NaN, "mel": 1, "validation/mel": NaN}\n')
    assert [(chart.title, chart.series) for chart in read_curves(tmp_path / "metrics.jsonl")] == [
        ("mel", ("training",))
    ]


def test_every_series_has_a_colour_and_its_legend_has_the_same(page: Path) -> None:
    chart = lines("many", [Series(str(i), [(0.0, float(i)), (1.0, 2.0)]) for i in range(12)], "step")
    assert chart is not None
    styles = re.findall(r'class="line (s\d+)"', chart.svg)
    assert styles == [style for style, _ in chart.legend] == [*(f"s{i}" for i in range(1, 11)), "s1", "s2"]
    text = page.read_text(encoding="utf-8")
    for style in set(styles):
        assert f".{style} {{ --c: var(--{style}); }}" in text
        assert text.count(f"--{style}: #") == 2  # in both schemes


def test_of_several_systems_the_first_ones_bars_are_unfolded(evaluated: tuple[Results, Codec], tmp_path: Path) -> None:
    results, codec = evaluated
    several = replace(
        results, comparisons=dict.fromkeys(("encoder", "older", "oldest"), results.comparisons["encoder"])
    )
    text = write_report(tmp_path, several, codec, 1).read_text(encoding="utf-8")
    assert re.findall(r'<h3 class="missing">(.+)</h3>', text) == ["encoder"]
    folded = re.findall(
        r'<details><summary>(\w+)</summary>\s*<dl class="card bars">.*?</dl>\s*</details>', text, re.DOTALL
    )
    assert folded == ["older", "oldest"]


def test_of_many_versions_the_first_nine_have_a_key(evaluated: tuple[Results, Codec], tmp_path: Path) -> None:
    results, codec = evaluated
    encoders = [replace(results.main, name=f"step_{i}") for i in range(10)]
    many = replace(results, encoders=encoders, comparisons={})
    text = write_report(tmp_path, many, codec, 1).read_text(encoding="utf-8")
    assert re.findall(r"<h4><kbd>(\d+)</kbd> ", text) == [str(i) for i in range(1, 10)]
    assert text.count("<h4>") == 12  # the original, ten encoders, the other one
    assert text.count("<kbd>9</kbd>") == 2  # and in the sentence above
    assert "<kbd>10</kbd>" not in text


@pytest.mark.parametrize("line", ["{", '{"mel": 1}', '{"step": 1, "mel": "much"}', "[]"])
def test_a_bad_metrics_file_is_an_error_that_names_the_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "mel": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CurvesError, match="line 2"):
        read_curves(tmp_path / "metrics.jsonl")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not BROWSER or not DRIVER:
        pytest.skip("NO CHROMIUM HERE: the report was not opened in a browser (apt-get install chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"):
        options.add_argument(argument)
    for argument in ("--disable-background-networking", "--disable-component-update", "--disable-sync"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get(page.resolve().as_uri())
    return browser


def test_it_loads_without_messages_in_the_console(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert opened.title == "Encoder report"


def test_every_player_has_a_source_that_decodes_to_the_same_length(opened: Any) -> None:
    found = opened.execute_async_script("""
        const done = arguments[0];
        const context = new OfflineAudioContext(1, 1, 24000);
        Promise.all([...document.querySelectorAll("audio")].map(async (player) => {
            const bytes = Uint8Array.from(atob(player.src.split(",")[1]), (c) => c.charCodeAt(0));
            const audio = await context.decodeAudioData(bytes.buffer);
            const peak = audio.getChannelData(0).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
            return [audio.sampleRate, audio.length, peak, player.error && player.error.message];
        })).then(done, (error) => done(String(error)));
    """)
    assert len(found) == 6  # two clips; original, encoder, against
    for rate, _, peak, error in found:
        assert rate == 24000
        assert peak > 0.01
        assert error is None
    assert len({samples for _, samples, _, _ in found}) == 2


def test_every_picture_loads_and_has_a_text_alternative(opened: Any) -> None:
    pictures = opened.execute_script(
        "return [...document.images].map((i) => [i.complete && i.naturalWidth > 0, i.alt])"
    )
    assert len(pictures) == 10  # a spectrogram a version, a code raster a reconstruction
    assert all(shown and alt for shown, alt in pictures)
    unnamed = opened.execute_script(
        "return [...document.querySelectorAll('svg, audio')].filter((e) => !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_screen(opened: Any, size: tuple[int, int]) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_colour_schemes(opened: Any, scheme: str) -> None:
    """WCAG 2 asks for a contrast of at least 4.5: for normal text, soft text and links, on both backgrounds."""
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    value = "return getComputedStyle(document.documentElement).getPropertyValue('--' + arguments[0])"
    colours = {name: opened.execute_script(value, name) for name in ("page", "card", "ink", "soft", "accent")}
    for text in ("ink", "soft", "accent"):
        for ground in ("page", "card"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (scheme, text, ground)


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_key_switches_to_another_version_at_the_same_moment_and_only_one_plays(opened: Any) -> None:
    first, second = opened.find_elements("css selector", ".clip audio")[:2]
    opened.execute_script("arguments[0].focus(); arguments[0].currentTime = 1", first)
    # it plays slowly, so that a busy machine that looks seconds later still sees about the moment of the switch
    opened.execute_script("arguments[0].playbackRate = 0.0625", second)
    first.send_keys("2")
    state = "return [...arguments].map((p) => [p.paused, p.currentTime, document.activeElement === p])"
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        before, after = opened.execute_script(state, first, second)
        if not after[0] and after[1] > 1:
            break
    assert after[1] == pytest.approx(1, abs=0.9)
    assert [before[0], after[0], after[2]] == [True, False, True]
    assert opened.get_log("browser") == []
