"""Macro-F1, the confusion matrix and outputs without a label, against scikit-learn and definitions."""

from typing import Any

import numpy as np
import pytest

from cotmi_jax.evaluation.label_scores import find_label_set, is_unparsable, label_scores, label_table
from cotmi_jax.evaluation.metrics import METRICS
from cotmi_jax.evaluation.scores import clustered_share, wilson_interval

LABELS = ["yes", "no", "maybe"]


def line(gold: str, said: str, number: int = 0, choices: list[str] = LABELS, cluster: str = "") -> Any:
    return {
        "id": f"own/test/{number}",
        "label": gold,
        "predicted_label": said,
        "correct": gold == said,
        "choices": choices,
        "cluster": cluster or f"own/test/{number}",
    }


def made(size: int, seed: int = 0) -> list[Any]:
    draw = np.random.default_rng(seed)
    golds = draw.choice(LABELS, size, p=[0.6, 0.3, 0.1])
    saids = np.where(draw.random(size) < 0.7, golds, draw.choice([*LABELS, "perhaps"], size))
    return [line(str(gold), str(said), number) for number, (gold, said) in enumerate(zip(golds, saids, strict=True))]


def test_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    lines = made(300)
    gold, said = ([each[key] for each in lines] for key in ("label", "predicted_label"))
    table = label_table(lines, draws=50)
    assert table["labels"] == LABELS
    assert table["confusion"] == metrics.confusion_matrix(gold, said, labels=[*LABELS, "perhaps"])[:3].tolist()
    assert table["macro_f1"]["value"] == pytest.approx(metrics.f1_score(gold, said, labels=LABELS, average="macro"))
    columns = metrics.precision_recall_fscore_support(gold, said, labels=LABELS)
    for name, column in zip(("precision", "recall", "f1", "n"), columns, strict=True):
        np.testing.assert_allclose([row[name] for row in table["per_label"]], column, err_msg=name)
    assert all(row["interval"][0] <= row["f1"] <= row["interval"][1] for row in table["per_label"])


def test_the_interval_of_macro_f1_covers_and_resamples_clusters() -> None:
    population = label_table(made(100_000, seed=9), draws=2)["macro_f1"]["value"]
    intervals = [label_table(made(150, seed), draws=200)["macro_f1"]["interval"] for seed in range(200)]
    assert 0.9 <= np.mean([low <= population <= high for low, high in intervals]) <= 0.99
    copies = [each | {"id": f"{each['id']}.{copy}"} for each in made(150) for copy in range(9)]
    assert label_table(copies, draws=200)["macro_f1"]["interval"] == pytest.approx(intervals[0])


def test_accuracy_has_the_interval_of_its_clusters() -> None:
    lines = made(60)
    alone = METRICS["accuracy"].function(lines)["accuracy"]
    hits = [each["correct"] for each in lines]
    assert alone["interval"] == wilson_interval(sum(hits), 60)
    for number, each in enumerate(lines):
        each["cluster"] = f"c{number // 6}"
    expected = clustered_share([sum(hits[start : start + 6]) for start in range(0, 60, 6)], [6] * 10)
    assert METRICS["accuracy"].function(lines)["accuracy"] == expected != alone


def test_labels_that_are_no_closed_set_have_a_reason() -> None:
    cases = [
        ([line("( 3 + 4 )", "7", choices=[])], "gold labels are calculations, which are compared by value"),
        ([line("a", "a", 0, ["a", "b"]), line("c", "c", 1, ["c", "d"])], "the choices differ by example"),
        ([line(f"label {n}", "", n, []) for n in range(21)], "21 different gold labels: a closed set has 2 to 20"),
        ([line("a", "a", 0, [])], "1 different gold labels: a closed set has 2 to 20"),
        (
            [line("maybe", "yes", 0, ["yes", "no"])],
            "the gold label 'maybe' of example own/test/0 is none of yes, no",
        ),
    ]
    for lines, reason in cases:
        assert label_table(lines) == {"not_available": reason}
        assert label_scores(lines)["label_macro_f1"] == {"not_available": reason}
    assert find_label_set([line("0", "1", 0, ["0", "1"]), line("1", "1", 1, ["0", "1"])]) == ("0", "1")
    assert find_label_set([line("b", "", 0, []), line("a", "", 1, [])]) == ("a", "b")


def test_outputs_without_a_label_are_counted() -> None:
    assert [is_unparsable(line("yes", said)) for said in ("yes", " no ", "yess", "")] == [False, False, True, True]
    equations = [line("( 3 + 4 )", said, 0, []) for said in ("7", "( 1 + 1 )", "( 3 +", "")]
    assert [is_unparsable(each) for each in equations] == [False, False, True, True]
    assert [is_unparsable(line("free text", said, 0, [])) for said in ("other", " ")] == [False, True]
    found = label_scores([line("yes", said, number) for number, said in enumerate(("yes", "", "no", "x"))])
    assert found["unparsable"] == {"value": 0.5, "interval": wilson_interval(2, 4), "n": 4}
