"""The answer of a page in words: a question, a summary, and a sentence for each difference."""

import dataclasses
from collections import Counter
from typing import get_args

from cotmi_jax.evaluation.verdicts import Contrast, Verdict
from cotmi_jax.report.page.gather import Arm, Gathered, ResultSet

MINUS = "−"


def number(value: float, digits: int = 1, sign: bool = False) -> str:
    """A number with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return number(100 * value, 1, sign=True)


def percent(value: float) -> str:
    """A fraction in percent, without the sign of percent."""
    return number(100 * value, 1)


def p_value(value: float) -> str:
    """As p = .012, or p < .001; its spaces do not break."""
    text = "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)
    return text.replace(" ", "\u00a0")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A difference: its verdict, the sentence that states it, and what it means for a further study."""

    verdict: str  # better, worse, equivalent, undecided or missing
    sentence: str
    detail: str


def question(found: Gathered) -> str:
    """What the page answers: the claim of a study, or the methods that are compared."""
    if found.claim:
        return found.claim
    names = sorted(found.arms, key=found.arms.__getitem__)  # a baseline comes first
    data = " and ".join(dict.fromkeys(each.name for each in found.sets))
    if len(names) < 2:
        return f"What does {names[0]} reach on {data}?" if names else "No run was evaluated yet"
    others = names[1:]
    listed = " and ".join([", ".join(others[:-1]), others[-1]] if len(others) > 1 else others)
    verb = "does" if len(others) == 1 else "do"
    return f"How {verb} {listed} compare with {names[0]} on {data}?"


def summary(found: Gathered) -> str:
    """How many comparisons of label accuracy have which verdict."""
    verdicts: Counter[str] = Counter(
        arm.row.contrast.verdict for each in found.sets for arm in each.arms if arm.row.contrast
    )
    total = sum(verdicts.values())
    if not total:
        if not found.sets:
            return f"No run was evaluated on {found.split} yet."
        compared = any(len(each.arms) > 1 for each in found.sets)
        reason = "a difference needs at least two seeds of both methods" if compared else "there is one method"
        return f"No difference can be stated: {reason}."
    counted = f"{total} {'comparison' if total == 1 else 'comparisons'} of label accuracy with {baseline_name(found)}"
    return f"{counted}: {list_verdicts(verdicts, f'equivalent within ±{100 * found.margin:g} points')}."


def baseline_name(found: Gathered) -> str:
    """The name of the one baseline of all sets, or what to call several."""
    baselines = list(dict.fromkeys(each.baseline for each in found.sets if each.baseline))
    return baselines[0] if len(baselines) == 1 else "the baselines"


def list_verdicts(verdicts: Counter[str], equivalent: str = "equivalent") -> str:
    """The number of each verdict in words, without those that do not occur; `equivalent`: the words for that one."""
    total = sum(verdicts.values())
    listed = [
        f"{verdicts[verdict]} {equivalent if verdict == 'equivalent' else verdict}"
        for verdict in get_args(Verdict)
        if verdicts[verdict]
    ]
    if len(listed) == 1:
        verdict = listed[0].partition(" ")[2]
        return f"{'all ' if total > 1 else ''}{verdict}"
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def matrix(found: Gathered) -> list[tuple[str, list[Answer | None]]]:
    """By method its answers on each of several data sets, in short; None where it has no run."""
    rows = []
    for name in sorted(found.arms, key=found.arms.__getitem__):
        cells = [_short(each, name) for each in found.sets]
        if any(cell is not None and cell.verdict != "baseline" for cell in cells):
            rows.append((name, cells))
    return rows


def _short(each: ResultSet, name: str) -> Answer | None:
    arm = next((arm for arm in each.arms if arm.name == name), None)
    if arm is None:
        return None
    if name == each.baseline:
        return Answer("baseline", "baseline", "")
    contrast = arm.row.contrast
    if contrast is None:
        return Answer("missing", "no verdict", "")
    return Answer(contrast.verdict, points(contrast.interval.value), "")


def counted(each: ResultSet) -> str:
    """What the numbers of a data set are of."""
    items, clusters = each.comparison.items or 0, each.comparison.clusters or 0
    examples = f"{items:,} examples" + (f" in {clusters:,} clusters" if clusters < items else "")
    contrasts = [arm.row.contrast for arm in each.arms if arm.row.contrast is not None]
    if not contrasts:
        return f"{examples}."
    paired = "seed and example" if all(contrast.paired for contrast in contrasts) else "example"
    return f"{examples}; differences to {each.baseline} are paired by {paired}."


def answers(each: ResultSet, margin: float) -> list[Answer]:
    """A sentence for each method but the baseline."""
    return [_answer(each, arm, margin) for arm in each.arms if arm.name != each.baseline or each.no_baseline]


def _answer(each: ResultSet, arm: Arm, margin: float) -> Answer:
    contrast = arm.row.contrast
    if contrast is None:
        return Answer("missing", f"{arm.name}: {percent(arm.accuracy)}%, no difference stated", arm.row.missing)
    low, high = (points(end) for end in (contrast.interval.low, contrast.interval.high))
    size = f"{points(contrast.interval.value)} points, 95% interval {low} to {high}"
    limit = f"{100 * margin:g} {'point' if margin == 0.01 else 'points'}"
    verbs = {
        "better": f"{arm.name} is better than {each.baseline}",
        "worse": f"{arm.name} is worse than {each.baseline}",
        "equivalent": f"{arm.name} and {each.baseline} are equivalent within ±{limit}",
        "undecided": f"Whether {arm.name} differs from {each.baseline} is undecided",
    }
    return Answer(contrast.verdict, f"{verbs[contrast.verdict]}: {size}", _detail(contrast, limit))


def _detail(contrast: Contrast, limit: str) -> str:
    """The p-value, and for an undecided difference what would decide it."""
    start = f"{p_value(contrast.p_holm)} adjusted"
    detectable = f"minimum detectable difference ±{100 * contrast.detectable:.1f} points (power 80%)"
    if contrast.verdict != "undecided":
        return f"{start}; {detectable}."
    if contrast.seeds is None:
        return f"{start}; {detectable}. No number of seeds resolves {limit} with so few examples."
    return f"{start}; {detectable}. To find {limit}, each method needs about {contrast.seeds} seeds."
