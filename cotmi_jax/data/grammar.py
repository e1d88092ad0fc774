"""What `config.data.dataset` names: one component, or several with rates: "svamp=3,arithmetic=1"."""

import math
from pathlib import Path
from typing import Literal, NamedTuple

from cotmi_jax.data.sources.registered import SOURCES
from cotmi_jax.data.sources.released_sets import RELEASED_NAMES
from cotmi_jax.data.sources.tfds_formats import TFDS_SETS
from cotmi_jax.errors import UserError
from cotmi_jax.files import absolute

SourceKind = Literal["released", "arithmetic", "jsonl", "tfds", "registered"]
CHOICES = (*sorted((*RELEASED_NAMES, "arithmetic")), "jsonl:PATH", "tfds:NAME")


class ComponentSpec(NamedTuple):
    """One component: where it comes from, its name or path there, and its share of the training stream.

    written is how the user gave it, without the rate.
    """

    kind: SourceKind
    argument: str
    rate: float
    written: str


def parse_dataset(dataset: str) -> tuple[ComponentSpec, ...]:
    """The components that a dataset string names, in order.

    What stands behind the last "=" is the rate; a path may hold "=" where no number follows the last one.

    Raises:
      UserError: an unknown component, one named twice, or a rate that is not a finite number above 0.
    """
    components = tuple(_parse_component(written.strip()) for written in dataset.split(","))
    for i, component in enumerate(components):
        if component[:2] in [earlier[:2] for earlier in components[:i]]:
            raise UserError(
                f"dataset = {dataset!r} names {component.written} twice: give it once, with the sum of the rates"
            )
    return components


def with_absolute_paths(dataset: str) -> str:
    """The same data sets, their files named absolutely, so that they are found from any folder."""
    written = []
    for component in parse_dataset(dataset):
        name = f"jsonl:{absolute(component.argument)}" if component.kind == "jsonl" else component.written
        # A path with "=" needs a rate behind it, so that its own end is not read as one.
        written.append(name if component.rate == 1 and "=" not in name else f"{name}={component.rate:.12g}")
    return ",".join(written)


def _parse_component(text: str) -> ComponentSpec:
    written, _, last = (piece.strip() for piece in text.rpartition("="))
    rate = _number(last) if written else None
    if rate is None:  # The name has no rate, or it is a path with "=" in it.
        written, rate = text, 1.0
    if not (rate > 0 and math.isfinite(rate)):
        raise UserError(f"dataset: the rate of {written} is {last}: give a number above 0")
    prefix, colon, argument = written.partition(":")
    if written == "arithmetic":
        return ComponentSpec("arithmetic", "", rate, written)
    if written in RELEASED_NAMES:
        return ComponentSpec("released", written, rate, written)
    if prefix == "jsonl" and argument:
        return ComponentSpec(
            "jsonl", argument if "://" in argument else str(Path(argument).expanduser()), rate, written
        )
    if prefix == "tfds" and colon:
        if argument not in TFDS_SETS:
            raise UserError(f"dataset = {written!r}: of TensorFlow Datasets there are {', '.join(TFDS_SETS)}")
        return ComponentSpec("tfds", argument, rate, written)
    if written in SOURCES:
        return ComponentSpec("registered", written, rate, written)
    choices = ", ".join((*CHOICES, *sorted(SOURCES)))
    raise UserError(f"dataset = {text!r}: choose one of {choices}, or several as NAME=RATE,NAME=RATE")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
