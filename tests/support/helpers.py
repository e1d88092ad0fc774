"""Small students and batches of several tests. Parameters come from numpy: expected values do not use jax.random."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.incremental import incremental
from cotmi_jax.models.module import ModuleDef, declare
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.models.t5 import shift_right


def small_config(**changes: Any) -> T5Config:
    """A T5 v1.1, one layer a stack: compiles fast, splits over four devices, and d_kv · heads is not d_model."""
    defaults: dict[str, Any] = dict(vocab_size=32, d_model=16, d_kv=6, d_ff=24, num_heads=4, dropout=0.0)
    defaults |= dict(num_encoder_layers=1, num_decoder_layers=1, relative_buckets=8, relative_max_distance=20)
    return T5Config(**(defaults | changes))


def numpy_params(student: StudentDef, seed: int = 0) -> Params:
    """Parameters large enough for every part of the network to matter: norms in [0.5, 1.5], the rest normal."""
    draw = np.random.default_rng(seed)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            return jnp.asarray(draw.uniform(0.5, 1.5, shape.shape), jnp.float32)
        return jnp.asarray(draw.normal(0.0, 1.0 if name == "embedding" else 0.3, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, student.shapes)


class Toy(nnx.Module):
    """A student of a table and a matrix that compiles in a fraction of T5's time. Each state depends on the same tokens
    as in T5."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.table = declare(rngs, (config.vocab_size, config.d_model), ("vocab", "embed"), 1.0)
        self.mix = declare(rngs, (config.d_model, config.d_model), ("kv", "embed"), 0.4)
        self.config = config

    def encode(self, inputs: jax.Array, key: jax.Array | None, segments: jax.Array | None = None) -> jax.Array:
        return jnp.tanh(self.table[...][inputs] @ self.mix[...])

    def decode(
        self,
        encoded: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
        key: jax.Array | None,
        segments: tuple[jax.Array, jax.Array] | None = None,
        source_segments_BxT: jax.Array | None = None,
        split: int = 0,
    ) -> jax.Array:
        input_segments, target_segments = segments or (jnp.ones_like(inputs), jnp.ones_like(targets))
        sources = target_segments if source_segments_BxT is None else source_segments_BxT
        reads = (sources[:, :, None] == input_segments[:, None, :]) & (inputs != 0)[:, None, :]
        read = jnp.where(reads[..., None], encoded[:, None], 0.0).sum(axis=2)
        return jnp.tanh(self.encode(shift_right(targets, 0, segments and target_segments), None) + read)

    def make_logits(self) -> Callable[[jax.Array], jax.Array]:
        return self.logits

    def logits(self, states: jax.Array) -> jax.Array:
        return states @ self.table[...].T


def toy_student(**changes: Any) -> StudentDef:
    """A Toy as a student."""
    config = small_config(**({"d_model": 8} | changes))
    traced: Any = ModuleDef.trace(lambda rngs: Toy(config, rngs=rngs))
    return StudentDef(traced.build, traced.graph, traced.shapes, traced.axes, config)


def random_ids(draw: np.random.Generator, lengths: Sequence[int], width: int, vocab_size: int = 32) -> np.ndarray:
    """int32 [len(lengths), width]: rows of random tokens that end in eos (1) at their length, then pad (0)."""
    ids = draw.integers(2, vocab_size, (len(lengths), width), dtype=np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = 0
        if length:
            row[length - 1] = 1
    return ids


def random_batch(seed: int, rows: int, *, tasks: Sequence[str] = ("predict", "explain"), vocab_size: int = 32) -> dict:
    """A batch as data/tokens.py makes it: sources of 7 columns, targets of 3 for `predict` and 6 for `explain`.

    Lengths differ from row to row; every row is valid.
    """
    draw = np.random.default_rng(seed)
    batch: dict[str, Any] = {"valid": np.ones(rows, bool), "weight": np.ones(rows, np.float32)}
    for task in tasks:
        width = 3 if task == "predict" else 6
        batch[task] = {
            "inputs": random_ids(draw, draw.integers(1, 8, rows), 7, vocab_size),
            "targets": random_ids(draw, draw.integers(1, width + 1, rows), width, vocab_size),
        }
    return batch


def assert_cached_logits_equal_teacher_forcing(
    student: StudentDef, params: Params, inputs_BxS: np.ndarray, targets_BxT: np.ndarray
) -> None:
    """Steps over a cache, a token at a time, gives the logits of `decode` over all targets."""
    length = targets_BxT.shape[1]
    previous_BxT = np.pad(targets_BxT[:, :-1], ((0, 0), (1, 0)))

    @jax.jit
    def both(params: Params) -> tuple[jax.Array, jax.Array]:
        bound = student.bind(params)
        steps = incremental(bound)

        def step(cache: Any, token: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            logits_Bx1xV, cache = steps.step(token[1][:, None], token[0], cache)
            return cache, logits_Bx1xV[:, 0]

        encoded_BxSxD = bound.encode(inputs_BxS)
        cache = steps.init_cache(encoded_BxSxD, inputs_BxS != 0, length + 3, 1)  # longer than is used
        _, logits_TxBxV = jax.lax.scan(step, cache, (jnp.arange(length), previous_BxT.T))
        forced_BxTxV = bound.make_logits()(bound.decode(encoded_BxSxD, inputs_BxS, targets_BxT))
        return jnp.swapaxes(logits_TxBxV, 0, 1), forced_BxTxV

    cached, forced = both(params)
    np.testing.assert_allclose(cached, forced, rtol=1e-4, atol=1e-4)


def assert_trees_close(actual: Any, expected: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """allclose, leaf by leaf, with the leaf's path in the message."""
    flat = jax.tree_util.tree_leaves_with_path(actual)
    others = jax.tree_util.tree_leaves_with_path(expected)
    assert [path for path, _ in flat] == [path for path, _ in others]
    for (path, leaf), (_, other) in zip(flat, others, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
