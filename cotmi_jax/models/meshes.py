"""Recommended meshes: for training, for evaluation, and for generation during training."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from cotmi_jax.errors import UserError
from cotmi_jax.models.config import StudentConfig, T5Config

STATE_BYTES = 16  # per parameter: itself, its gradient and Adam's two moments, in float32
# Fractions of a device's memory for the state; activations and the compiler's buffers need the rest. If no mesh meets
# the first, the second still works with small batches and rematerialization.
STATE_FRACTIONS = (0.4, 0.75)
PARAMETER_FRACTION = 0.5  # likewise for the float32 parameters, for evaluation and generation


class MeshShape(NamedTuple):
    """Sizes of the mesh's axes."""

    data: int
    fsdp: int
    tensor: int


def parameter_count(config: T5Config) -> tuple[int, int]:
    """Numbers of parameters of the layers and of all: layers, embedding and head; without norms and position biases."""
    d, inner = config.d_model, config.num_heads * config.d_kv
    mlp = (3 if config.gated else 2) * d * config.d_ff
    layers = config.num_encoder_layers * (4 * d * inner + mlp) + config.num_decoder_layers * (8 * d * inner + mlp)
    return layers, layers + (1 if config.tied else 2) * config.vocab_size * d


def recommended_mesh(config: T5Config, devices: int, memory: float) -> MeshShape:
    """A mesh for `devices` of `memory` bytes each.

    fsdp is the least power of two that brings the state below a fraction of the memory; the remaining devices go to
    data, which all-reduces gradients but never gathers parameters. tensor stays 1 unless d_model does not divide by a
    large enough fsdp: it all-reduces activations in every layer, more bytes than the parameters for rows of a thousand
    tokens. Heads, mlp and vocabulary must divide by tensor, d_model by fsdp.

    Raises UserError if no mesh holds the state.
    """
    state = STATE_BYTES * parameter_count(config)[1]
    for fraction in STATE_FRACTIONS:
        for mesh in _meshes(config, devices, grows="fsdp"):
            if state / (mesh.fsdp * mesh.tensor) <= fraction * memory:
                return mesh
    raise UserError(
        f"{devices} devices of {memory / 2**30:.0f} GiB do not hold {state / 2**30:.0f} GiB of parameters, gradients "
        f"and Adam's moments in {STATE_FRACTIONS[-1]:.0%} of their memory: use more devices, or set optimizer.name to "
        "adafactor"
    )


def inference_mesh(config: StudentConfig, devices: int, memory: float) -> MeshShape:
    """A mesh for evaluation and generation on `devices` of `memory` bytes each (infinite: unknown, data only).

    tensor is the least that holds the parameters; fsdp is used only if heads, mlp and vocabulary do not divide further,
    because it gathers the decoder for every token generated, where tensor sends a few activations.

    Raises UserError if no mesh holds the parameters.
    """
    if not isinstance(config, T5Config):
        return MeshShape(devices, 1, 1)  # which dimensions of another network divide is not known
    parameters = 4 * parameter_count(config)[1]
    for mesh in _meshes(config, devices, grows="tensor"):
        if parameters / (mesh.fsdp * mesh.tensor) <= PARAMETER_FRACTION * memory:
            return mesh
    raise UserError(
        f"{devices} devices of {memory / 2**30:.0f} GiB do not hold {parameters / 2**30:.0f} GiB of parameters in "
        f"{PARAMETER_FRACTION:.0%} of their memory: use more devices"
    )


def generation_mesh(config: StudentConfig, mesh: MeshShape) -> MeshShape:
    """The mesh for generation during training on `mesh`: as much of fsdp as heads, mlp and vocabulary allow becomes
    tensor, for the reason stated at inference_mesh."""
    if not isinstance(config, T5Config):
        return mesh
    data, fsdp, tensor = mesh
    factors = (n for n in range(1, fsdp + 1) if fsdp % n == 0 and _divides(config, fsdp // n, tensor * n))
    moved = max(factors, default=1)
    return MeshShape(data, fsdp // moved, tensor * moved)


def _meshes(config: T5Config, devices: int, grows: Literal["fsdp", "tensor"]) -> Iterator[MeshShape]:
    """Meshes of powers of two that divide every parameter; for each size of the other axis, `grows` increases."""
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
