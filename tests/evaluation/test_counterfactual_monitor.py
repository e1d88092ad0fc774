"""Estimates on counterfactual pairs: of planted features with a known answer, and of a student's."""

import math
from typing import Any

import jax
import numpy as np
import pytest
import runs
from helpers import toy_student
from splits import sequence

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import counterfactual_monitor as module
from cotmi_jax.evaluation.counterfactual_monitor import (
    CounterfactualMonitor,
    PairedFeatures,
    contradiction_auc,
    pair_splits,
    read_counterfactuals,
)
from cotmi_jax.mi.fitting import FitConfig
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.parallel.mesh import make_mesh

LOG_2 = math.log(2.0)
DIMS, ANSWERS = 6, 4


FITTING, TEST = 800, 300  # everywhere, so that programs are compiled once


def planted(num: int, seed: int, agreement: float) -> PairedFeatures:
    """z holds x and the label's answer, v holds x and the rationale's, which is the label's with a probability."""
    draw, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    code, other_code = fixed.normal(0, 3, (2, ANSWERS, DIMS))
    answers_Nx2 = np.stack([draw.permutation(ANSWERS)[:2] for _ in range(num)])
    told_Nx2 = np.where(draw.random((num, 1)) < agreement, answers_Nx2, answers_Nx2[:, ::-1])
    x_Nx1xD = draw.normal(size=(num, 1, DIMS))
    log_Nx2 = draw.normal(size=(num, 2))
    z, v = x_Nx1xD + code[answers_Nx2], 2 * x_Nx1xD + other_code[told_Nx2]
    return PairedFeatures(z, v, log_Nx2, log_Nx2 + 10 * (agreement - 0.5), np.arange(num))


@pytest.fixture(autouse=True)
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIT", FitConfig(num_pairs=128, steps=150, every=50, learning_rate=1e-2))
    monkeypatch.setattr(module, "_CRITIC", CriticConfig("concat", hidden=64, layers=1))
    monkeypatch.setattr(module, "REFITS", 2)


def inside(score: dict[str, Any], value: float, slack: float = 0.0) -> bool:
    low, high = score["interval"]
    return bool(low - slack <= value <= high + slack)


@pytest.mark.slow
def test_a_rationale_that_is_a_function_of_the_label_reads_log_2_and_an_independent_one_0() -> None:
    one, none = (read_counterfactuals(planted(FITTING, 1, a), planted(TEST, 2, a), 0) for a in (1.0, 0.5))
    assert 0.95 * LOG_2 < one.information["value"] <= LOG_2 and one.contradiction["value"] > 0.99
    assert none.information["value"] <= 0.01 and inside(none.information, 0.0, 0.01)
    assert inside(none.contradiction, 0.5, 0.02)
    assert one.control["value"] < 0.02 and one.control["value"] < one.information["value"] - 0.5
    # Of a binary symmetric channel with error .1: log 2 − H(.1).
    some = read_counterfactuals(planted(FITTING, 1, 0.9), planted(TEST, 2, 0.9), 0)
    truth = LOG_2 + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    assert 0.75 * truth < some.information["value"] < truth + 0.06
    assert abs(some.contradiction["value"] - 0.9) < 0.08


def test_what_labels_or_rationales_alone_show_pays_nothing() -> None:
    """A rule that writes all counterfactuals in a manner of its own leaves no trace where answers are unrelated."""

    def marked(features: PairedFeatures, sides: str) -> PairedFeatures:
        mark = np.array([[[0.0], [5.0]]])
        return features._replace(
            z_Nx2xD=features.z_Nx2xD + mark * ("z" in sides), v_Nx2xD=features.v_Nx2xD + mark * ("v" in sides)
        )

    for side in "zv":
        found = read_counterfactuals(*(marked(planted(n, n, 0.5), side) for n in (FITTING, TEST)), 0)
        assert found.information["value"] <= 0.01, side


def test_the_control_fails_where_critics_are_fitted_to_the_test_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CRITIC", CriticConfig("concat", hidden=64))  # two layers memorize more
    exchanged = module._exchanged(planted(FITTING, 1, 1.0), 0)
    test = PairedFeatures(*(each[-TEST:] for each in exchanged))
    memorized = module._fit(exchanged, test, 0, steps=150).value_N.mean()
    honest = module._fit(exchanged, module._exchanged(planted(TEST, 2, 1.0), 1), 0, steps=150).value_N.mean()
    assert memorized > 0.1 and honest < 0.02


def test_a_number_of_steps_is_kept_and_early_stopping_chooses_the_best() -> None:
    fitting, test = planted(FITTING, 1, 0.5), planted(TEST, 2, 0.5)
    stopped, full = (module._fit(fitting, test, 0, steps=n) for n in (None, 150))
    assert full.steps == 150 and full.value_N.mean() < stopped.value_N.mean() <= 0.01
    assert (full.value_N <= LOG_2 + 1e-6).all() and full.score_NxMxM.shape == (TEST, 2, 2)
    oracle = [
        LOG_2
        + np.mean(
            [
                s[i, i] - np.logaddexp(s[i, i], s[i, 1 - i]) + s[i, i] - np.logaddexp(s[i, i], s[1 - i, i])
                for i in (0, 1)
            ]
        )
        / 2
        for s in full.score_NxMxM
    ]
    np.testing.assert_allclose(full.value_N, oracle, atol=1e-5)


def test_the_area_counts_pairs_and_its_interval_covers_it() -> None:
    draw = np.random.default_rng(0)
    score_NxMxM = draw.normal(size=(12, 2, 2)).round(1) + np.eye(2)
    agree, contradict = score_NxMxM[:, [0, 1], [0, 1]].ravel(), score_NxMxM[:, [0, 1], [1, 0]].ravel()
    brute = np.mean([(a > c) + 0.5 * (a == c) for a in agree for c in contradict])
    assert contradiction_auc(np.stack([score_NxMxM] * 2), np.arange(12))["value"] == pytest.approx(brute)
    truth, covered = 0.7602, []  # Φ(1/√2) for scores of variance 1 whose means differ by 1
    for seed in range(200):
        score = np.random.default_rng(seed).normal(size=(40, 2, 2)) + np.eye(2)
        covered.append(inside(contradiction_auc(np.stack([score, score]), np.arange(40)), truth))
    assert 0.90 <= np.mean(covered) <= 0.99


def test_preferences_are_shares_of_examples_with_their_agreement_by_chance() -> None:
    fitting, features = planted(FITTING, 1, 1.0), planted(TEST, 2, 1.0)
    label, rationale = (np.repeat([1, 0], [num, TEST - num]) for num in (225, 150))
    features = features._replace(
        log_label_Nx2=np.stack([label, 0 * label + 0.5], 1), log_rationale_Nx2=np.stack([rationale, 0 * label + 0.5], 1)
    )
    found = read_counterfactuals(fitting, features, 0)
    assert (found.prefers_label["value"], found.prefers_rationale["value"]) == (0.75, 0.5)
    assert found.same_preference["value"] == 0.75 and found.by_chance == 0.5
    metrics = found.metrics()
    assert metrics["mi/within"] == found.information["value"] and metrics["mi/same_preference"] == 0.75
    assert found.summary()["contradiction_auc"]["n"] == found.n == TEST
    assert [name for name, _ in found.lines(found)] == [
        "held-out I(Z;V|X)",
        "rationale contradicts label",
        "likelier than a counterfactual",
    ]
    with pytest.raises(UserError, match="counterfactuals of 19 held-out examples, critics fitted on 800: at least 20"):
        read_counterfactuals(fitting, PairedFeatures(*(each[:19] for each in features)), 0)


@pytest.mark.slow
def test_features_of_a_student_are_those_of_both_pairs_of_the_same_input() -> None:
    examples = make_arithmetic(0, 40, 0, 0).splits["train"]
    config, vocabulary = runs.tiny_config({}), Vocabulary(VOCABULARY_PATH)
    splits = pair_splits(examples, vocabulary, config, limit=24, seed=1)
    assert splits is not None and splits.own.size == splits.other.size == 24
    for task in ("predict", "explain"):
        own, other = splits.own.tasks[task], splits.other.tasks[task]
        np.testing.assert_array_equal(own.inputs.flat, other.inputs.flat)
        assert all(sequence(own.targets, i) != sequence(other.targets, i) for i in range(24))
    student = toy_student(vocab_size=vocabulary.size)
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(0, 0.5, leaf.shape).astype(np.float32), student.shapes
    )
    with jax.set_mesh(make_mesh()):
        monitor = CounterfactualMonitor(student, make_mesh(), batch_size=32)
        features = monitor.features(params, splits)
        swapped = monitor.features(params, splits._replace(own=splits.other, other=splits.own))
    for name in ("z_Nx2xD", "v_Nx2xD", "log_label_Nx2", "log_rationale_Nx2"):
        np.testing.assert_allclose(getattr(features, name), getattr(swapped, name)[:, ::-1], rtol=1e-5)
    # Log-likelihood of the first label by hand: the sum over its tokens, eos included.
    logits = student_logits(student, params, splits.own, 0)
    target = np.array(sequence(splits.own.tasks["predict"].targets, 0))
    log_p = jax.nn.log_softmax(logits)[np.arange(len(target)), target].sum()
    assert features.log_label_Nx2[0, 0] == pytest.approx(float(log_p), rel=1e-4)
    assert pair_splits([Example("own/train/0", "a", "b", "c")], vocabulary, config, limit=0, seed=0) is None


def student_logits(student: Any, params: Any, split: Any, row: int) -> jax.Array:
    predict = split.tasks["predict"]
    inputs, targets = (np.array([sequence(each, row)]) for each in (predict.inputs, predict.targets))
    bound = student.bind(params)
    return bound.make_logits()(bound.decode(bound.encode(inputs, None), inputs, targets, None))[0]
