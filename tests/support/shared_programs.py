"""Jitted functions that the runs of a process share, where their config and student give the same programs.

JAX traces and lowers again for every new jitted function, also where the executable is in the cache of compiled
programs: that is most of the time of a tiny run.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Hashable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.config import flatten
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.experiment import Experiment
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.student import StudentDef
from cotmi_jax.training import job, loop
from cotmi_jax.training.state import StateDef

# Settings that reach a jitted function as arguments only.
_NOT_TRACED = ("data.", "eval.", "checkpoint.", "log.", "mi.monitor.")
_PROGRAMS: dict[Hashable, Any] = {}


def _key(config: ConfigDict, student: object) -> Hashable | None:
    """What determines the programs of a run, but for the mesh. None if code outside the package takes part."""
    if not isinstance(student, T5Config) or config.extensions:
        return None
    traced = {name: value for name, value in flatten(config).items() if not name.startswith(_NOT_TRACED)}
    return json.dumps(traced, sort_keys=True), student


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """While this is open, `train` in this process takes the functions of an earlier run of the same programs."""
    key: Hashable | None = None

    def share(name: str, detail: Hashable, make: Callable[[], Any]) -> Any:
        if key is None:
            return make()
        place = (name, key, detail)
        if place not in _PROGRAMS:
            _PROGRAMS[place] = make()
        return _PROGRAMS[place]

    experiment_of, initializer, make_step = Experiment.of, StateDef.initializer, loop.make_train_step
    shared: StateDef | None = None  # of the current run

    def experiment(config: ConfigDict, *args: Any, **kwargs: Any) -> Experiment:
        nonlocal key
        made = experiment_of(config, *args, **kwargs)
        key = _key(config, made.student)
        return made

    def student_def(config: Any) -> StudentDef:
        return share("student", None, lambda: StudentDef.of(config))

    def state_def(student: StudentDef, optimizer: Any, mesh: Mesh, objective: Any) -> StateDef:
        nonlocal shared
        shared = share("state", mesh, lambda: StateDef.of(student, optimizer, mesh, objective))
        return shared

    def init(definition: StateDef) -> Any:
        make = functools.partial(initializer, definition)
        return share("init", id(definition), make) if definition is shared else make()

    def step(definition: StateDef, *args: Any, **kwargs: Any) -> Any:
        make = functools.partial(make_step, definition, *args, **kwargs)
        return share("step", id(definition), make) if definition is shared else make()

    def evaluator(student: StudentDef, objective: Any, vocabulary: Any, mesh: Mesh, *, batch_size: int) -> Evaluator:
        make = functools.partial(Evaluator, student, objective, vocabulary, mesh, batch_size=batch_size)
        found = share("evaluator", (mesh, batch_size), make)
        found._vocabulary = vocabulary
        return found

    with (
        mock.patch.object(Experiment, "of", experiment),
        mock.patch.object(StateDef, "initializer", init),
        mock.patch.object(loop, "make_train_step", step),
        mock.patch.multiple(
            job,
            StudentDef=SimpleNamespace(of=student_def),
            StateDef=SimpleNamespace(of=state_def),
            Evaluator=evaluator,
        ),
    ):
        yield
