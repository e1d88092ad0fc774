"""Hours of runs on a slice that nobody has to hold: their training step, compiled for it by aot."""

import dataclasses
import json
import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.aot.programs import default_shape, programs
from cotmi_jax.aot.report import compile_program, compiler_options, shortage
from cotmi_jax.aot.topology import topology_devices
from cotmi_jax.config import flatten
from cotmi_jax.data.packing import PackShape
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import find_vocabulary
from cotmi_jax.parallel.accelerators import find_accelerator
from cotmi_jax.parallel.mesh import batch_shards, make_mesh
from cotmi_jax.study.plan import PlannedRun
from cotmi_jax.study.study import Say

# What the compiled step depends on; that of the data gives the shape of its batches.
_OF_STEP = ("model.", "mi.", "objective.name", "batch_size", "micro_batches", "mesh.", "optimizer.name", "data.")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A training step on a slice. seconds: by the roofline, without communication. missing: why there are none."""

    seconds: float | None
    batch: str = ""
    missing: str = ""


def compiled_hours(runs: Sequence[PlannedRun], topology: str, say: Say) -> list[float | None]:
    """Device-hours of the training of each run, None where they are not available; says what each step takes.

    The roofline bounds the time of a step from below; evaluation, communication and input are not in it. Raises
    UserError for a topology that is not known.
    """
    devices, known = topology_devices(topology), dict[str, Compiled]()
    hours: list[float | None] = []
    for run in runs:
        config = _as_compiled(run.config)
        flat = flatten(config)
        key = json.dumps({name: flat[name] for name in flat if name.startswith(_OF_STEP)})
        if key not in known:
            known[key] = _compile(config, make_mesh(**config.mesh.to_dict(), devices=devices))
            say(f"{run.label}: {_described(known[key], topology)}")
        seconds = known[key].seconds
        hours.append(None if seconds is None else seconds * config.steps * len(devices) / 3600)
    return hours


def _described(step: Compiled, topology: str) -> str:
    if step.seconds is None:
        return f"hours not available: {step.missing}"
    return f"a step of {step.batch} takes at least {1e3 * step.seconds:.1f} ms on {topology}"


def _as_compiled(config: ConfigDict) -> ConfigDict:
    """The config with the preset that its checkpoint's name states, and packed batches, whose shape the data gives."""
    config = config.copy_and_resolve_references()
    size = re.search(r"t5-v1_1-(small|base|large|xl|xxl)$", config.model.init)
    config.model.preset = size[1] if size else config.model.preset
    config.data.packing = True
    if config.mi.estimator == "released":  # of padded batches only; its cost is that of a contrast
        config.mi.estimator = "infonce"
    return config


def _compile(config: ConfigDict, mesh: Mesh) -> Compiled:
    accelerator = find_accelerator(mesh.devices.flat[0].device_kind)
    assert accelerator is not None, mesh.devices.flat[0].device_kind
    try:
        shape, origin = _shape(config, mesh)
        program = programs(config, mesh, shape)["train"]
        with jax.set_mesh(mesh):
            report = compile_program(program, accelerator, compiler_options(accelerator, quick=True))
    except UserError as error:
        return Compiled(None, missing=str(error))
    if report.roofline is None:
        return Compiled(None, missing=shortage("train", report))
    return Compiled(report.roofline.total.seconds, f"{program.batch} ({origin})")


def _shape(config: ConfigDict, mesh: Mesh) -> tuple[PackShape, str]:
    """The shape of the data's batches; where it cannot be read, that of the longest rows which the config allows."""
    try:
        found = RunData.of(config, Vocabulary(find_vocabulary(_with_vocabulary(config))))
        shape = found.shape(batch_shards(mesh), mesh.devices.flat[0].platform)
    except UserError as error:
        return default_shape(
            config, mesh
        ), f"the most that data.max_input_tokens allows, as the data cannot be read: {error}"
    assert shape is not None  # batches are packed
    return shape, "as the data gives"


def _with_vocabulary(config: ConfigDict) -> ConfigDict:
    """The config with random parameters where its checkpoint is one of T5, whose vocabulary the release has beside."""
    if re.search(r"t5-v1_1-\w+$", config.model.init):
        config = config.copy_and_resolve_references()
        config.model.init = "random"
    return config
