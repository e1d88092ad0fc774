"""Comparisons in other measures than accuracy: by example and of the split, directions, units, and what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from evaluated import write_evaluated
from scipy import stats

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import comparison
from cotmi_jax.evaluation.measures import MEASURES, parse_measures
from cotmi_jax.evaluation.methods import Methods, group, read_evaluated
from cotmi_jax.evaluation.metrics import METRICS
from cotmi_jax.evaluation.verdicts import Comparison, compare, compare_all, to_json
from cotmi_jax.report import comparison as shown

Make = Callable[..., str]
SIZE, SEEDS = 120, 4


def line(number: int, draw: np.random.Generator, nats: float, **changes: Any) -> dict[str, Any]:
    """An answer to a sum, with rationale, losses of targets of different lengths, and candidates."""
    gold, said = str(number % 9 + 1), str(number % 9 + 1 + (draw.random() < 0.3))
    step = f"{number % 9} + 1 = {number % 9 + 1 + (draw.random() < 0.4)}"
    tokens = {"predict": 2 + number % 3, "explain": 9 + number % 5}
    log_p = np.log(draw.dirichlet([4.0, 1.0]))
    return {
        "id": f"own/test/{number}",
        "cluster": f"c{number // 2}",
        "input": f"{number % 9} pens and 1.",
        "label": gold,
        "predicted_label": said,
        "correct": said == gold,
        "predicted_rationale": f"{step}. So the answer is {said}.",
        "confidence": float(draw.uniform(0.5, 1.0)),
        "candidates": [{"label": each, "log_p": float(log)} for each, log in zip((gold, "0"), log_p, strict=True)],
        "loss": {task: float(count * draw.gamma(2.0, nats / 2)) for task, count in tokens.items()},
        "tokens": tokens,
    } | changes


def arm(tmp_path: Path, name: str, nats: float, ece: float, **changes: Any) -> list[str]:
    """The runs of a method whose losses are `nats` a token, and whose metrics.json has a calibration error."""
    made = []
    for seed in range(SEEDS):
        draw = np.random.default_rng([seed, len(name)])
        lines = [line(number, draw, nats * (1 + 0.01 * seed), **changes) for number in range(SIZE)]
        folder = tmp_path / f"{name}{seed}"
        write_evaluated(folder, lines, seed=seed, data__dataset="own", objective__name=name)
        file = folder / "evaluation/test/metrics.json"
        error = {"value": ece + 1e-4 * len(name) * (seed - (SEEDS - 1) / 2), "noise_floor": {}}
        more = {"calibration": {"sequence": {"errors": {"smooth_ece": error}}, "closed_set": {"not_available": "open"}}}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
        made.append(str(folder))
    return made


@pytest.fixture
def methods(tmp_path: Path) -> Methods:
    """dss, and cotmi, whose losses are higher and whose calibration error is lower."""
    workdirs = arm(tmp_path, "dss", 0.2, 0.05) + arm(tmp_path, "cotmi", 0.3, 0.03)
    return group([read_evaluated(workdir, "test") for workdir in workdirs], "test")


def compared(methods: Methods, name: str, margin: float | None = None) -> Comparison:
    return compare(methods, methods.find("dss"), margin, MEASURES[name])


def test_a_loss_is_the_ratio_of_sums_and_less_of_it_is_better(methods: Methods) -> None:
    found = compared(methods, "label_loss")
    dss, cotmi = found.rows
    for row in found.rows:
        sums = [
            np.sum([[each[kind]["predict"] for each in run.predictions.values()] for run in row.method.runs], axis=1)
            for kind in ("loss", "tokens")
        ]
        assert row.by_seed == pytest.approx(sums[0] / sums[1])
    assert dss.contrast is None and cotmi.contrast is not None
    assert cotmi.contrast.verdict == "worse" and cotmi.contrast.interval.value > 0.05
    assert (found.items, found.clusters) == (SIZE, SIZE // 2)
    assert dss.rank is not None and (dss.rank.rank, cotmi.rank and cotmi.rank.rank) == (1, 2)
    assert compare(methods, methods.find("cotmi"), None, MEASURES["label_loss"]).rows[0].contrast.verdict == "better"  # type: ignore[union-attr]


def test_a_measure_of_the_split_has_the_t_interval_over_paired_seeds(methods: Methods) -> None:
    found = compared(methods, "sequence_smooth_ece")
    values = [row.by_seed for row in found.rows]
    expected = stats.ttest_rel(values[1], values[0])
    contrast = found.rows[1].contrast
    assert contrast is not None and contrast.verdict == "better" and contrast.interval.variance.clusters == 0.0
    assert found.items is None and found.to_json()["intervals_over"] == "seeds"
    interval = expected.confidence_interval(0.95)
    assert contrast.interval.value == pytest.approx(-0.02)
    assert (contrast.interval.low, contrast.interval.high) == pytest.approx((interval.low, interval.high))
    assert "over seeds alone, for these examples; lower is better" in shown.caption(found)


def test_the_interval_of_a_value_of_the_split_is_that_of_scipy() -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 6))
    found = comparison.difference(comparison.alike_items(ours), comparison.alike_items(theirs), paired=True)
    expected = stats.ttest_rel(ours, theirs)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))
    assert found.p == pytest.approx(expected.pvalue) and found.variance.dof == pytest.approx(5)
    unpaired = comparison.difference(comparison.alike_items(ours), comparison.alike_items(theirs))
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    assert (unpaired.low, unpaired.high) == pytest.approx(welch.confidence_interval(0.95))
    assert comparison.runs_interval(ours).low == pytest.approx(stats.ttest_1samp(ours, 0).confidence_interval().low)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("agreement", lambda each: f"= {each['predicted_label']}. So" in each["predicted_rationale"]),
        ("true_steps", lambda each: eval(each["predicted_rationale"].partition(".")[0].replace("=", "=="))),
        ("sequence_brier", lambda each: (each["confidence"] - each["correct"]) ** 2),
        ("sequence_overconfidence", lambda each: each["confidence"] - each["correct"]),
        ("ranked_accuracy", lambda each: each["candidates"][0]["log_p"] > each["candidates"][1]["log_p"]),
        ("unparsable", lambda each: False),
        ("no_answer", lambda each: False),
        ("empty_rationales", lambda each: False),
        ("no_steps", lambda each: False),
    ],
)
def test_values_by_seed_are_means_over_examples(methods: Methods, name: str, read: Callable[[Any], float]) -> None:
    for row in compared(methods, name).rows:
        expected = [np.mean([read(each) for each in run.predictions.values()]) for run in row.method.runs]
        assert row.by_seed == pytest.approx(expected), name


def test_p_values_are_adjusted_over_all_tables(methods: Methods) -> None:
    measures = [MEASURES[name] for name in ("label_loss", "rationale_loss", "agreement", "sequence_smooth_ece")]
    found = compare_all(methods, methods.find("dss"), measures)
    contrasts = [each.rows[1].contrast for each in found]
    p_values = [each.interval.p for each in contrasts if each is not None]
    assert [each.p_holm for each in contrasts if each is not None] == pytest.approx(comparison.holm(p_values))
    assert {each.contrasts for each in found} == {4} and len(p_values) == 4
    alone = compared(methods, "label_loss").rows[1].contrast
    assert alone is not None and contrasts[0] is not None and alone.p_holm < contrasts[0].p_holm


def test_what_is_not_available_has_its_reason(tmp_path: Path) -> None:
    workdirs = arm(tmp_path, "dss", 0.2, 0.05) + arm(tmp_path, "standard", 0.2, 0.05, predicted_rationale=None)
    methods = group([read_evaluated(workdir, "test") for workdir in workdirs], "test")
    dss, standard = compared(methods, "agreement").rows
    assert dss.mean is not None and standard.mean is None and standard.contrast is None
    assert standard.missing == "there are no rationales, or no labels that one could end in"
    against = compare(methods, methods.find("standard"), None, MEASURES["agreement"]).rows[0]
    assert against.mean is not None and against.missing.startswith("of the baseline standard: there are no rationales")
    everything = to_json(compare_all(methods, methods.find("dss"), parse_measures("all")))
    assert everything["not_available"]["closed_set_smooth_ece"] == "open"
    missing = "metrics.json has no metrics.bleu.value: evaluate with --metrics=rationale_overlap"
    assert everything["not_available"]["bleu"] == missing
    assert everything["not_available"]["mi"] == "metrics.json has no loss.mi"
    file = Path(workdirs[0], "evaluation/test/metrics.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"not_available": {"simulatability": "too few"}}))
    changed = group([read_evaluated(workdir, "test") for workdir in workdirs], "test")
    assert compared(changed, "las").rows[0].missing == "dss0: too few"
    names = [each["measure"] for each in everything["measures"]]
    assert {"accuracy", "agreement", "log_score", "sequence_smooth_ece"} <= {*names} and "bleu" not in names
    (row,) = [each for each in everything["measures"] if each["measure"] == "agreement"]
    assert row["methods"][1]["value"] is None and row["methods"][1]["not_available"] == standard.missing


def test_equal_differences_of_all_seeds_are_no_evidence(tmp_path: Path) -> None:
    """Two seeds, of a share of few examples, whose differences are equal by chance: their interval would be a point."""
    workdirs = arm(tmp_path, "dss", 0.2, 0.05) + arm(tmp_path, "standard", 0.2, 0.05)
    for number, workdir in enumerate(workdirs):
        seed, shift = number % (len(workdirs) // 2), 0.05 * (number >= len(workdirs) // 2)
        file = Path(workdir, "evaluation/test/metrics.json")
        share = {"value": 0.35 + 0.05 * seed + shift, "interval": [0, 1], "n": 20}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {"changed_mistake": share}}))
    methods = group([read_evaluated(workdir, "test") for workdir in workdirs], "test")
    _, row = compared(methods, "changed_mistake").rows
    assert row.interval is not None and row.contrast is None
    assert row.missing == "all seeds give the same difference: its interval needs values that vary"


def test_losses_of_other_targets_and_of_earlier_files_are_not_compared(tmp_path: Path) -> None:
    other = {"loss": {"predict": 1.0}, "tokens": {"predict": 5}}
    workdirs = arm(tmp_path, "dss", 0.2, 0.05) + arm(tmp_path, "single_task", 0.2, 0.05, **other)
    methods = group([read_evaluated(workdir, "test") for workdir in workdirs], "test")
    row = compared(methods, "label_loss").rows[1]
    assert row.mean == pytest.approx(0.2) and row.contrast is None
    assert row.missing == (
        f"targets of {5 * SIZE} tokens, of the baseline {3 * SIZE}: losses of other targets do not compare"
    )
    file = Path(workdirs[-1], "evaluation/test/predictions.jsonl")
    file.write_text(file.read_text().replace('"loss"', '"loose"'))
    changed = group([read_evaluated(workdir, "test") for workdir in workdirs], "test")
    missing = compared(changed, "label_loss").rows[1].missing
    assert missing == "single_task3: predictions.jsonl is of an earlier version, without losses: run evaluate again"


def test_examples_without_a_value_do_not_count(tmp_path: Path) -> None:
    """Half of the examples have no candidates: intervals are over the others."""
    workdirs = arm(tmp_path, "dss", 0.2, 0.05) + arm(tmp_path, "cotmi", 0.2, 0.05)
    for workdir in workdirs:
        file = Path(workdir, "evaluation/test/predictions.jsonl")
        lines = [json.loads(each) for each in file.read_text().splitlines()]
        for each in lines[SIZE // 2 :]:
            each["candidates"] = []
        file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    methods = group([read_evaluated(workdir, "test") for workdir in workdirs], "test")
    found = compared(methods, "candidate_nll")
    assert (found.items, found.clusters) == (SIZE // 2, SIZE // 4)
    run = methods.methods[0].runs[0]
    own = [each["candidates"][0]["log_p"] for each in run.predictions.values() if each["candidates"]]
    assert found.rows[0].by_seed is not None and found.rows[0].by_seed[0] == pytest.approx(-np.mean(own))


def test_the_command_prints_tables_of_several_measures(tmp_path: Path) -> None:
    workdirs = arm(tmp_path, "dss", 0.2, 0.05) + arm(tmp_path, "cotmi", 0.3, 0.03)
    result = runs.command("compare", *workdirs, "--metric=label_loss,agreement,bleu", "--baseline=dss")
    assert (result.code, result.err) == (0, ""), result
    titles = [line for line in result.out.splitlines() if line.endswith("is better)")]
    assert titles == [
        "token loss, label, nats (120 examples, lower is better)",
        "rationales that end in the student's own label (120 examples, higher is better)",
    ]
    assert all(name in result.out for name in ("label_loss, nats  ", "difference, nats", "agreement, %", "points"))
    assert "not available: bleu: metrics.json has no metrics.bleu.value: evaluate with" in result.out
    assert "adjusted for the 2 differences of all tables" in result.out
    units = runs.command("compare", *workdirs, "--metric=label_loss,agreement", "--margin=1")
    runs.assert_refused(units, "--margin has one unit, the measures have several")
    runs.assert_refused(
        runs.command("compare", *workdirs, "--metric=label_los"),
        "unknown measure 'label_los': did you mean label_loss?",
    )


def test_tables_in_all_forms(methods: Methods) -> None:
    one = [compared(methods, "label_loss", 0.5)]
    assert "equivalent within ±0.5" not in shown.text(one) and "worse" in shown.text(one)
    both = compare_all(methods, methods.find("dss"), parse_measures("rationale_loss,candidate_nll"))
    markdown = shown.markdown(both)
    assert markdown.count("|---|---|---|---|---|---|---|") == 2 and "| cotmi | 4 | 0." in markdown
    latex = shown.latex(both)
    assert latex.count(r"\begin{table}") == 2 and r"candidate\_nll" in latex and latex.count(r"\caption{") == 2


def test_measures_are_one_table() -> None:
    assert all(name == measure.name for name, measure in MEASURES.items())
    assert len({measure.text for measure in MEASURES.values()}) == len(MEASURES)
    assert all(len(measure.text) <= 70 and measure.margin > 0 for measure in MEASURES.values())
    assert {measure.metric for measure in MEASURES.values()} <= {"", *METRICS}
    assert parse_measures(" agreement, accuracy,agreement ") == (MEASURES["agreement"], MEASURES["accuracy"])
    for names, message in ((",", "--metric=,: give names of measures, or all"), ("nonsense", "unknown measure")):
        with pytest.raises(UserError, match=f"^{message}"):
            parse_measures(names)


def test_intervals_of_a_skewed_loss_cover_the_true_difference() -> None:
    """As the coverage of accuracies: losses with a long tail, by token, of targets of different lengths."""
    draw, covered, true = np.random.default_rng(0), [], 0.02
    cluster_N = np.repeat(np.arange(80), 2)
    for _ in range(300):
        tokens_N = draw.integers(1, 12, len(cluster_N)).astype(float)
        hard_N = draw.lognormal(0.0, 0.7, 80)[cluster_N]
        runs_of = []
        for mean in (0.2 + true, 0.2):
            run_Sx1 = 1 + 0.1 * draw.normal(size=(5, 1))
            loss_SxN = mean * hard_N / np.exp(0.7**2 / 2) * run_Sx1 * draw.gamma(2.0, 0.5, (5, len(cluster_N)))
            runs_of.append(comparison.linearized(loss_SxN * tokens_N, np.broadcast_to(tokens_N, loss_SxN.shape)))
        found = comparison.difference(*runs_of, cluster_N)
        covered.append(found.low <= true <= found.high)
    assert 0.912 <= np.mean(covered) <= 0.99
