"""Greedy generation after a given beginning of the output, for students asked what follows. Imports no tensorflow."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.data.tokens import Ragged, round_up
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.models.incremental import incremental
from cotmi_jax.models.student import Params, Student, StudentDef
from cotmi_jax.parallel.batch import make_process_rows, put_batch
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import replicated

_MULTIPLE = 16  # lengths are rounded up to it, so that few shapes are compiled


class _State(NamedTuple):
    position: Array
    token_B: Array
    tokens_BxT: Array
    done_B: Array
    cache: Any


def continue_greedily(student: Student, inputs_BxS: Array, begun_BxT: Array) -> Array:
    """Tokens [B, T] that start with those of begun_BxT up to its padding, and go on greedily to eos or to T tokens."""
    pad_id, eos_id = student.config.pad_id, student.config.eos_id
    batch, length = begun_BxT.shape
    steps, valid_BxS = incremental(student), inputs_BxS != pad_id

    def step(state: _State) -> _State:
        logits_Bx1xV, cache = steps.step(state.token_B[:, None], state.position, state.cache)
        given_B = jax.lax.dynamic_index_in_dim(begun_BxT, state.position, axis=1, keepdims=False)
        chosen_B = jnp.where(given_B == pad_id, logits_Bx1xV[:, 0].argmax(axis=-1).astype(jnp.int32), given_B)
        token_B = jnp.where(state.done_B, pad_id, chosen_B)
        tokens_BxT = jax.lax.dynamic_update_slice_in_dim(state.tokens_BxT, token_B[:, None], state.position, axis=1)
        return _State(state.position + 1, token_B, tokens_BxT, state.done_B | (chosen_B == eos_id), cache)

    start = _State(
        jnp.zeros((), jnp.int32),
        jnp.full((batch,), pad_id, jnp.int32),
        jnp.full((batch, length), pad_id, jnp.int32),
        ~valid_BxS.any(axis=1),
        steps.init_cache(student.encode(inputs_BxS), valid_BxS, length, 1),
    )
    going = lambda state: (state.position < length) & ~state.done_B.all()  # noqa: E731
    return jax.lax.while_loop(going, step, start).tokens_BxT


class Continuation:
    """A student that completes outputs whose beginning is given."""

    def __init__(self, student: StudentDef, params: Params, vocabulary: Vocabulary, mesh: Mesh):
        self._params, self._vocabulary, self._mesh = params, vocabulary, mesh
        self._continue = jax.jit(
            lambda params, inputs_BxS, begun_BxT: continue_greedily(student.bind(params), inputs_BxS, begun_BxT),
            out_shardings=replicated(mesh),
        )

    def __call__(
        self, inputs: Sequence[str], beginnings: Sequence[str], *, batch_size: int, max_input: int, max_new: int
    ) -> list[str]:
        """The outputs, each with its beginning. Call it in jax.set_mesh of the mesh.

        max_input: tokens of an input with eos; the rest is cut. max_new: room for new tokens behind the longest
        beginning; shorter ones have more.
        """
        asked = Ragged.of([[*ids[: max_input - 1], EOS_ID] for ids in self._vocabulary.encode(inputs)])
        begun = Ragged.of(self._vocabulary.encode(beginnings))
        sizes = [
            round_up(int(lengths.max(initial=1)), _MULTIPLE) for lengths in (asked.lengths, begun.lengths + max_new)
        ]
        rows, outputs = round_up(batch_size, batch_shards(self._mesh)), [""] * len(inputs)
        for start in range(0, len(inputs), rows):
            places = np.arange(start, start + rows)
            places[places >= len(inputs)] = -1
            local = places[make_process_rows(self._mesh).indices(rows)]
            batch = {"inputs": asked.padded(local, sizes[0]), "begun": begun.padded(local, sizes[1])}
            placed = put_batch(batch, self._mesh)
            tokens_BxT = np.asarray(self._continue(self._params, placed["inputs"], placed["begun"]))
            for place, ids in zip(places, tokens_BxT, strict=True):
                if place >= 0:
                    outputs[place] = self._vocabulary.decode(ids)
        return outputs
