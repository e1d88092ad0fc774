"""Parses `config.data.dataset`: one component, or several with rates, such as "svamp=3,arithmetic=1"."""

import math
import os
from pathlib import Path
from typing import Literal, NamedTuple

from cotmi_jax.data.sources.generated import GENERATED
from cotmi_jax.data.sources.hf_datasets import is_folder
from cotmi_jax.data.sources.registered import SOURCES
from cotmi_jax.data.sources.released_sets import RELEASED_NAMES
from cotmi_jax.data.sources.tfds_formats import TFDS_SETS
from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import absolute

SourceKind = Literal["released", "generated", "jsonl", "csv", "tsv", "parquet", "hf", "tfds", "registered"]
FILE_KINDS: tuple[SourceKind, ...] = ("jsonl", "csv", "tsv", "parquet")
OWN_KINDS: tuple[SourceKind, ...] = (*FILE_KINDS, "hf")  # whose rows config.data.fields describes
CHOICES = (
    *sorted((*RELEASED_NAMES, *GENERATED)),
    *(f"{kind}:PATH" for kind in FILE_KINDS),
    "hf:NAME_OR_PATH",
    "tfds:NAME",
)


class ComponentSpec(NamedTuple):
    """One component of a data set.

    kind: the kind of its source.
    argument: its name or path there.
    rate: relative frequency of its examples in training.
    written: the component as the user wrote it, without the rate.
    """

    kind: SourceKind
    argument: str
    rate: float
    written: str


def parse_dataset(dataset: str) -> tuple[ComponentSpec, ...]:
    """The components that a data set string names, in order.

    A number after the last "=" is the rate; so a path can contain "=" if no number follows the last one.

    Raises:
      UserError: an unknown component, one that is named twice, or a rate that is not a finite number above 0.
    """
    components = tuple(_parse_component(written.strip()) for written in dataset.split(","))
    for i, component in enumerate(components):
        if component[:2] in [earlier[:2] for earlier in components[:i]]:
            raise UserError(
                f"dataset = {shown(dataset)} names {one_line(component.written)} twice: give it once, with the sum of "
                "the rates"
            )
    return components


def with_absolute_paths(dataset: str) -> str:
    """The same string with absolute paths, so that it names the same files from any folder."""
    names = []
    for component in parse_dataset(dataset):
        if component.kind in FILE_KINDS or (component.kind == "hf" and is_folder(component.argument)):
            path = absolute(component.argument)
            if "," in path:
                raise UserError(
                    f"dataset: {one_line(path)}: a path cannot contain a comma: move the files, or link them"
                )
            name = f"{component.kind}:{path}"
        else:
            name = component.written
        # A path with "=" needs a rate after it: its own end could be read as one.
        names.append(name if component.rate == 1 and "=" not in name else f"{name}={component.rate:.12g}")
    return ",".join(names)


def _parse_component(text: str) -> ComponentSpec:
    written, _, last = (piece.strip() for piece in text.rpartition("="))
    rate = _number(last) if written else None
    if rate is None:  # There is no rate; a "=" is part of a path.
        written, rate = text, 1.0
    if not (rate > 0 and math.isfinite(rate)):
        raise UserError(f"dataset: the rate of {one_line(written)} is {last}: give a number above 0")
    prefix, colon, argument = written.partition(":")
    if written in GENERATED:
        return ComponentSpec("generated", written, rate, written)
    if written in RELEASED_NAMES:
        return ComponentSpec("released", written, rate, written)
    for kind in OWN_KINDS:
        if prefix == kind and argument:
            # Not through Path for hf, where "./name" is a folder and "name" may be on the hub.
            keep = "://" in argument or kind == "hf"
            path = os.path.expanduser(argument) if keep else str(Path(argument).expanduser())
            return ComponentSpec(kind, path, rate, written)
    if prefix == "tfds" and colon:
        if argument not in TFDS_SETS:
            raise UserError(
                f"dataset = {shown(written)}: the data sets of TensorFlow Datasets are {', '.join(TFDS_SETS)}"
            )
        return ComponentSpec("tfds", argument, rate, written)
    if written in SOURCES:
        return ComponentSpec("registered", written, rate, written)
    choices = ", ".join((*CHOICES, *sorted(SOURCES)))
    raise UserError(f"dataset = {shown(text)}: choose one of {choices}, or several as NAME=RATE,NAME=RATE")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
