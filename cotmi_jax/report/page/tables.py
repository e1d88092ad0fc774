"""Tables of a page: results with the papers' values, measures of rationales, and cost."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cotmi_jax.evaluation.confidences import KINDS
from cotmi_jax.evaluation.measures import SHARE, Measure
from cotmi_jax.evaluation.verdicts import Comparison, Row
from cotmi_jax.files import read_json_lines
from cotmi_jax.report.comparison import verdict_words
from cotmi_jax.report.page.gather import Arm, ResultSet
from cotmi_jax.report.page.papers import PaperValue, is_papers_student, paper_value
from cotmi_jax.report.page.words import MINUS, percent, points
from cotmi_jax.workdir.record import STARTS_FILE


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A method in the table of results. glyph: interval of the difference on the scale of the table, in per cent."""

    arm: Arm
    accuracy: str
    interval: str
    difference: str
    difference_interval: str
    p: str
    verdict: str
    words: str
    paper: PaperValue | None
    glyph: tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Rows; the end of the scale of differences in points, and where the margin is on it, in per cent of its width.

    has_papers: whether a paper states a value. papers_student: whether all students are those of the papers.
    """

    rows: tuple[ResultRow, ...]
    reach: str
    margin: tuple[float, float]
    has_papers: bool
    papers_student: bool


def result_table(each: ResultSet) -> ResultTable:
    """The comparison of a data set, with the papers' values where they have the set."""
    contrasts = [arm.row.contrast for arm in each.arms if arm.row.contrast is not None]
    ends = [end for found in contrasts for end in (found.interval.low, found.interval.high)]
    margin = each.comparison.margin
    reach = max([abs(end) for end in ends] + [1.5 * margin])
    rows = []
    for arm in each.arms:
        row, contrast = arm.row, arm.row.contrast
        interval = f"{percent(row.interval.low)} to {percent(row.interval.high)}" if row.interval else row.missing
        is_baseline = arm.name == each.baseline and not each.no_baseline
        glyph, difference, around, p = None, "baseline" if is_baseline else "not available", "", ""
        words, verdict = "" if is_baseline else row.missing, "baseline" if is_baseline else "missing"
        if contrast is not None:
            found = contrast.interval
            difference, around = points(found.value), f"{points(found.low)} to {points(found.high)}"
            glyph = (_at(found.low, reach), _at(found.value, reach), _at(found.high, reach))
            p, verdict, words = (
                "<0.001" if contrast.p_holm < 0.001 else f"{contrast.p_holm:.3f}",
                contrast.verdict,
                verdict_words(contrast, each.comparison),
            )
        paper = paper_value(arm.method, each.label_type, each.comparison.methods.split)
        rows.append(
            ResultRow(arm, percent(arm.accuracy), interval, difference, around, p, verdict, words, paper, glyph)
        )
    papers = any(row.paper for row in rows)
    student = all(is_papers_student(arm.method) for arm in each.arms)
    places = _at(-margin, reach), _at(margin, reach)
    return ResultTable(tuple(rows), f"{100 * reach:.1f}", places, papers, student)


def _at(value: float, reach: float) -> float:
    return round(50 + 50 * value / reach, 2)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method's value of a measure, its interval, and its difference to the baseline with the verdict; or reasons."""

    value: str
    interval: str
    difference: str
    verdict: str


@dataclasses.dataclass(frozen=True)
class MeasureTable:
    """Rows: a measure and its cell for each method. missing: by reason the measures without any value."""

    rows: tuple[tuple[Measure, tuple[Cell, ...]], ...]
    missing: Mapping[str, Sequence[str]]


def measure_tables(each: ResultSet) -> tuple[MeasureTable, MeasureTable]:
    """The measures of confidences, and all others besides accuracy."""
    of_confidence = [found for found in each.measures if is_confidence(found.measure)]
    others = [found for found in each.measures if not is_confidence(found.measure) and found.measure.name != "accuracy"]
    return _measure_table(each, of_confidence), _measure_table(each, [*others, *each.own_measures])


def is_confidence(measure: Measure) -> bool:
    """Whether a measure is one of confidences."""
    return measure.path[0] == "calibration" or measure.name.startswith((*KINDS, "log_score"))


def _measure_table(each: ResultSet, comparisons: Sequence[Comparison]) -> MeasureTable:
    rows, missing = [], dict[str, list[str]]()
    for found in comparisons:
        if found.missing:
            missing.setdefault(found.missing, []).append(found.measure.text)
        else:
            rows.append((found.measure, tuple(_cell(each, found, row) for row in found.rows)))
    return MeasureTable(tuple(rows), missing)


def _cell(each: ResultSet, found: Comparison, row: Row) -> Cell:
    show, is_baseline = found.measure.show, row.method.name == found.baseline and not each.no_baseline
    if row.mean is None:
        return Cell("", "", f"not available: {row.missing}", "missing")
    around = f"{_minus(show(row.interval.low))} to {_minus(show(row.interval.high))}" if row.interval else ""
    value = _minus(show(row.mean)) + "%" * (found.measure.unit == SHARE)
    if is_baseline or row.contrast is None or each.no_baseline:
        said = "baseline" if is_baseline else row.missing or each.no_baseline
        if said.startswith("of the baseline"):  # the cell of the baseline has the reason
            said = "no difference: the baseline has no value"
        return Cell(value, around, said, "")
    contrast = row.contrast
    return Cell(value, around, _minus(show(contrast.interval.value, signed=True)), contrast.verdict)


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


@dataclasses.dataclass(frozen=True)
class CostRow:
    """What the runs of a method took: steps, seconds per step (median), hours of a run and of all, and machines."""

    name: str
    place: int
    runs: int
    steps: str
    per_step: str
    per_run: str
    total: str
    machine: str


def costs(each: ResultSet, logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> list[CostRow]:
    """Of each method, from metrics.jsonl and starts.jsonl of its runs."""
    rows = []
    for arm in each.arms:
        runs = logs[arm.name]
        steps = [max((int(line["step"]) for line in lines), default=0) for lines in runs]
        seconds = [_seconds(lines) for lines in runs]
        key = "train/seconds_per_step"
        per_step = [line[key] for lines in runs for line in lines if key in line]
        machines = dict.fromkeys(filter(None, (_machine(arm, index) for index in range(len(arm.runs)))))
        known = all(seconds)
        rows.append(
            CostRow(
                arm.name,
                arm.place,
                len(arm.runs),
                _range(steps) if any(steps) else "not logged",
                f"{statistics.median(per_step):.3g} s" if per_step else "not logged",
                duration(statistics.fmean(seconds)) if known else "not logged",
                duration(sum(seconds)) if known else "not logged",
                "; ".join(machines) or "not recorded",
            )
        )
    return rows


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seconds(lines: Sequence[Mapping[str, float]]) -> float:
    """Wall-clock time of a run: the phases of its log sum to it."""
    phases = ("input", "step", "evaluation", "checkpoint", "first_step", "profile")
    return sum(line.get(f"train/seconds_{phase}", 0.0) for line in lines for phase in phases)


def _machine(arm: Arm, index: int) -> str:
    """Of the last start of a run."""
    starts: list[dict[str, Any]] = read_json_lines(arm.runs[index].workdir / STARTS_FILE)
    found = starts[-1].get("machine") if starts else None
    return str(found) if found else ""


def duration(seconds: float) -> str:
    """As 45 s, 3.2 min or 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
