"""The comparison of methods as tables for the terminal, for Markdown and for LaTeX."""

from collections.abc import Sequence

from cotmi_jax.evaluation.measures import SHARE, Measure
from cotmi_jax.evaluation.verdicts import Comparison, Contrast, Row

_MAX_CLUSTERED = 0.999  # clusters per item below which the page says that items cluster


def header(measure: Measure) -> tuple[str, ...]:
    """The names of the columns."""
    unit, difference = (f", {each}" if each else "" for each in (measure.unit, measure.difference_unit))
    return ("method", "seeds", f"{measure.name}{unit}", f"difference{difference}", "p (Holm)", "detectable", "verdict")


def cells(row: Row, comparison: Comparison) -> tuple[str, ...]:
    """The cells of a method's line, in the order of `header`."""
    show = comparison.measure.show
    start = (row.method.name, str(len(row.method.runs)))
    if row.mean is None:
        return (*start, "not available", "", "", "", row.missing)
    mean = show(row.mean)
    if row.interval is not None:
        mean += f" [{show(row.interval.low)}, {show(row.interval.high)}]"
    if row.method.name == comparison.baseline:
        return (*start, mean, "baseline", "", "", row.missing)
    if row.contrast is None:
        return (*start, mean, "not available", "", "", row.missing)
    found = row.contrast.interval
    value, low, high = (show(each, signed=True) for each in (found.value, found.low, found.high))
    detectable = f"±{show(row.contrast.detectable)}"
    verdict = verdict_words(row.contrast, comparison)
    return (*start, mean, f"{value} [{low}, {high}]", f"{row.contrast.p_holm:.3f}", detectable, verdict)


def verdict_words(contrast: Contrast, comparison: Comparison) -> str:
    """The verdict with what it needs: a margin, or more seeds."""
    margin = f"{comparison.measure.factor * comparison.margin:g}"
    if contrast.verdict == "equivalent":
        return f"equivalent within ±{margin}"
    if contrast.verdict != "undecided":
        return contrast.verdict
    if contrast.seeds is None:
        return f"undecided: too few items to resolve {margin}"
    return f"undecided: {margin} needs about {contrast.seeds} seeds"


def caption(comparison: Comparison) -> str:
    """What the numbers of one table are, in two sentences."""
    measure, methods = comparison.measure, comparison.methods
    over, counted = "seeds and examples", ""
    if comparison.items is None or comparison.clusters is None:
        over, counted = "seeds alone, for these examples", f"{len(methods.cluster_N)} examples"
    else:
        counted = f"{comparison.items} examples"
        if comparison.clusters < _MAX_CLUSTERED * comparison.items:
            counted += f" in {comparison.clusters} clusters"
    paired = all(row.contrast.paired for row in comparison.rows if row.contrast is not None)
    pairs = "seed" if comparison.items is None else f"{'seed and ' * paired}example"
    how = f"are paired by {pairs}" if paired or comparison.items is not None else "are not paired"
    text = measure.text[0].upper() + measure.text[1:]
    better = "" if measure.better in (None, "higher") else f"; {measure.better} is better"
    return (
        f"{text} on {methods.split} of {methods.dataset}, {counted}: mean over seeds with its 95% interval over {over}"
        f"{better}. Differences to {comparison.baseline} {how}; p is adjusted for the number of differences; "
        "detectable: the minimum detectable difference (power 80%)."
    )


def common_caption(comparisons: Sequence[Comparison]) -> str:
    """What the numbers of several tables are."""
    first = comparisons[0]
    contrasts, methods = first.contrasts, first.methods
    return (
        f"On {methods.split} of {methods.dataset}: means over seeds with 95% intervals, and differences to "
        f"{first.baseline}, paired by example and by seed where seeds are equal; of measures of the split as a whole "
        f"over seeds alone, for these examples. p is adjusted for the {contrasts} differences of all tables; "
        "detectable: the minimum detectable difference (power 80%)."
    )


def _title(comparison: Comparison) -> str:
    measure = comparison.measure
    what = f"{comparison.items} examples" if comparison.items is not None else "of the split, intervals over seeds"
    better = f", {measure.better} is better" if measure.better else ""
    unit = f", {measure.unit}" if measure.unit and measure.unit != SHARE else ""
    return f"{measure.text}{unit} ({what}{better})"


def _tables(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[str]]:
    """Comparisons in which a method has a value, and lines on the measures that are not available, by reason."""
    by_reason: dict[str, list[str]] = {}
    for each in comparisons:
        if each.missing and len(comparisons) > 1:
            by_reason.setdefault(each.missing, []).append(each.measure.name)
    lines = [f"not available: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return [each for each in comparisons if len(comparisons) == 1 or not each.missing], lines


def _lines(comparison: Comparison) -> list[tuple[str, ...]]:
    return [header(comparison.measure), *(cells(row, comparison) for row in comparison.rows)]


def _joined(comparisons: Sequence[Comparison], tables: Sequence[str], missing: Sequence[str]) -> str:
    """The tables with titles where there are several, what is missing, and the caption."""
    if len(comparisons) == 1:
        return "\n".join([*tables, "", caption(comparisons[0])])
    below = ["\n".join(missing)] if missing else []
    return "\n\n".join([*tables, *below, common_caption(comparisons)])


def text(comparisons: Sequence[Comparison]) -> str:
    """Aligned columns."""
    shown, missing = _tables(comparisons)
    tables = []
    for each in shown:
        lines = _lines(each)
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        aligned = ["  ".join(f"{c:<{width}}" for c, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        tables.append("\n".join([_title(each)] * (len(comparisons) > 1) + aligned))
    return _joined(comparisons, tables, missing)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Tables of Markdown and their caption."""
    shown, missing = _tables(comparisons)
    tables = []
    for each in shown:
        names, *rows = _lines(each)
        table = [_pipes(names), "|---" * len(names) + "|", *map(_pipes, rows)]
        tables.append("\n".join([f"{_title(each)}\n"] * (len(comparisons) > 1) + table))
    return _joined(comparisons, tables, missing)


def _pipes(line: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "→": r"$\to$", "–": "--"}
_LATEX |= {character: f"\\{character}" for character in "%&_#{}$"}


def latex(comparisons: Sequence[Comparison]) -> str:
    """Table environments with booktabs rules."""
    shown, missing = _tables(comparisons)
    tables = []
    for each in shown:
        names, *rows = _lines(each)
        described = caption(each) if len(comparisons) == 1 else f"{_title(each)}. {common_caption(comparisons)}"
        body = [r"\begin{table}", r"\begin{tabular}{llrrrrl}", r"\toprule", _ampersands(names), r"\midrule"]
        body += [*map(_ampersands, rows), r"\bottomrule", r"\end{tabular}"]
        tables.append("\n".join([*body, rf"\caption{{{_escaped(described)}}}", r"\end{table}"]))
    return "\n\n".join([*tables, *(f"% {line}" for line in missing)])


def _ampersands(line: Sequence[str]) -> str:
    return " & ".join(_escaped(cell) for cell in line) + r" \\"


def _escaped(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)
