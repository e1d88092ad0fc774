"""Which mesh to train or to use a student on, and the least that training's devices then have to tell each other."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from cotmi_jax.errors import UserError
from cotmi_jax.models.config import StudentConfig, T5Config

STATE_BYTES = 16  # a parameter: itself, its gradient and Adam's two moments, in float32
# Of a device's memory that the state may take; activations and the compiler's buffers want the rest. Where no mesh
# keeps to the first share, small batches of recomputed activations leave room for the second.
STATE_SHARES = (0.4, 0.75)
PARAMETERS_SHARE = 0.5  # likewise of the parameters alone, in float32, where a student is only used


class MeshShape(NamedTuple):
    """Sizes of the mesh's axes."""

    data: int
    fsdp: int
    tensor: int


def parameter_count(config: T5Config) -> tuple[int, int]:
    """Parameters of the layers and of everything: matrices, embedding and head, without norms and position biases."""
    d, inner = config.d_model, config.num_heads * config.d_kv
    mlp = (3 if config.gated else 2) * d * config.d_ff
    layers = config.num_encoder_layers * (4 * d * inner + mlp) + config.num_decoder_layers * (8 * d * inner + mlp)
    return layers, layers + (1 if config.tied else 2) * config.vocab_size * d


def recommended_mesh(config: T5Config, devices: int, memory: float) -> MeshShape:
    """A mesh for `devices` of `memory` bytes each.

    fsdp as small as the state allows: the least power of two that brings it below a share of the memory. What is
    left goes to data, whose gradients are summed but whose parameters are never gathered. tensor stays 1 unless fsdp
    cannot split d_model far enough: it sends activations in every layer, which rows of a thousand tokens make dearer
    than parameters. Heads, mlp and vocabulary must divide by tensor, d_model by fsdp.

    Raises UserError where no mesh holds the state.
    """
    state = STATE_BYTES * parameter_count(config)[1]
    for share in STATE_SHARES:
        for mesh in _meshes(config, devices, grows="fsdp"):
            if state / (mesh.fsdp * mesh.tensor) <= share * memory:
                return mesh
    raise UserError(
        f"{devices} devices of {memory / 2**30:.0f} GiB do not hold {state / 2**30:.0f} GiB of parameters, gradients "
        f"and Adam's moments in {STATE_SHARES[-1]:.0%} of their memory: take more devices, or optimizer.name adafactor"
    )


def inference_mesh(config: StudentConfig, devices: int, memory: float) -> MeshShape:
    """A mesh for scoring and generation on `devices` of `memory` bytes each; infinite: not known, data alone.

    tensor as small as the parameters allow, and fsdp only where heads, mlp and vocabulary cannot be split further: fsdp
    gathers the whole decoder once for every token generated, tensor sends a few activations.

    Raises UserError where no mesh holds the parameters.
    """
    if not isinstance(config, T5Config):
        return MeshShape(devices, 1, 1)  # how another network divides is not known
    parameters = 4 * parameter_count(config)[1]
    for mesh in _meshes(config, devices, grows="tensor"):
        if parameters / (mesh.fsdp * mesh.tensor) <= PARAMETERS_SHARE * memory:
            return mesh
    raise UserError(
        f"{devices} devices of {memory / 2**30:.0f} GiB do not hold {parameters / 2**30:.0f} GiB of parameters in "
        f"{PARAMETERS_SHARE:.0%} of their memory: take more devices"
    )


def generation_mesh(config: StudentConfig, mesh: MeshShape) -> MeshShape:
    """The mesh to generate on while training on another: as much of fsdp as heads, mlp and vocabulary allow goes to
    tensor, for the reason that inference_mesh gives."""
    if not isinstance(config, T5Config):
        return mesh
    data, fsdp, tensor = mesh
    factors = (n for n in range(1, fsdp + 1) if fsdp % n == 0 and _divides(config, fsdp // n, tensor * n))
    moved = max(factors, default=1)
    return MeshShape(data, fsdp // moved, tensor * moved)


def _meshes(config: T5Config, devices: int, grows: Literal["fsdp", "tensor"]) -> Iterator[MeshShape]:
    """Meshes that split every parameter, by powers of two; the axis that `grows` does so before the other is split."""
    for other in _powers(devices):
        for size in _powers(devices // other):
            fsdp, tensor = (size, other) if grows == "fsdp" else (other, size)
            if devices % (fsdp * tensor) == 0 and _divides(config, fsdp, tensor):
                yield MeshShape(devices // (fsdp * tensor), fsdp, tensor)


def _powers(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length())]


def _divides(config: T5Config, fsdp: int, tensor: int) -> bool:
    split = (config.num_heads, config.d_ff, config.vocab_size)
    return config.d_model % fsdp == 0 and all(size % tensor == 0 for size in split)
