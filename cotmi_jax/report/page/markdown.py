"""The results of a page as Markdown, to be a part of a document: a table for each data set, rows are methods."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.measures import Measure, parse_measures
from cotmi_jax.evaluation.verdicts import ACCURACY, Comparison, Row, compare_all
from cotmi_jax.files import Path, replace_file
from cotmi_jax.report.page import words
from cotmi_jax.report.page.gather import Gathered, Missing, ResultSet
from cotmi_jax.report.page.tables import duration

MEASURES = "accuracy,agreement,true_steps,label_loss,rationale_loss,log_score,sequence_smooth_ece"


def markdown(found: Gathered, measures: str, command: str) -> str:
    """Question, verdicts, tables, what is missing, and the command. Raises UserError for an unknown measure."""
    chosen = [
        dataclasses.replace(each, margin=each.factor * found.margin) if each is ACCURACY else each
        for each in parse_measures(measures)
    ]
    verdicts: Counter[str] = Counter()
    tables: list[str] = []
    for each in found.sets:
        compared = _comparisons(each, chosen)
        if not each.no_baseline:
            verdicts.update(row.contrast.verdict for one in compared for row in one.rows if row.contrast is not None)
        tables += [f"**{each.name}**", *_result_set(each, compared)]
    total = sum(verdicts.values())
    counted = f"{total} {'difference' if total == 1 else 'differences'} to {words.baseline_name(found)}"
    summary = f"{counted}: {words.list_verdicts(verdicts)}." if total else words.summary(found)
    blocks = [f"{'The claim: ' * bool(found.claim)}{words.question(found)}", summary, *tables]
    if found.sets:
        blocks.append(
            "Means over seeds with 95% intervals; below them the difference to the baseline with its interval: for "
            "other seeds and examples, or, of measures of the split as a whole, for other seeds. Bold: better or worse "
            "at the level of 5%, adjusted for all differences of the table (Holm); ≈: equivalent within the margin; "
            "others are undecided."
        )
    if found.missing:
        blocks.append(f"Missing are {len(found.missing)} of {found.total} runs: {_missing(found.missing)}.")
    time = f" The runs took {duration(found.seconds)} in all." if found.seconds else ""
    return "\n\n".join([*blocks, f"Written by `{command}`.{time}"])


def _missing(runs: Sequence[Missing]) -> str:
    """How many are in which state; runs that a worker will not finish by itself are named."""
    states: dict[str, list[str]] = {}
    for run in runs:
        states.setdefault(run.state, []).append(run.name)
    listed = {
        state: "" if state in ("pending", "running") else f" ({', '.join(names)})" for state, names in states.items()
    }
    return "; ".join(f"{len(names)} {state}{listed[state]}" for state, names in states.items())


def write_part(path: Path, text: str, part: str) -> None:
    """Write text between the two lines that mark a part of a document; a new file consists of that part.

    Raises UserError for a document without the lines, or with several.
    """
    begin, end = (f"<!-- {part}: {edge} -->" for edge in ("begin", "end"))
    document = path.read_text() if path.exists() else f"{begin}{end}\n"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise UserError(f"{path}: the document needs one line {begin} and one line {end}")
    before, rest = document.split(begin)
    replace_file(path, f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def _comparisons(each: ResultSet, chosen: Sequence[Measure]) -> list[Comparison]:
    """The comparisons of a data set by the measures that one of its methods has."""
    baseline = next(arm.method for arm in each.arms if each.baseline in ("", arm.name))
    compared = compare_all(each.comparison.methods, baseline, chosen, ranked=False)
    return [found for found in compared if not found.missing]


def _result_set(each: ResultSet, measured: Sequence[Comparison]) -> list[str]:
    """The table of a data set, and the differences that it could detect."""
    methods = each.comparison.methods
    names = {arm.row.method.name: arm.name for arm in each.arms}
    head = [f"{found.measure.text}{', ' * bool(found.measure.unit)}{found.measure.unit}" for found in measured]
    lines = [f"| method | seeds | {' | '.join(head)} |", "|---|--:|" + "--:|" * len(head)]
    for place, method in enumerate(methods.methods):
        cells = [_cell(found, found.rows[place], compared=not each.no_baseline) for found in measured]
        lines.append(f"| {names[method.name]} | {len(method.runs)} | {' | '.join(cells)} |")
    detectable = [text for found in measured if (text := _detectable(found)) and not each.no_baseline]
    below = words.counted(each)
    if each.no_baseline:
        below += f" {each.no_baseline[0].upper()}{each.no_baseline[1:]}."
    if detectable:
        below += f" Minimum detectable differences (power 80%): {'; '.join(detectable)}."
    return ["\n".join(lines), below]


def _cell(found: Comparison, row: Row, *, compared: bool) -> str:
    show = found.measure.show
    if row.mean is None:
        return "not available"
    text = show(row.mean) + (f" [{show(row.interval.low)}, {show(row.interval.high)}]" if row.interval else "")
    if row.contrast is None or not compared:
        return text
    interval, verdict = row.contrast.interval, row.contrast.verdict
    value, low, high = (show(each, signed=True) for each in (interval.value, interval.low, interval.high))
    mark = {"better": "**", "worse": "**"}.get(verdict, "")
    return f"{text}<br>{'≈ ' * (verdict == 'equivalent')}{mark}{value}{mark} [{low}, {high}]"


def _detectable(found: Comparison) -> str:
    """The range of detectable differences over the methods, with the name of the measure."""
    values = sorted(row.contrast.detectable for row in found.rows if row.contrast is not None)
    if not values:
        return ""
    low, high = (found.measure.show(value) for value in (values[0], values[-1]))
    unit = f" {found.measure.difference_unit}" if found.measure.difference_unit else ""
    return f"{low if low == high else f'{low} to {high}'}{unit} ({found.measure.text})"
