"""The comparison of methods as a table for the terminal, for Markdown and for LaTeX."""

from collections.abc import Sequence

from cotmi_jax.evaluation.verdicts import Comparison, Contrast, Row

HEADER = ("method", "seeds", "accuracy, %", "difference, points", "p (Holm)", "detectable", "verdict")
_MAX_CLUSTERED = 0.999  # clusters per item below which the page says that items cluster


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def cells(row: Row, comparison: Comparison) -> tuple[str, ...]:
    """The cells of a method's line, in the order of HEADER."""
    mean = f"{100 * row.mean:.1f}"
    if row.interval is not None:
        mean += f" [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]"
    start = (row.method.name, str(len(row.method.runs)), mean)
    if row.method.name == comparison.baseline:
        return (*start, "baseline", "", "", row.missing)
    if row.contrast is None:
        return (*start, "not available", "", "", row.missing)
    contrast = row.contrast
    low, high = (_points(end) for end in (contrast.interval.low, contrast.interval.high))
    difference = f"{_points(contrast.interval.value)} [{low}, {high}]"
    detectable = f"±{100 * contrast.detectable:.1f}"
    return (*start, difference, f"{contrast.p_holm:.3f}", detectable, verdict_words(contrast, comparison.margin))


def verdict_words(contrast: Contrast, margin: float) -> str:
    """The verdict with what it needs: a margin, or more seeds."""
    points = f"{100 * margin:g}"
    if contrast.verdict == "equivalent":
        return f"equivalent within ±{points}"
    if contrast.verdict != "undecided":
        return contrast.verdict
    if contrast.seeds is None:
        return f"undecided: too few items to resolve {points}"
    return f"undecided: {points} needs about {contrast.seeds} seeds"


def caption(comparison: Comparison) -> str:
    """What the numbers are, in two sentences."""
    methods, clusters = comparison.methods, int(comparison.methods.cluster_N.max()) + 1
    items = len(methods.cluster_N)
    counted = f"{items} examples" + (f" in {clusters} clusters" if clusters < _MAX_CLUSTERED * items else "")
    paired = all(row.contrast.paired for row in comparison.rows if row.contrast is not None)
    return (
        f"Label accuracy on {methods.split} of {methods.dataset}, {counted}: mean over seeds with its 95% interval "
        f"over seeds and examples. Differences to {comparison.baseline} are paired by {'seed and ' * paired}example; p "
        "is adjusted for the number of differences; detectable: the true difference that 80% of such studies find."
    )


def text(comparison: Comparison) -> str:
    """Aligned columns."""
    lines = [HEADER, *(cells(row, comparison) for row in comparison.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    table = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", caption(comparison)])


def markdown(comparison: Comparison) -> str:
    """A table of Markdown and its caption."""
    lines = [_pipes(HEADER), "|---" * len(HEADER) + "|"]
    lines += [_pipes(cells(row, comparison)) for row in comparison.rows]
    return "\n".join([*lines, "", caption(comparison)])


def _pipes(line: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$"} | {character: f"\\{character}" for character in "%&_#{}$"}


def latex(comparison: Comparison) -> str:
    """A table environment with booktabs rules."""
    lines = [_ampersands(cells(row, comparison)) for row in comparison.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\begin{tabular}{llrrrrl}",
            r"\toprule",
            _ampersands(HEADER),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_escaped(caption(comparison))}}}",
            r"\end{table}",
        ]
    )


def _ampersands(line: Sequence[str]) -> str:
    return " & ".join(_escaped(cell) for cell in line) + r" \\"


def _escaped(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)
