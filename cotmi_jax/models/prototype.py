"""Base classes for a first version of a user's own network: its config, and generation without a cache."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.models.t5 import Cache


@dataclasses.dataclass(frozen=True)
class BasicConfig:
    """The fields that the config of every network has. Derive a class of its own for each network."""

    vocab_size: int
    d_model: int = 64
    pad_id: int = 0
    eos_id: int = 1
    dropout: float = 0.0


class UncachedDecoding:
    """init_cache and decode_step of a Student from its `decode`: each step decodes the whole prefix again.

    For prototypes: the number of decoded positions grows with the square of the length. `decode` may use inputs_BxS
    only to distinguish padding from tokens, since the cache does not hold their ids.
    """

    config: Any
    decode: Any
    make_logits: Any

    def init_cache(self, encoded_BxSxD: Array, length: int) -> Cache:
        """The encoder states, and an array for the generated tokens, filled with pad_id."""
        tokens_1xBxT = jnp.full((1, encoded_BxSxD.shape[0], length), self.config.pad_id, jnp.int32)
        return {"cross_encoded": encoded_BxSxD[None], "tokens": tokens_1xBxT}

    def decode_step(
        self, token_B: Array, position: Array, cache: Cache, source_valid_BxS: Array
    ) -> tuple[Array, Cache]:
        """Logits [B, V] of the token after token_B, which is at a scalar position, and the updated cache."""
        tokens_BxT = cache["tokens"][0]
        # The decoder's input at a position is the target before it; at position 0 it is the start token.
        written_BxT = tokens_BxT.at[:, position - 1].set(token_B.astype(tokens_BxT.dtype))
        tokens_BxT = jnp.where(position > 0, written_BxT, tokens_BxT)
        inputs_BxS = jnp.where(source_valid_BxS, self.config.eos_id, self.config.pad_id)
        states_BxTxD = self.decode(cache["cross_encoded"][0], inputs_BxS, tokens_BxT)
        state_Bx1xD = jax.lax.dynamic_slice_in_dim(states_BxTxD, position, 1, axis=1)
        return self.make_logits()(state_Bx1xD)[:, 0], cache | {"tokens": tokens_BxT[None]}
