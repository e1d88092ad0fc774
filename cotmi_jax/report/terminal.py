"""Metrics and examples as text for the terminal."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cotmi_jax.evaluation.measures import MEASURES, SHARE
from cotmi_jax.evaluation.metrics import Prediction, Score
from cotmi_jax.evaluation.monitor import HeldOutEstimates
from cotmi_jax.report.calibration_rows import KIND_NAMES, calibration_rows

WIDTH = 100  # characters of a line
_MAX_NAME = 48  # a longer name has a line of its own
_IN_WORDS = {f"{kind}_{name}" for kind in KIND_NAMES for name in ("overconfidence", "brier")}
_OF_LABELS = ("ranked_accuracy", "label_macro_f1", "unparsable")  # rows above the others
_LOSS_ROWS = {measure.path[1]: measure.text for measure in MEASURES.values() if measure.path[0] == "loss"}


def format_scores(metrics: Mapping[str, Any], information: HeldOutEstimates | None = None) -> str:
    """The results of an evaluation as a table: a row for each metric and each loss, in nats, of WIDTH at most."""
    rows = [
        (f"{metrics['dataset']} {metrics['split']}", f"{metrics['n']} examples" + _format_checkpoint(metrics)),
        ("label accuracy", _format_accuracy(metrics)),
    ]
    decoding = metrics.get("decoding", {"method": "greedy", "votes": 1})
    if decoding["method"] != "greedy":
        votes = f", {decoding['votes']} outputs vote on a label" * (decoding["votes"] > 1)
        rows.insert(1, ("decoding", f"{decoding['method']}{votes}"))
    if metrics.get("data") != metrics.get("trained_on"):
        rows.insert(1, ("student", _format_student(metrics)))
    for name, summary in metrics.get("components", {}).items():
        rows.append((f"label accuracy, {name}", f"{_format_accuracy(summary)}, {summary['n']} examples"))
    measured = dict(_metric_rows(metrics))
    rows += [measured.pop(name) for name in _OF_LABELS if name in measured]
    if "calibration" in metrics:
        rows += calibration_rows(metrics["calibration"])
    rows += measured.values()
    for name, text in _LOSS_ROWS.items():
        if name in metrics["loss"]:
            value = metrics["loss"][name]
            rows.append((text, f"{value:.1%}" if name.endswith("accuracy") else f"{value:.3f} nats"))
    if information is not None:
        rows += [*information.lines(), *information.errors()]
    for task, counts in metrics["truncated"].items():
        rows += [(f"truncated to the limit, {task} {kind}", str(count)) for kind, count in counts.items() if count]
    for column, tokens in metrics.get("unknown", {}).items():
        if tokens:
            rows.append((f"unknown tokens, {column}", f"{tokens}, for characters that the vocabulary lacks"))
    if metrics.get("lost_labels"):
        rows.append(("labels not in the vocabulary", f"{metrics['lost_labels']}: no answer to them is correct"))
    width = max((len(name) for name, _ in rows if len(name) <= _MAX_NAME), default=_MAX_NAME)
    return "\n".join(_format_row(name, value, width) for name, value in rows)


def _metric_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """By name the row of each metric, without those that calibration_rows says in words.

    Values that are not available for one reason share a row.
    """
    for name, score in metrics["metrics"].items():
        if name == "accuracy" or ("calibration" in metrics and name in _IN_WORDS):
            continue
        is_share = name in MEASURES and MEASURES[name].unit == SHARE
        value = _format_share(score, metrics["n"]) if is_share else _format_metric(score, metrics["n"])
        if name == "unparsable":
            value = f"{round(score['value'] * score['n'])} of {score['n']}, {value}"
        yield name, (_name(name), value)
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.get("not_available", {}).items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        shown = [_name(name) for name in names]
        if len(shown) == 1:
            yield names[0], (shown[0], f"not available: {reason}")
        else:
            yield names[0], ("not available", f"{', '.join(shown)}: {reason}")


def _name(name: str) -> str:
    """What the value of a metric is called, with its unit; the name itself of one that is registered."""
    measure = MEASURES.get(name)
    if measure is None:
        return name
    return f"{measure.text}, {measure.unit}" if measure.unit not in ("", SHARE) else measure.text


def _format_row(name: str, value: str, width: int) -> str:
    """A name in a column of `width` characters, and its value, on several lines where it is long."""
    lines = textwrap.wrap(value, WIDTH - width - 2, break_long_words=False, break_on_hyphens=False)
    start = f"{name}\n{' ' * width}" if len(name) > width else f"{name:<{width}}"
    return f"{start}  " + f"\n{' ' * (width + 2)}".join(lines)


def _format_checkpoint(metrics: Mapping[str, Any]) -> str:
    step = metrics["checkpoint"]["step"]
    return "" if step is None else f", checkpoint of step {step}"


def _format_student(metrics: Mapping[str, Any]) -> str:
    if metrics["trained_on"] is None:
        return f"{metrics['model']}, not trained here; objective {metrics['objective']}"
    return f"{metrics['model']}, trained on {metrics['trained_on']} with {metrics['objective']}"


def _format_accuracy(summary: Mapping[str, Any]) -> str:
    low, high = summary["interval"]
    return f"{summary['accuracy']:.1%}  (95% interval {low:.1%} to {high:.1%})"


def _format_share(score: Score, examples: int) -> str:
    text = f"{score['value']:.1%}"
    if score["interval"] is not None:
        text = _format_accuracy({"accuracy": score["value"], "interval": score["interval"]})
    if "quartiles" in score:
        text += ", quartiles " + " ".join(f"{value:.0%}" for value in score["quartiles"])
    return text if score["n"] == examples else f"{text} of {score['n']}"


def _format_metric(score: Score, examples: int) -> str:
    text = f"{score['value']:.4g}"
    if score["interval"] is not None:
        text += "  (95% interval {:.4g} to {:.4g})".format(*score["interval"])
    if "quartiles" in score:
        text += ", quartiles {:.3g} {:.3g} {:.3g}".format(*score["quartiles"])
    return text if score["n"] == examples else f"{text}, {score['n']} examples"


def format_examples(predictions: Sequence[Prediction]) -> str:
    """Inputs with the student's label and rationale, and the gold label."""
    blocks = []
    for prediction in predictions:
        mark = "right" if prediction["correct"] else "wrong"
        fields = [
            ("problem", str(prediction["input"])),
            ("student", f"{prediction['predicted_label']}  ({mark}; gold {prediction['label']})"),
        ]
        if prediction["predicted_rationale"] is not None:
            fields.append(("because", str(prediction["predicted_rationale"])))
        blocks.append("\n".join(_wrap(name, text) for name, text in fields))
    return "\n\n".join(blocks)


def _wrap(name: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)
