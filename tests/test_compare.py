"""Comparison of evaluated workdirs: grouping by seed, the table in its forms, and what cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from evaluated import write_evaluated

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes the workdir of an evaluated run; the accuracy is exact, which answers are right depends on the seed."""

    def write(
        name: str, seed: int, accuracy: float = 0.5, size: int = 300, per_cluster: int = 0, **changes: Any
    ) -> str:
        right = np.random.default_rng(seed).permutation(size) < round(accuracy * size)
        lines = [
            {"id": f"svamp/test/{number}", "label": "1", "correct": bool(correct)}
            | ({"cluster": f"c{number // per_cluster}"} if per_cluster else {})
            for number, correct in enumerate(right)
        ]
        return write_evaluated(tmp_path / name, lines, **{"seed": seed, "data.dataset": "svamp", **changes})

    return write


def study(make: Make, **arms: float) -> list[str]:
    """Three seeds of each objective."""
    return [
        make(f"{name}{seed}", seed, accuracy + 0.01 * seed, objective__name=name)
        for name, accuracy in arms.items()
        for seed in range(3)
    ]


def compared(*arguments: str) -> Any:
    result = runs.command("compare", *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    return json.loads(result.out)


def test_runs_are_grouped_by_seed_and_compared(make: Make) -> None:
    workdirs = study(make, dss=0.5, standard=0.5, single_task=0.8)
    found = compared(*reversed(workdirs), f"--baseline={workdirs[0]}")
    methods = {row["method"]: row for row in found["methods"]}
    assert found["baseline"] == "dss" and (found["items"], found["clusters"]) == (300, 300)
    assert {name: row["seeds"] for name, row in methods.items()} == dict.fromkeys(
        ("single_task", "standard", "dss"), [0, 1, 2]
    )
    assert methods["dss"]["difference"] is None
    assert methods["dss"]["by_seed"] == pytest.approx([0.5, 0.51, 0.52])
    better = methods["single_task"]["difference"]
    assert better["verdict"] == "better" and better["value"] == pytest.approx(0.3) and better["paired"]
    assert better["interval"][0] > 0.2 and better["p_holm"] < 0.05
    # The same answers as the baseline, seed by seed: no difference at all.
    assert methods["standard"]["difference"]["verdict"] == "equivalent"
    assert methods["standard"]["difference"]["interval"] == [0.0, 0.0]
    assert methods["single_task"]["rank"] == {"rank": 1, "low": 1, "high": 1}


def test_an_undecided_difference_says_what_would_decide_it(make: Make) -> None:
    arms = [
        make(f"{name}{seed}", seed + shift, 0.5 + 0.02 * (seed % 2), size=3000, objective__name=name)
        for shift, name in ((0, "dss"), (7, "standard"))
        for seed in range(3)
    ]
    (_, row) = compared(*arms, "--margin=0.5")["methods"]
    difference = row["difference"]
    assert not difference["paired"] and difference["verdict"] == "undecided"
    assert difference["detectable"] > 0.005 and difference["seeds"] is None  # 3,000 examples do not resolve .5 points
    shown = runs.command("compare", *arms, "--margin=4").out
    assert "undecided: 4 needs about" in shown or "equivalent within ±4" in shown


def test_clusters_widen_intervals(make: Make) -> None:
    """Copies of an example in one cluster are one example."""
    plain = compared(
        *[make(f"p{seed}", seed, objective__name="dss") for seed in range(2)],
    )
    rows = [make(f"c{seed}", seed, per_cluster=30, objective__name="dss") for seed in range(2)]
    clustered = compared(*rows)
    assert clustered["clusters"] == 10 and plain["clusters"] == 300
    assert clustered["methods"][0]["interval"] != plain["methods"][0]["interval"]


def test_methods_are_named_by_the_keys_that_differ(make: Make) -> None:
    workdirs = [make("a", 0, objective__name="cotmi", objective__beta=0.1)]
    workdirs += [make("b", 0, objective__name="cotmi", objective__beta=0.01, mi__estimator="nwj")]
    workdirs += [make("c", 0, objective__name="dss", objective__beta=0.5, mi__estimator="dv", eval__batch_size=7)]
    workdirs += [make("d", 1, objective__name="dss", log__every=3)]
    found = compared(*workdirs)
    assert [row["method"] for row in found["methods"]] == [
        "cotmi estimator=infonce beta=0.1",
        "cotmi estimator=nwj beta=0.01",
        "dss",
    ]
    assert found["methods"][0]["not_available"] == "one run: an interval needs at least 2 seeds"
    assert "the baseline cotmi estimator=infonce beta=0.1 has one run" in found["methods"][2]["not_available"]


def test_runs_whose_best_checkpoint_was_chosen_otherwise_are_another_method(make: Make) -> None:
    rules = {"accuracy": (0, 1), "loss": (2, 3)}
    workdirs = [make(f"r{seed}", seed, eval__select_by=rule) for rule, seeds in rules.items() for seed in seeds]
    workdirs.append(make("b", 4, eval__select_by="loss", model__attention="blocked", mi__log_gradient=True))
    found = compared(*workdirs)
    assert {row["method"]: row["seeds"] for row in found["methods"]} == {
        "dss select_by=accuracy": [0, 1],
        "dss select_by=loss": [2, 3, 4],
    }


def test_extensions_of_equal_content_are_one_method_and_others_are_not(make: Make) -> None:
    workdirs = [make(f"e{seed}", seed) for seed in range(4)]
    for number, workdir in enumerate(workdirs):
        file = Path(workdir, "run.json")
        digest = "ab"[number // 2] * 64
        recorded = {"extensions": {f"/host{number}/losses.py": digest}}
        file.write_text(json.dumps(json.loads(file.read_text()) | recorded))
    assert [(row["method"], row["seeds"]) for row in compared(*workdirs)["methods"]] == [
        ("dss extensions=losses.py aaaaaaaa", [0, 1]),
        ("dss extensions=losses.py bbbbbbbb", [2, 3]),
    ]


def test_tables(make: Make) -> None:
    workdirs = study(make, dss=0.5, single_task=0.8)
    text = runs.command("compare", *workdirs).out.splitlines()
    assert text[0].split() == "method seeds accuracy, % difference, points p (Holm) detectable verdict".split()
    assert text[1].startswith("dss          3      51.0 [") and text[2].endswith("better")
    assert text[4].startswith("Label accuracy on test of svamp, 300 examples: mean over seeds")
    table = runs.command("compare", *workdirs, "--markdown").out.splitlines()
    assert (
        table[1] == "|---" * 7 + "|" and table[3].startswith("| single_task | 3 | 81.0 [") and "| +30.0 [" in table[3]
    )
    latex = runs.command("compare", *workdirs, "--latex").out
    assert r"single\_task & 3 & 81.0" in latex and r"$\pm$" in latex and r"accuracy, \%" in latex
    runs.assert_refused(runs.command("compare", *workdirs, "--latex", "--json"), "--json, --markdown and --latex")


def test_what_cannot_be_compared_is_refused(make: Make, tmp_path: Path) -> None:
    first = make("first", 0)
    cases = {
        make("set", 1, data__dataset="cqa"): "config.data.dataset 'svamp' and",
        make("labels", 1, data__label_type="llm"): "config.data.label_type 'gt' and",
        make("fewer", 1, size=30): "were evaluated on other examples of test (300 and 30)",
        make("again", 0): "have the same config and seed 0: give one of them",
        str(tmp_path / "nowhere"): "no run.json in",
    }
    for other, message in cases.items():
        runs.assert_refused(runs.command("compare", first, other), message)
    runs.assert_refused(runs.command("compare", first), "1 workdirs: give those of two or more evaluated runs")
    runs.assert_refused(
        runs.command("compare", first, first, "--split=valid"), "/first was not evaluated on valid: run"
    )
    runs.assert_refused(
        runs.command("compare", first, make("b", 1), "--baseline=c"), "--baseline=c is neither a method nor a workdir"
    )
    runs.assert_refused(
        runs.command("compare", first, make("m", 1), "--margin=0"), "--margin=0: give percentage points"
    )


@pytest.mark.parametrize("edit", ["a line less", "an answer changed", "another gold label"])
def test_edited_predictions_are_found(make: Make, edit: str) -> None:
    first, second = make("first", 0), make("second", 1)
    file = Path(second) / "evaluation/test/predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    if edit == "a line less":
        lines, message = lines[1:], "has 299 answers and metrics.json states 300: run python -m cotmi_jax.evaluate"
    elif edit == "an answer changed":
        flipped = '"correct": false' if "true" in lines[0] else '"correct": true'
        lines[0], message = f'{{"id": "svamp/test/0", "label": "1", {flipped}}}\n', "is not that of metrics.json"
    else:
        lines[0], message = (
            lines[0].replace('"label": "1"', '"label": "2"'),
            "other gold labels of example svamp/test/0",
        )
    file.write_text("".join(lines))
    runs.assert_refused(runs.command("compare", first, second), message)
