"""The student: its interface, the registry of networks (T5 and a user's own), and a network without its parameters.

Legend of the shape suffixes in t5.py.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from cotmi_jax.errors import UserError, unknown_name
from cotmi_jax.models.config import StudentConfig, T5Config, preset, with_execution
from cotmi_jax.models.module import ModuleDef, Params, count_parameters
from cotmi_jax.models.t5 import T5, Cache

__all__ = ["NETWORKS", "Network", "Params", "Student", "StudentDef", "count_parameters", "register_student"]


class Student(Protocol):
    """An encoder-decoder. Its parameters are made by models.module.declare; dropout is on where a key is given.

    Generation calls init_cache and decode_step. T5 has a faster form instead of the two (models.incremental.T5Steps).
    """

    config: Any  # a StudentConfig

    def encode(self, inputs_BxS: Array, key: Array | None = None, segments_BxS: Array | None = None) -> Array:
        """Encoder states [B, S, D] of padded ids. With segments (packed rows; 0 is padding), the states of a segment
        depend on the tokens of that segment only, and equal those of the same tokens alone in a row."""

    def decode(
        self,
        encoded_BxSxD: Array,
        inputs_BxS: Array,
        targets_BxT: Array,
        key: Array | None = None,
        segments: tuple[Array, Array] | None = None,
    ) -> Array:
        """Decoder states [B, T, D] under teacher forcing; states[:, t] depends on targets[:, :t].

        segments: in packed rows, those of the inputs [B, S] and of the targets [B, T]; the states of a segment depend
        on the inputs and targets of that segment only. A network that takes source_segments_BxT and split in addition,
        as T5 does, can train the estimator conditional on packed rows.
        """

    def make_logits(self) -> Callable[[Array], Array]:
        """A function from states [B, T, D] to float32 logits [B, T, V]."""

    # T5 has neither of the following two: it generates through models.incremental.T5Steps.

    def init_cache(self, encoded_BxSxD: Array, length: int) -> Cache:
        """Cache of generation: arrays [L, B, …]. Beam search permutes axis 1 of all but those named cross_*, which
        depend only on the inputs."""

    def decode_step(
        self, token_B: Array, position: Array, cache: Cache, source_valid_BxS: Array
    ) -> tuple[Array, Cache]:
        """Logits [B, V] of the token after token_B, which is at a scalar position, and the updated cache."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A kind of student that config.model.network names."""

    config_type: type  # a frozen dataclass of JSON values: run.json records it
    make_config: Callable[[ConfigDict, int], Any]  # from config.model and the vocabulary size
    build: Callable[..., Any]  # (config, *, rngs) → a Student that is an nnx.Module
    supports_packing: bool  # encode and decode keep the segments of packed rows apart


def _t5_config(model: ConfigDict, vocab_size: int) -> T5Config:
    return with_execution(preset(model.preset, model.family, vocab_size=vocab_size), model)


NETWORKS: dict[str, Network] = {"t5": Network(T5Config, _t5_config, T5, supports_packing=True)}


def register_student(
    name: str,
    config_type: type,
    make_config: Callable[[ConfigDict, int], Any],
    build: Callable[..., Any],
    *,
    supports_packing: bool = False,
) -> None:
    """Make a network available as config.model.network = name. A name registered again is replaced, except t5.

    supports_packing: encode and decode keep the segments of packed rows apart, as Student states. Without it a run with
      config.data.packing is refused, because the examples of a row would be mixed.

    Raises UserError for the name t5, and if config_type is not a dataclass or belongs to another network.
    """
    if name == "t5":
        raise UserError("student 't5' is the package's own: register yours by another name")
    if not (inspect.isclass(config_type) and dataclasses.is_dataclass(config_type)):
        raise UserError(f"student {name!r}: config_type {config_type!r} is not a dataclass: pass a frozen dataclass")
    for other, network in NETWORKS.items():
        if other != name and network.config_type is config_type:
            raise UserError(f"student {name!r}: {config_type.__name__} belongs to {other!r}: give it its own class")
    NETWORKS[name] = Network(config_type, make_config, build, supports_packing)


def find_network(name: str) -> Network:
    """The network of that name. Raises UserError for an unknown one."""
    if name not in NETWORKS:
        raise unknown_name(f"config.model.network is {name!r}", NETWORKS)
    return NETWORKS[name]


def _build(config: StudentConfig, rngs: nnx.Rngs) -> Any:
    build = next((network.build for network in NETWORKS.values() if network.config_type is type(config)), None)
    if build is None:
        raise UserError(
            f"no student is registered for {type(config).__name__}: register it in a file of config.extensions"
        )
    return build(config, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class StudentDef(ModuleDef[Any]):
    """A student of a certain shape; `bind` gives a Student."""

    config: Any  # a StudentConfig

    @classmethod
    def of(cls, config: StudentConfig) -> "StudentDef":
        """Trace the module of the config's type; nothing is allocated. Raises UserError if none is registered."""
        traced: ModuleDef[Any] = ModuleDef.trace(functools.partial(_build, config))
        return cls(traced.build, traced.graph, traced.shapes, traced.axes, config)
