"""Summaries of a judge's answers: planted effects are found, intervals follow clusters, undefined values say why."""

import numpy as np
import pytest

from cotmi_jax.evaluation.comparison import items_interval
from cotmi_jax.evaluation.judgments import bootstrap_interval, consistent, summarize_preferences, summarize_scores

NAN = float("nan")
N = 300
CLUSTER_N = np.repeat(np.arange(100), 3)


def preferences(quality_N, first=0.0, longer=0.0, words_Nx2=None, repeats=1, noise=0.5, seed=0):
    """A judge's answers, 1 or -1, by a quality of ours over theirs and its liking of the first and of the longer."""
    draw = np.random.default_rng(seed)
    words_Nx2 = draw.integers(5, 30, (len(quality_N), 2)) if words_Nx2 is None else words_Nx2
    length_N = np.sign(words_Nx2[:, 0] - words_Nx2[:, 1])
    position_2 = np.array([1, -1])
    value = (quality_N + longer * length_N)[:, None, None] + first * position_2
    return np.sign(value + noise * draw.normal(size=(len(quality_N), repeats, 2))), words_Nx2


def test_scores_have_a_mean_over_items_with_an_interval_over_clusters():
    draw = np.random.default_rng(0)
    score_NxR = np.clip(np.repeat(draw.integers(1, 6, 100), 3)[:, None] + draw.integers(-1, 2, (N, 2)), 1, 5).astype(
        float
    )
    score_NxR[0, 1] = NAN
    words_N = (3 * np.nanmean(score_NxR, axis=1) + draw.normal(size=N)).astype(int)
    found = summarize_scores(score_NxR, words_N, CLUSTER_N)
    mean_N = np.nanmean(score_NxR, axis=1)
    expected = items_interval(mean_N, CLUSTER_N)
    assert found["score"] == {"value": mean_N.mean(), "interval": (expected.low, expected.high), "n": N}
    independent = items_interval(mean_N)
    assert expected.high - expected.low > 1.4 * (independent.high - independent.low)
    assert found["length_correlation"]["value"] > 0.9
    low, high = found["repeat_agreement"]["interval"]
    assert 0.5 < low < found["repeat_agreement"]["value"] < high < 1
    assert found["repeat_equal"]["value"] == np.mean(score_NxR[1:, 0] == score_NxR[1:, 1])


def test_raw_agreement_of_repeats_overstates_it():
    draw = np.random.default_rng(0)
    score_NxR = np.where(draw.random((N, 2)) < 0.9, 4.0, 3.0)  # a judge that nearly always says 4, whatever it reads
    found = summarize_scores(score_NxR, np.arange(N), CLUSTER_N)
    assert found["repeat_equal"]["value"] > 0.75
    low, high = found["repeat_agreement"]["interval"]
    assert low < 0.0 < high < 0.3


def test_the_better_side_wins_and_an_unbiased_judge_shows_no_bias():
    verdict, words = preferences(np.full(N, 0.6))
    found = summarize_preferences(verdict, words, CLUSTER_N)
    assert found["preference"]["interval"][0] > 0.5 and found["wins"]["value"] > 0.7
    shares = [found[name]["value"] for name in ("wins", "losses", "ties")]
    assert sum(shares) == pytest.approx(1) and found["ties"]["value"] == pytest.approx(found["flips"]["value"])
    for name in ("first_wins", "longer_wins"):
        low, high = found[name]["interval"]
        assert low < 0.5 < high, name


def test_planted_position_and_length_bias_are_found():
    quality_N = np.zeros(N)
    verdict, words = preferences(quality_N, first=0.6)
    found = summarize_preferences(verdict, words, CLUSTER_N)
    assert found["first_wins"]["interval"][0] > 0.7 and found["flips"]["interval"][0] > 0.5
    assert found["order_agreement"]["value"] < 0.1 and abs(found["preference"]["value"]) < 0.2
    second = summarize_preferences(preferences(quality_N, first=-0.6)[0], words, CLUSTER_N)
    assert second["first_wins"]["interval"][1] < 0.3
    verdict, words = preferences(quality_N, longer=0.6)
    found = summarize_preferences(verdict, words, CLUSTER_N)
    assert found["longer_wins"]["interval"][0] > 0.85 and found["wins_if_longer"]["value"] > 0.9
    assert found["wins_if_shorter"]["value"] < 0.1


def test_sides_change_sign_with_the_workdirs():
    verdict, words = preferences(np.full(N, 0.3), first=0.2, longer=0.3, repeats=2)
    ours = summarize_preferences(verdict, words, CLUSTER_N)
    theirs = summarize_preferences(-verdict[..., ::-1], words[:, ::-1], CLUSTER_N)
    assert theirs["preference"]["value"] == pytest.approx(-ours["preference"]["value"])
    assert theirs["wins"] == ours["losses"] and theirs["wins_if_shorter"]["n"] == ours["wins_if_longer"]["n"]
    for name in ("ties", "flips", "first_wins", "longer_wins", "repeat_agreement"):
        assert theirs[name]["value"] == pytest.approx(ours[name]["value"]), name


def test_an_answer_that_flips_or_is_a_tie_once_is_a_tie_and_a_missing_one_is_no_comparison():
    verdict_NxRx2 = np.array([[[1, 1], [1, -1]], [[0, 1], [-1, -1]], [[NAN, 1], [0, 0]]])
    assert np.array_equal(consistent(verdict_NxRx2), [[1, 0], [0, -1], [NAN, 0]], equal_nan=True)
    found = summarize_preferences(verdict_NxRx2, np.ones((3, 2)), np.arange(3))
    assert found["wins"]["n"] == 5 and found["flips"]["value"] == 2 / 5 and found["ties"]["value"] == 3 / 5
    assert found["preference"]["value"] == pytest.approx((0.5 - 0.5 + 0) / 3)
    assert found["first_wins"] | {"interval": None} == {"value": 4 / 7, "interval": None, "n": 7}
    assert "different length" in found["longer_wins"]["not_available"]


def test_what_is_not_defined_has_its_reason():
    found = summarize_scores(np.full((6, 1), 4.0), np.arange(6), np.zeros(6))
    assert found["score"] == {"value": 4.0, "interval": None, "n": 6}  # one cluster
    assert "are equal" in found["length_correlation"]["not_available"]
    assert "--repeats=2" in found["repeat_agreement"]["not_available"]
    found = summarize_scores(np.full((6, 2), 4.0), np.arange(6), np.arange(6))
    assert "one answer only" in found["repeat_agreement"]["not_available"]
    ties = summarize_preferences(np.zeros((4, 1, 2)), np.ones((4, 2)), np.arange(4))
    assert ties["first_wins"]["not_available"] == "every answer is a tie" and ties["ties"]["value"] == 1


def test_the_bootstrap_draws_clusters_and_needs_two():
    value_N = np.repeat(np.random.default_rng(0).normal(size=100), 3)
    low, high = bootstrap_interval(lambda items: value_N[items].mean(), CLUSTER_N)
    expected = items_interval(value_N, CLUSTER_N)
    assert high - low == pytest.approx(expected.high - expected.low, rel=0.15)
    assert bootstrap_interval(lambda items: 1.0, np.zeros(5)) is None
    assert bootstrap_interval(lambda items: NAN, np.arange(5)) is None
