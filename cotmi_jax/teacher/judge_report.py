"""The results of a judge as a table for the terminal, with warnings as text."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cotmi_jax.evaluation.judgments import SCALE
from cotmi_jax.teacher.report import response_warnings

_WIDTH = 110
_WRAPPING: dict[str, Any] = {"drop_whitespace": True, "break_long_words": False, "break_on_hyphens": False}
_CHANCE = "(0 is chance, 1 is full agreement)"


def judge_lines(result: Mapping[str, Any]) -> list[str]:
    """The table of a result of `judging`."""
    rows = _of_run(result)
    if "values" in result:
        rows += (_of_scores if result["mode"] == "absolute" else _of_preferences)(result)
        rows.append(("repeats", _repeats(result)))
    cost = "" if result["cost"] is None else f", ${result['cost']:.4f}"
    tokens = f"{result['tokens_in']} in, {result['tokens_out']} out, {result['responses']} responses{cost}"
    rows.append(("tokens", tokens))
    rows += [("warning", warning) for warning in _warnings(result)]
    width = max(len(name) for name, _ in rows)
    indent = " " * (width + 2)
    return [
        textwrap.fill(f"{name:<{width}}  {text}", _WIDTH, subsequent_indent=indent, **_WRAPPING) for name, text in rows
    ]


def _of_run(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    rows = [("judge", f"{result['model']}, {settings}"), ("rubric", f"{result['rubric']}, digest {result['prompt']}")]
    names = ["A", "B"] if result["mode"] == "pairwise" else ["run"]
    rows += list(zip(names, result["workdirs"], strict=True))
    items, answers = result["items"], result["answers"]
    text = f"{items['drawn']} of {items['of']} in {result['split']} (seed {result['seed']}): {items['judged']} judged"
    reasons = {
        "empty": f"with an empty rationale{_by_run(items['empty_by_run'])}, not judged",
        "identical": "with the same rationale twice, not judged",
        "unreadable": "without a readable answer",
        "missing": "not answered",
    }
    text += "".join(f", {items[key]} {reason}" for key, reason in reasons.items() if items[key])
    unreadable = f"{answers['n']}, {answers['unreadable']} of them unreadable, {answers['cut_by_length']} cut by length"
    return [*rows, ("items", text), ("answers", unreadable)]


def _by_run(counts: Sequence[int]) -> str:
    return "" if len(counts) == 1 else " (A {}, B {})".format(*counts)


def _of_scores(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    by_score = ", ".join(f"{score}: {count}" for score, count in result["score_counts"].items())
    length = _number(result, "length_correlation", "+.2f")
    length += _verdict(result, "length_correlation", 0, "longer ones score higher", "longer ones score lower")
    return [
        (f"mean score, {SCALE[0]} to {SCALE[-1]}", f"{_number(result, 'score', '.2f')}, {result['clusters']} clusters"),
        ("answers by score", by_score),
        ("score and length", f"Spearman's correlation {length}"),
        ("words", f"{result['words'][0]:.1f} on average"),
    ]


def _of_preferences(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    preferred = _verdict(result, "preference", 0, "A is preferred", "B is preferred", "no difference is shown")
    first = _verdict(result, "first_wins", 0.5, "the judge prefers the first", "the judge prefers the second")
    longer = _verdict(result, "longer_wins", 0.5, "the judge prefers the longer", "the judge prefers the shorter")
    by_length = [f"{_number(result, name, '.1%')}" for name in ("wins_if_longer", "wins_if_shorter")]
    return [
        ("A is better", _number(result, "wins", ".1%")),
        ("B is better", _number(result, "losses", ".1%")),
        ("tie", _number(result, "ties", ".1%")),
        ("A minus B", _number(result, "preference", "+.3f") + f", {result['clusters']} clusters" + preferred),
        ("flips with the order", _number(result, "flips", ".1%") + "; they count as ties"),
        ("agreement of orders", f"Cohen's kappa {_number(result, 'order_agreement', '.2f')}"),
        ("first shown wins", _number(result, "first_wins", ".1%") + first),
        ("longer one wins", _number(result, "longer_wins", ".1%") + longer),
        ("A wins if longer", by_length[0]),
        ("A wins if shorter", by_length[1]),
        ("words", "A {:.1f}, B {:.1f} on average".format(*result["words"])),
    ]


def _repeats(result: Mapping[str, Any]) -> str:
    text = _number(result, "repeat_agreement", ".2f")
    if "repeat_agreement" in result["values"]:
        kind = "ordinal" if result["mode"] == "absolute" else "nominal"
        text = f"Krippendorff's alpha ({kind}) {text} {_CHANCE}"
    if equal := result["values"].get("repeat_equal"):
        text += f"; equal in {equal['value']:.1%} of pairs, chance included"
    return text


def _number(result: Mapping[str, Any], name: str, form: str) -> str:
    """A value with its interval, or why it is not available."""
    if name in result["not_available"]:
        return f"not available: {result['not_available'][name]}"
    score = result["values"][name]
    if score["interval"] is None:
        return f"{score['value']:{form}}  (no interval: one cluster of items)"
    low, high = score["interval"]
    return f"{score['value']:{form}}  (95% interval {low:{form}} to {high:{form}})"


def _verdict(result: Mapping[str, Any], name: str, neutral: float, above: str, below: str, neither: str = "") -> str:
    """What an interval that does not contain the neutral value says."""
    score = result["values"].get(name)
    if score is None or score["interval"] is None:
        return ""
    low, high = score["interval"]
    text = above if low > neutral else below if high < neutral else neither
    return text and f": {text}"


def _warnings(result: Mapping[str, Any]) -> list[str]:
    warnings = response_warnings(result["model"], result["models"], result["responses_without_count"])
    teachers = ", ".join(result["teachers"])
    if result["judge_is_teacher"]:
        warnings.append(f"the judge wrote the rationales of the training data ({teachers}): models prefer their own")
    elif not result["all_teachers_known"]:
        warnings.append("it is not known which model wrote the rationales of the training data, perhaps the judge")
    if result["repeats"] > 1 and result["settings"].get("temperature") == 0:
        warnings.append("at temperature 0 repeats are nearly the same answer: their agreement is no reliability")
    if result["mode"] == "absolute" and result["items"]["unreadable"]:
        warnings.append("the mean is of items with a readable score; the others may be harder or worse ones")
    return warnings
