"""Devices of a TPU slice to compile for, without the slice: any machine that has libtpu can do it. Or a GPU."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from cotmi_jax.aot.gpu import GPU, gpu_devices
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.accelerators import set_libtpu_stack_size

# Without these libtpu queries a cloud's metadata server and logs errors if there is none. It also refuses to be loaded
# by two processes at once, which protects a chip in use; compiling uses none.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_EXAMPLES = "v4-8, v5e-64, v6e-8 or, as a grid of chips, v4:2x2x1, v5e:8x8"


class _Generation(NamedTuple):
    dimensions: int  # of the grid of chips
    per_chip: int  # how much the number of a slice counts per chip: 2 (cores) up to v5p, 1 (chips) for v5e and v6e
    chips: int  # of the largest slice whose size is a power of two


_GENERATIONS = {
    "v2": _Generation(2, 2, 256),
    "v3": _Generation(2, 2, 1024),
    "v4": _Generation(3, 2, 4096),
    "v5p": _Generation(3, 2, 4096),
    "v5e": _Generation(2, 1, 256),
    "v6e": _Generation(2, 1, 256),
}


def grid(name: str) -> str:
    """The grid of chips of a slice in either notation: v5litepod-64, v5e-64 and v5e:8x8 all give v5e:8x8.

    A slice has one chip, or a power of two from four on, in the grid of Google Cloud: as square as possible, the
    longest side last. Raises UserError for a slice that does not exist.
    """
    found = re.fullmatch(r"(v\d[ep]?)(?:-(\d+)|:(\d+(?:x\d+)+))", name.replace("v5litepod", "v5e"))
    if found is None or found.group(1) not in _GENERATIONS:
        raise UserError(f"unknown topology {name!r}: use a name like {_EXAMPLES}")
    generation, count, sides = found.groups()
    dimensions, per_chip, most = _GENERATIONS[generation]
    if sides is not None:
        sizes = [int(side) for side in sides.split("x")]
        hosts = all(size > 0 for size in sizes) and not (sizes[0] % 2 or sizes[1] % 2)
        if len(sizes) != dimensions or not (hosts or set(sizes) == {1}):
            example = "x".join("221"[:dimensions])
            raise UserError(
                f"unknown topology {name!r}: a grid of {generation} has {dimensions} sides, all 1 or the first two "
                f"even, as {generation}:{example}"
            )
        return f"{generation}:{sides}"
    powers = [0, *range(2, most.bit_length())]
    numbers = [per_chip << power for power in powers]
    if int(count) not in numbers:
        raise UserError(
            f"unknown topology {name!r}: {generation} has {', '.join(f'{generation}-{n}' for n in numbers)}"
        )
    power = powers[numbers.index(int(count))]
    powers_of_sides = [(power + index) // dimensions for index in range(dimensions)]
    if dimensions == 3 and power == 2:
        powers_of_sides = [1, 1, 0]  # one host
    return f"{generation}:" + "x".join(str(1 << side) for side in powers_of_sides)


def topology_devices(name: str) -> Sequence[jax.Device]:
    """The devices of a slice, to compile for, or h100, one GPU.

    Raises UserError for an unknown slice, and if libtpu, or for a GPU the CUDA plugin, is missing.
    """
    if name == GPU:
        return gpu_devices()
    layout = grid(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPUs needs libtpu: pip install -e '.[tpu]' (in the repository)")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    set_libtpu_stack_size()
    options: dict[str, object] = {}
    if layout.startswith(("v4", "v5p")):
        options["chip_config_name"] = "megacore"  # the default of these chips: two cores form one device
    if math.prod(int(side) for side in layout.split(":")[1].split("x")) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(layout, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {name!r}: {str(error).splitlines()[0]}; use a name like {_EXAMPLES}") from error
