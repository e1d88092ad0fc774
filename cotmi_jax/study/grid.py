"""The sweep of a study file: its runs as dicts of config keys, and how axes combine into them."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from cotmi_jax.errors import UserError

RECIPE = "recipe"  # key of a run that names its recipe; without it, the run has that of the study file's get_config()
ARM = "arm"  # key of a run that names its method in tables; without it, that is the objective
Settings = dict[str, Any]  # RECIPE and ARM, which may be absent, and dotted config keys with their values


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How each finished run is evaluated, as the flags of `evaluate`. A study file may set EVALUATION to another.

    metrics: names separated by commas; None: those by default. information: None: as by default.
    """

    split: Literal["train", "valid", "test"] = "test"
    checkpoint: str = "best"
    metrics: str | None = None
    information: bool | None = None


def axis(key: str, values: Iterable[Any]) -> list[Settings]:
    """One run for each value of a key."""
    return [{key: value} for value in values]


def seeds(number: int) -> list[Settings]:
    """One run for each of the seeds 0 … number − 1."""
    return axis("seed", range(number))


def arms(settings: Mapping[str, Mapping[str, Any]]) -> list[Settings]:
    """One run for each arm: its name, and the keys that make it."""
    return [{ARM: name, **keys} for name, keys in settings.items()]


def product(*axes: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """Each combination of one run of every axis, as one run. Runs start in this order: the last axis is the fastest.

    Raises UserError where two runs that are combined set one key to different values.
    """
    return [_joined(combination) for combination in itertools.product(*axes)]


def _joined(parts: Iterable[Mapping[str, Any]]) -> Settings:
    joined: Settings = {}
    for part in parts:
        for key, value in part.items():
            if joined.setdefault(key, value) != value:
                raise UserError(f"product: two axes set {key}, to {joined[key]!r} and {value!r}: leave one out")
    return joined
