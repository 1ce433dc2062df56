"""Intervals, recovered shares, tables and requirements, on made-up numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.codes import acoustic_histogram, entropy
from evaluation.comparison import compare
from evaluation.judges.judge import Measurement, Metric
from evaluation.judges.words import errors
from evaluation.report.charts import round_numbers
from evaluation.requirement import RequirementError, read_requirement
from evaluation.scoring import ClipScores, Scores
from evaluation.speech import Speech
from evaluation.statistics import Interval, difference, grouped, mean, recovered, resampled, resampled_counts
from evaluation.table import as_share, folded

ONES = np.ones(40)
ERRORS = Metric("errors", "errors", "lower", "made up")


def _scores(name: str, values: list[float | None], metric: Metric = ERRORS) -> Scores:
    clips = [ClipScores(Speech(f"clip {i}", torch.zeros(1))) for i in range(len(values))]
    for clip, value in zip(clips, values, strict=True):
        if value is not None:
            clip.values[metric.name] = Measurement(value)
    return Scores(name, (metric,), clips, [])


def test_every_resample_draws_as_many_clips_as_given_and_a_seed_repeats() -> None:
    clips = tuple(range(7))
    counts = resampled_counts(clips, seed=1)
    assert (counts.sum(axis=1) == 7).all()
    assert np.array_equal(counts, resampled_counts(clips, seed=1))
    assert not np.array_equal(counts, resampled_counts(clips, seed=2))


def test_clips_of_a_speaker_are_drawn_together_and_clips_of_unknown_speakers_one_by_one() -> None:
    groups = grouped(["b", "", "a", "b", ""])
    assert groups == (0, 1, 2, 0, 3)
    counts = resampled_counts(groups, seed=0)
    assert np.array_equal(counts[:, 0], counts[:, 3])
    assert (counts[:, [0, 1, 2, 4]].sum(axis=1) == 4).all()
    assert grouped(["a", "a", "a"]) == grouped(["", "", ""]) == (0, 1, 2)
    assert [resampled(speakers) for speakers in (["a", "b"], ["a", ""], ["a", "a"], [""])] == [
        *("speakers", "speakers"),
        *("clips", "clips"),
    ]


def test_with_one_clip_per_speaker_the_interval_is_that_of_clips() -> None:
    values, weights = np.random.default_rng(0).uniform(1, 2, size=(2, 40))
    speakers = [f"speaker {i}" for i in reversed(range(40))]
    assert mean(values, weights, 0, speakers) == mean(values, weights, 0)
    assert recovered(values, values - 1, values + 1, weights, 0, speakers) == pytest.approx((0.5, 0.5, 0.5))


def test_more_clips_of_the_same_speakers_with_the_same_values_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=20)
    speakers = [str(i) for i in range(20)]
    once, tenfold = mean(values, np.ones(20), 0, speakers), mean(np.tile(values, 10), np.ones(200), 0, 10 * speakers)
    assert tenfold == pytest.approx(once)
    one_often, weights = np.append(values, [values[0]] * 9), np.ones(29)
    by_speaker, by_clip = mean(one_often, weights, 0, [*speakers, *["0"] * 9]), mean(one_often, weights, 0)
    assert by_speaker.value == by_clip.value
    assert _width(by_speaker) > 1.2 * _width(by_clip)


def _width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_totals_and_comparisons_resample_speakers() -> None:
    def scores(name: str, values: np.ndarray, speakers: list[str]) -> Scores:
        found = _scores(name, list(values))
        for scored, speaker in zip(found.clips, speakers, strict=True):
            scored.clip = replace(scored.clip, speaker=speaker)
        return found

    draw = np.random.default_rng(0)
    encoder, other, worst = (draw.normal(level, 0.5, size=6) for level in (3, 1, 9))
    names = ["a", "b", "c", "d", "", "f"]
    few = [scores(*each, names) for each in (("encoder", encoder), ("against", other), ("untrained", worst))]
    many = [
        scores(
            name, np.repeat(values, 5), [speaker or f"unknown {i}" for i, speaker in enumerate(names) for _ in "12345"]
        )
        for name, values in (("encoder", encoder), ("against", other), ("untrained", worst))
    ]
    assert few[0].total("errors") == pytest.approx(many[0].total("errors"))
    one, five = compare(*few)["errors"], compare(*many)["errors"]
    assert one.difference == pytest.approx(five.difference)
    assert one.recovered == pytest.approx(five.recovered)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_for_many_clips() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=400)
    found = mean(values, np.ones(400), seed=0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_with_weights_a_total_is_errors_per_word_and_not_per_clip() -> None:
    """One error in one word and none in nine: one in ten."""
    assert mean(np.array([1.0, 0.0]), np.array([1.0, 9.0]), seed=0).value == pytest.approx(0.1)


def test_a_single_clip_has_no_interval() -> None:
    assert mean(np.array([3.0]), np.ones(1), seed=0) == (3.0, None, None)


def test_pairing_removes_what_the_clips_have_in_common() -> None:
    clips = np.random.default_rng(0).normal(0, 100, size=40)
    found = difference(clips + 1, clips, ONES, seed=0)
    assert found.value == found.low == found.high == pytest.approx(1)


def test_recovered_is_1_for_the_best_0_for_the_worst_and_between_for_what_lies_between() -> None:
    draw = np.random.default_rng(0)
    best, worst = draw.normal(1, 0.1, size=40), draw.normal(5, 0.1, size=40)
    for share in (0.0, 0.3, 1.0):
        found = recovered(worst + share * (best - worst), best, worst, ONES, seed=0)
        assert found is not None
        assert found == pytest.approx((share, share, share))


def test_there_is_no_recovered_share_if_the_two_ends_do_not_differ_significantly() -> None:
    draw = np.random.default_rng(0)
    value, best, worst = draw.normal(size=(3, 40))
    assert recovered(value, best, worst, ONES, seed=0) is None
    assert recovered(value, best, best, ONES, seed=0) is None


def test_an_encoder_against_itself_recovers_everything_and_does_not_differ() -> None:
    encoder, worst = _scores("encoder", [1.0, 2.0, 1.5, 1.2]), _scores("untrained", [9.0, 8.0, 9.5, 7.0])
    compared = compare(encoder, encoder, worst)["errors"]
    assert compared.difference == (0, 0, 0)
    assert compared.recovered == (1, 1, 1)
    assert compare(worst, encoder, worst)["errors"].recovered == (0, 0, 0)


def test_there_is_no_recovered_share_of_an_encoder_that_is_worse_than_an_untrained_one() -> None:
    better, worse = _scores("encoder", [1.0, 2.0, 1.5]), _scores("untrained", [9.0, 8.0, 9.5])
    assert compare(better, worse, better)["errors"].recovered is None


def test_only_clips_that_both_encoders_have_scores_for_are_compared() -> None:
    encoder, other = _scores("encoder", [1.0, None, 3.0]), _scores("against", [0.0, 2.0, 2.0])
    compared = compare(encoder, other, _scores("untrained", [5.0, 5.0, 5.0]))["errors"]
    assert compared.clips == 2
    assert compared.difference.value == 1
    assert compare(encoder, _scores("against", [None] * 3), other) == {}


def test_a_clip_that_the_untrained_encoder_has_no_score_for_counts_in_the_difference_only() -> None:
    encoder, other = _scores("encoder", [1.0, 2.0, 9.0]), _scores("against", [0.0, 1.0, 2.0])
    compared = compare(encoder, other, _scores("untrained", [4.0, 5.0, None]))["errors"]
    assert (compared.clips, compared.difference.value) == (3, 3)
    assert compared.recovered is not None
    assert (compared.recovered_clips, compared.recovered.value) == (2, 0.75)
    silent = compare(encoder, other, _scores("untrained", [None] * 3))["errors"]
    assert (silent.difference, silent.recovered) == (compared.difference, None)


@pytest.mark.parametrize(
    ("reference", "transcript", "words", "characters"),
    [
        ("the cat sat down", "the cat sat down", (0, 4), (0, 16)),
        ("the cat sat down", "the bat sat", (2 / 4, 4), (6 / 16, 16)),  # a substitution and a deletion
        ("one", "one two three", (2, 1), (10 / 3, 3)),  # insertions count too
        ("one two", "", (1, 2), (1, 7)),
    ],
)
def test_word_and_character_errors_of_hand_made_cases(
    reference: str, transcript: str, words: tuple[float, int], characters: tuple[float, int]
) -> None:
    found = errors(reference, transcript)
    assert found[0] == pytest.approx(words)
    assert found[1] == pytest.approx(characters)


def test_a_reference_without_words_has_no_error_rate() -> None:
    assert errors(" ", "anything") == (None, None)


def test_entropy_is_that_of_a_coin_and_of_a_constant() -> None:
    assert float(entropy(torch.tensor([0.5, 0.5]))) == pytest.approx(1)
    assert float(entropy(torch.tensor([1.0, 0.0]))) == 0


def test_the_acoustic_histogram_counts_each_dimension_separately_over_all_clips() -> None:
    codes = [torch.tensor([[5, 6], [0, 1], [2, 2]]), torch.tensor([[7], [1], [2]])]
    assert torch.allclose(acoustic_histogram(codes, 3), torch.tensor([[1 / 3, 2 / 3, 0], [0, 0, 1]]))


def test_a_requirement_is_met_or_says_what_was_measured() -> None:
    figures = {"pesq": 2.5, "recovered.mel": 0.9}
    assert read_requirement("pesq>=2.5").unmet(figures) == ""
    assert read_requirement(" pesq < 2.5 ").unmet(figures) == "pesq<2.5: it is 2.5"
    assert read_requirement("recovered.mel>0.95").unmet(figures) == "recovered.mel>0.95: it is 0.9"
    assert "wer was not measured; measured: pesq, recovered.mel" in read_requirement("wer<=0.1").unmet(figures)


@pytest.mark.parametrize("text", ["pesq", "pesq=2", "pesq>=two", ">=1", ""])
def test_a_malformed_requirement_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RequirementError, match=r"pesq>=2\.5"):
        read_requirement(text)


def test_metrics_are_shown_in_their_unit_and_without_negative_zeros() -> None:
    share = Metric("s", "s", "", "made up", percent=True)
    assert share.show(0.123) == "12.3 %"
    assert ERRORS.show(-0.0001) == "0.000"
    assert as_share(Interval(0.956, -0.001, 1.0)) == "96 % [0, 100]"
    assert as_share(Interval(-0.001, None, None)) == "0 %"
    assert as_share(None) == "–"


def test_a_table_too_wide_for_a_line_continues_below_with_its_first_columns() -> None:
    table = [["metric", "", "a" * 100, "b" * 60, "c" * 60], ["mel", "↓", "1", "2", "3"]]
    first, row, gap, second, other = folded(table)
    assert [line.split() for line in (first, row)] == [["metric", "a" * 100, "b" * 60], ["mel", "↓", "1", "2"]]
    assert gap == ""
    assert [line.split() for line in (second, other)] == [["metric", "c" * 60], ["mel", "↓", "3"]]
    assert folded([["metric", "", "a" * 300]]) == ["metric    " + "a" * 300]


def test_axes_have_ticks_at_round_numbers() -> None:
    assert round_numbers(0.3, 9.7, 5) == [2, 4, 6, 8]
    assert round_numbers(-0.1, 0.31, 4) == [0, 0.2]
