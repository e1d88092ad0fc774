"""How long runs take: by the runs of the study that are done."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cotmi_jax.config import base, flatten
from cotmi_jax.study.record import StudyRecord, StudyRun

# What the time of a run depends on most; each later line is less like the run whose time is estimated.
_ALIKE: Sequence[tuple[str, ...]] = (
    ("data.dataset", "model.init", "model.preset", "steps", "objective.name", "mi.estimator"),
    ("data.dataset", "model.init", "model.preset", "steps"),
    ("data.dataset", "model.init", "model.preset"),
    ("model.init", "model.preset"),
)


def estimate(config: Mapping[str, Any], done: Sequence[StudyRun]) -> float | None:
    """Seconds of a run, from those of the finished runs that are most like it, by steps; None if none is like it.

    config: the keys that differ from base().
    """
    defaults = flatten(base())
    wanted = defaults | dict(config)
    known = [(run.seconds, defaults | dict(run.config)) for run in done if run.seconds]
    for keys in _ALIKE:
        like = [(seconds, its) for seconds, its in known if all(its[key] == wanted[key] for key in keys)]
        if like:
            return statistics.fmean(seconds * wanted["steps"] / its["steps"] for seconds, its in like)
    return None


def seconds_left(record: StudyRecord) -> float | None:
    """Wall-clock seconds until all runs are done by as many workers as there are now; None if that is not known."""
    done = [run for run in record.runs if run.state == "done"]
    running = [run for run in record.runs if run.state == "running"]
    left = [run for run in record.runs if run.state in ("pending", "running")]
    if not left:
        return 0.0
    times = [estimate(run.config, done) for run in left]
    known = [time for time in times if time is not None]
    if not known:
        return None
    missing = statistics.fmean(known) * (len(times) - len(known))
    return (sum(known) + missing - _half(known, running)) / max(1, len(running))


def _half(known: Sequence[float], running: Sequence[StudyRun]) -> float:
    """Running runs are half done on average."""
    return statistics.fmean(known) * len(running) / 2
