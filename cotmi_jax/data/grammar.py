"""What `config.data.dataset` names: one component, or several with rates: "svamp=3,arithmetic=1"."""

import math
from pathlib import Path
from typing import Literal, NamedTuple

from cotmi_jax.data.sources.registered import SOURCES
from cotmi_jax.data.sources.released_sets import RELEASED_NAMES
from cotmi_jax.data.sources.tfds_formats import TFDS_SETS
from cotmi_jax.errors import UserError
from cotmi_jax.files import absolute

Kind = Literal["released", "arithmetic", "jsonl", "tfds", "registered"]
CHOICES = (*sorted((*RELEASED_NAMES, "arithmetic")), "jsonl:PATH", "tfds:NAME")


class Part(NamedTuple):
    """One component: where it comes from, its name or path there, and its share of the training stream.

    written is how the user gave it, without the rate.
    """

    kind: Kind
    argument: str
    rate: float
    written: str


def parse_dataset(dataset: str) -> tuple[Part, ...]:
    """The components that a dataset string names, in order.

    What stands behind the last "=" is the rate; a path may hold "=" where no number follows the last one.

    Raises:
      UserError: an unknown component, one named twice, or a rate that is not a finite number above 0.
    """
    parts = tuple(_parse_part(written.strip()) for written in dataset.split(","))
    for i, part in enumerate(parts):
        if part[:2] in [earlier[:2] for earlier in parts[:i]]:
            raise UserError(
                f"dataset = {dataset!r} names {part.written} twice: give it once, with the sum of the rates"
            )
    return parts


def with_absolute_paths(dataset: str) -> str:
    """The same data sets, their files named absolutely, so that they are found from any folder."""
    written = []
    for part in parse_dataset(dataset):
        name = f"jsonl:{absolute(part.argument)}" if part.kind == "jsonl" else part.written
        # A path with "=" needs a rate behind it, so that its own end is not read as one.
        written.append(name if part.rate == 1 and "=" not in name else f"{name}={part.rate:.12g}")
    return ",".join(written)


def _parse_part(text: str) -> Part:
    written, _, last = (piece.strip() for piece in text.rpartition("="))
    rate = _number(last) if written else None
    if rate is None:  # The name has no rate, or it is a path with "=" in it.
        written, rate = text, 1.0
    if not (rate > 0 and math.isfinite(rate)):
        raise UserError(f"dataset: the rate of {written} is {last}: give a number above 0")
    prefix, colon, argument = written.partition(":")
    if written == "arithmetic":
        return Part("arithmetic", "", rate, written)
    if written in RELEASED_NAMES:
        return Part("released", written, rate, written)
    if prefix == "jsonl" and argument:
        return Part("jsonl", argument if "://" in argument else str(Path(argument).expanduser()), rate, written)
    if prefix == "tfds" and colon:
        if argument not in TFDS_SETS:
            raise UserError(f"dataset = {written!r}: of TensorFlow Datasets there are {', '.join(TFDS_SETS)}")
        return Part("tfds", argument, rate, written)
    if written in SOURCES:
        return Part("registered", written, rate, written)
    choices = ", ".join((*CHOICES, *sorted(SOURCES)))
    raise UserError(f"dataset = {text!r}: choose one of {choices}, or several as NAME=RATE,NAME=RATE")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
