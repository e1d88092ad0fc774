"""Greedy decoding after a forced prefix of the output. Imports no tensorflow."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cotmi_jax.data.tokens import Ragged, round_up
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.batch import make_process_rows, put_batch
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import replicated

_MULTIPLE = 16  # lengths are rounded up to it, so that few shapes are compiled


class Continuation:
    """A student that completes outputs whose prefix is given."""

    def __init__(self, student: StudentDef, params: Params, vocabulary: Vocabulary, mesh: Mesh):
        self._params, self._vocabulary, self._mesh = params, vocabulary, mesh
        self._continue = jax.jit(
            lambda params, inputs_BxS, prefix_BxT: (
                generate(
                    student.bind(params),
                    inputs_BxS,
                    Decoding(max_tokens=prefix_BxT.shape[1]),
                    prefix_BxT=prefix_BxT,
                    scores=False,
                ).tokens
            ),
            out_shardings=replicated(mesh),
        )

    def __call__(
        self, inputs: Sequence[str], prefixes: Sequence[str], *, batch_size: int, max_input: int, max_new: int
    ) -> list[str]:
        """The outputs, each with its prefix. Call it in jax.set_mesh of the mesh.

        max_input: tokens of an input with eos; the rest is cut. max_new: room for new tokens after the longest prefix;
        shorter ones have more.
        """
        source = Ragged.of([[*ids[: max_input - 1], EOS_ID] for ids in self._vocabulary.encode(inputs)])
        prefix = Ragged.of(self._vocabulary.encode(prefixes))
        sizes = [
            round_up(int(lengths.max(initial=1)), _MULTIPLE) for lengths in (source.lengths, prefix.lengths + max_new)
        ]
        rows, outputs = round_up(batch_size, batch_shards(self._mesh)), [""] * len(inputs)
        for start in range(0, len(inputs), rows):
            places = np.arange(start, start + rows)
            places[places >= len(inputs)] = -1
            local = places[make_process_rows(self._mesh).indices(rows)]
            batch = {"inputs": source.padded(local, sizes[0]), "prefix": prefix.padded(local, sizes[1])}
            placed = put_batch(batch, self._mesh)
            tokens_BxT = np.asarray(self._continue(self._params, placed["inputs"], placed["prefix"]))
            for place, ids in zip(places, tokens_BxT, strict=True):
                if place >= 0:
                    outputs[place] = self._vocabulary.decode(ids)
        return outputs
