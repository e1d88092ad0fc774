"""Compares what the processes of one job were given: processes with other settings would train one model together."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from cotmi_jax.errors import UserError
from cotmi_jax.parallel.distributed import AllGather, all_gather_text

_NAMED = 5  # differences that a message names
_LENGTH = 60  # characters of a value that it shows
_ABSENT = object()


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as text, such as 0, 2-5."""
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _shown(value: Any) -> str:
    text = "absent" if value is _ABSENT else value if isinstance(value, str) else json.dumps(value)
    text = ascii(text)[1:-1]
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}…"


def check_agreement(what: str, facts: Mapping[str, Any], all_gather: AllGather = all_gather_text) -> None:
    """Raises UserError in every process unless all have the same facts; all of them must call it.

    facts: name → JSON value. The message names what differs, and which processes have which value.
    """
    given = [json.loads(text) for text in all_gather(json.dumps(facts))]
    if all(each == given[0] for each in given):
        return
    differences = []
    for name in sorted(set().union(*given)):
        values: list[Any] = []
        owners: list[list[int]] = []
        for process, each in enumerate(given):
            value = each.get(name, _ABSENT)
            if value not in values:
                values.append(value)
                owners.append([])
            owners[values.index(value)].append(process)
        if len(values) > 1:
            pairs = zip(values, owners, strict=True)
            differences.append(
                f"{name} ({'; '.join(f'process {_ranges(who)}: {_shown(value)}' for value, who in pairs)})"
            )
    more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
    raise UserError(f"the processes of this job differ in {', '.join(differences[:_NAMED])}{more}: {what}")
