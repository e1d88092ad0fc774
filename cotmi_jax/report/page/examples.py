"""The examples of a page as a JSON block: inputs once, the answers of every run by example, labels by number."""

import base64
import gzip
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from cotmi_jax.evaluation.methods import EvaluatedRun
from cotmi_jax.report.page.gather import Gathered, ResultSet

_MAX_PLAIN = 2_000_000  # bytes of JSON above which it is compressed
# Characters that could end a script element, or a line of one, are written as escapes, which JSON reads as the same.
_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


class Block(NamedTuple):
    """Content of the script element: JSON, or JSON that was compressed by gzip and written in base64."""

    text: Markup
    encoding: str
    examples: int


def example_block(found: Gathered, limit: int) -> Block:
    """The examples of all data sets, the first `limit` of each; 0: all."""
    sets = [_set(each, limit) for each in found.sets]
    plain = json.dumps({"sets": sets}, separators=(",", ":"), allow_nan=False)
    count = sum(len(each["id"]) for each in sets)
    if len(plain) > _MAX_PLAIN:
        packed = base64.b64encode(gzip.compress(plain.encode("ascii"), 6, mtime=0)).decode("ascii")
        return Block(Markup(packed), "gzip", count)
    return Block(Markup("".join(_ESCAPES.get(character, character) for character in plain)), "json", count)


def _set(each: ResultSet, limit: int) -> dict[str, Any]:
    first = each.arms[0].runs[0].predictions
    ids = list(first)[: limit or None]
    numbers: dict[str, int] = {}

    def label(text: Any) -> int:
        return -1 if text is None else numbers.setdefault(str(text), len(numbers))

    lines = [first[key] for key in ids]
    block = {
        "name": each.name,
        "methods": [{"name": arm.name, "place": arm.place} for arm in each.arms],
        "id": ids,
        "input": [str(line.get("input", "")) for line in lines],
        "gold": [label(line.get("label")) for line in lines],
        "teacher": [label(line.get("teacher_label")) for line in lines],
        "why": _texts(line.get("teacher_rationale") for line in lines),
        "runs": [_run(number, run, ids, label) for number, arm in enumerate(each.arms) for run in arm.runs],
    }
    return block | {"labels": list(numbers)}


def _run(method: int, run: EvaluatedRun, ids: list[str], label: Any) -> dict[str, Any]:
    lines: list[Mapping[str, Any]] = [run.predictions[key] for key in ids]
    return {
        "method": method,
        "seed": run.seed,
        "label": [label(line.get("predicted_label")) for line in lines],
        "right": "".join("01"[line["correct"]] for line in lines),
        "confidence": [_per_mille(line.get("confidence")) for line in lines],
        "why": _texts(line.get("predicted_rationale") for line in lines),
    }


def _texts(texts: Any) -> list[str | None] | None:
    """None where no example has a text."""
    found = [None if text is None else str(text) for text in texts]
    return found if any(text is not None for text in found) else None


def _per_mille(value: Any) -> int:
    """A probability in thousandths, −1 where there is none."""
    return round(1000 * value) if isinstance(value, int | float) and math.isfinite(value) else -1
