"""Checkpoints of a workdir through orbax: {state, data position, config} of the latest steps, and the best student.

{workdir}/checkpoints/{step}/{params,mi,optimizer,data,config}     the latest few, to go on from
{workdir}/best/{step}/{params,config,metrics}                      the best on the valid split, to evaluate

params are the student's; mi, the networks and the state of the mutual-information term, is there if it has any.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, check_described, told
from cotmi_jax.mi.bounds import MineState
from cotmi_jax.models.student import Params
from cotmi_jax.sharding import PyTree
from cotmi_jax.training.state import TrainState

Json = dict[str, Any]
LATEST, BEST = "checkpoints", "best"


@dataclasses.dataclass(frozen=True)
class Saved:
    """One checkpoint on disk."""

    directory: Path
    step: int

    def __str__(self) -> str:
        return str(self.directory / str(self.step))


def _manager(directory: Path, keep: int) -> ocp.CheckpointManager:
    check_described(directory)
    with told(f"cannot write checkpoints to {directory}"):
        return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))


def _items(state: TrainState) -> dict[str, PyTree]:
    """A state as the trees it is saved as. The student lies apart, so that evaluation reads nothing else."""
    items = {"params": {"student": state.params["student"]}, "optimizer": state.opt_state}
    if "mi" in state.params:
        items["mi"] = {"params": state.params["mi"]} | ({} if state.mi is None else {"state": state.mi._asdict()})
    return items


class Checkpoints:
    """Writes a run's checkpoints, asynchronously: save returns once the arrays are copied off the devices."""

    def __init__(self, workdir: Path, *, keep: int):
        self.workdir = workdir
        self._latest = _manager(workdir / LATEST, keep)
        self._best = _manager(workdir / BEST, 1)

    def save(self, state: TrainState, step: int, data: Json, config: Json) -> None:
        """Save everything needed to go on after `step`; does nothing if that step is saved already."""
        if self._latest.latest_step() == step:
            return
        self._latest.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()},
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(config),
            ),
        )

    def save_best(self, params: Params, step: int, metrics: Json, config: Json) -> None:
        """Replace the best student. A run that replays steps after a restart keeps the result it finds again."""
        if self._best.latest_step() == step:
            return
        self._best.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                metrics=ocp.args.JsonSave(metrics),
                config=ocp.args.JsonSave(config),
            ),
        )

    def wait(self) -> None:
        """Return once everything is on disk."""
        for manager in (self._latest, self._best):
            manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then end."""
        self.wait()
        for manager in (self._latest, self._best):
            manager.close()


def saved(workdir: Path, which: Literal["latest", "best"] | int) -> Saved | None:
    """The latest or best checkpoint of a workdir, or that of a step; None where there is none."""
    directory = workdir / (BEST if which == "best" else LATEST)
    # Orbax renames a directory to its bare number when it is complete; in a bucket it leaves a mark in it instead.
    numbered = [path for path in directory.glob("*") if path.name.isdigit()]
    steps = sorted(int(path.name) for path in numbered if ocp.utils.is_checkpoint_finalized(path))
    if not steps or (isinstance(which, int) and which not in steps):
        return None
    return Saved(directory, which if isinstance(which, int) else steps[-1])


def find(workdir: Path, which: Literal["latest", "best"] | int) -> Saved:
    """Like saved; raises UserError where there is none."""
    found = saved(workdir, which)
    if found is None:
        what = f"checkpoint of step {which}" if isinstance(which, int) else f"{which} checkpoint"
        hint = ", or one that never scored its valid split, which --checkpoint=latest is for" if which == "best" else ""
        raise UserError(f"no {what} in {workdir}: is it the --workdir of a run that saved one{hint}?")
    return found


@contextlib.contextmanager
def _abandoned_reads_are_silent() -> Iterator[None]:
    """When one array cannot be read, orbax closes its event loop while tensorstore still reads the others.

    Each of those then reports by itself that the loop is closed, from a thread that nothing can wait for, or that it
    failed too, when its task is collected. Such reports may come at any later time, so after a failure this stays.
    """
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:  # sys.UnraisableHookArgs exists for type checkers only
        if not str(unraisable.exc_value).startswith(("Event loop is closed", "Encountered error while reading")):
            before(unraisable)

    sys.unraisablehook = report
    try:
        yield
    except Exception:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    sys.unraisablehook = before


def _restore(checkpoint: Saved, args: ocp.args.Composite) -> Any:
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        with _abandoned_reads_are_silent(), ocp.CheckpointManager(checkpoint.directory, options=options) as manager:
            return manager.restore(checkpoint.step, args=args)
    except Exception as error:
        # What tensorstore and orbax raise for missing, truncated or foreign files; for an array it is Exception itself.
        if not isinstance(error, ValueError | KeyError | OSError) and type(error) is not Exception:
            raise
        reason = str(error).strip().splitlines()[0].partition(". See full")[0][:200]
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({reason}): move that directory away to use an earlier one"
        ) from error


def restore_json(checkpoint: Saved, item: Literal["config", "data", "metrics"]) -> Json:
    """One JSON item of a checkpoint."""
    return _restore(checkpoint, ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]


def restore_params(checkpoint: Saved, abstract: PyTree) -> Params:
    """The parameters alone, placed as the abstract tree says: on any mesh."""
    return _restore(checkpoint, ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))["params"]


def restore_state(checkpoint: Saved, abstract: TrainState) -> TrainState:
    """Everything a step changes, placed as the abstract state says: on any mesh."""
    arguments = {name: ocp.args.StandardRestore(tree) for name, tree in _items(abstract).items()}
    items = _restore(checkpoint, ocp.args.Composite(**arguments))
    step = jax.device_put(jnp.asarray(checkpoint.step, jnp.int32), abstract.step.sharding)
    params, information = items["params"], items["mi"] if "mi" in arguments else {}
    if information:
        params = params | {"mi": information["params"]}
    mi = MineState(**information["state"]) if "state" in information else None
    return TrainState(step, params, items["optimizer"], mi)
