"""Calibration as rows of the terminal's table."""

from collections.abc import Iterator, Mapping
from typing import Any

from cotmi_jax.evaluation.calibration import PAPER_BINS
from cotmi_jax.evaluation.calibration_report import BINS, in_words

Row = tuple[str, str]
KIND_NAMES = {"sequence": "confidence in the generated label", "closed_set": "confidence among the choices"}
_ERROR_NAMES = {
    "smooth_ece": "smooth calibration error",
    f"ece_{BINS}": f"ECE, {BINS} bins of equal mass",
    f"ece_{PAPER_BINS}": f"ECE, {PAPER_BINS} bins, as in the papers",
}


def calibration_rows(calibration: Mapping[str, Any]) -> Iterator[Row]:
    """Of each kind of confidence what is out of the ordinary in words, and the main measures."""
    for kind, name in KIND_NAMES.items():
        part = calibration[kind]
        if "not_available" in part:
            yield name, f"not available: {part['not_available']}"
            continue
        yield name, f"mean {part['confidence']:.1%}, of which {part['accuracy']['value']:.1%} right: {in_words(part)}"
        for key, error in _ERROR_NAMES.items():
            yield f"  {error}", _error(part["errors"][key])
        yield from _scaled(part["recalibrated"])
        yield "  right ranked above wrong (AUROC)", _value(part["auroc"])
        covered = part["accuracy_at_coverage"]
        yield f"  accuracy of the surest {', '.join(covered)}", ", ".join(f"{value:.1%}" for value in covered.values())


def _error(error: Mapping[str, Any]) -> str:
    if "not_available" in error:
        return f"not available: {error['not_available']}"
    low, high = error["noise_floor"]["low"], error["noise_floor"]["high"]
    return f"{error['value']:.3f}  (a calibrated student: {low:.3f} to {high:.3f})"


def _scaled(recalibrated: Mapping[str, Any]) -> Iterator[Row]:
    if "not_available" in recalibrated:
        yield "  recalibrated", f"not available: {recalibrated['not_available']}"
        return
    found = recalibrated["temperature"]
    limit = f"; the temperature is {found['limit']}" if found.get("limit") else ""
    yield f"  after temperature {found['temperature']:.2f}", f"{_error(found['errors']['smooth_ece'])}, smooth{limit}"
    yield "  after isotonic regression", f"{_error(recalibrated['isotonic']['errors']['smooth_ece'])}, smooth"


def _value(score: Mapping[str, Any]) -> str:
    if "not_available" in score:
        return f"not available: {score['not_available']}"
    if score["interval"] is None:
        return f"{score['value']:.3f}"
    return "{:.3f}  (95% interval {:.3f} to {:.3f})".format(score["value"], *score["interval"])
