"""The student: a T5 of either family (Raffel et al. 2020; v1.1: Shazeer 2020; Flan: Chung et al. 2022) or a UMT5.

Names of tensors end in their shape, as in `logits_BxTxV`: B batch (examples), S source tokens, T target tokens,
D model, H heads, K head dim (beams in decoding), F mlp, V vocabulary, L layers, N position buckets, P batch shards.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.models.attention import Attention
from cotmi_jax.models.attention_pattern import Pattern, RelativeBias
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.dropout import dropout
from cotmi_jax.models.layers import MLP, RMSNorm
from cotmi_jax.models.module import declare
from cotmi_jax.models.remat import rematerialize, saved
from cotmi_jax.parallel.batch import constrain_batch, current_batch_shards

Cache = dict[str, Array]


def padding_pattern(valid_BxS: Array, queries: int) -> Pattern:
    """The pattern of queries that see the keys where valid is True."""
    return Pattern(
        query_segments_BxT=jnp.ones((valid_BxS.shape[0], queries), jnp.int32),
        key_segments_BxS=valid_BxS.astype(jnp.int32),
    )


def shift_right(targets_BxT: Array, start_id: int, segments_BxT: Array | None = None) -> Array:
    """Decoder inputs [B, T]: the start token, then all targets but the last; in packed rows, within each segment."""
    shifted_BxT = jnp.pad(targets_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
    if segments_BxT is None:
        return shifted_BxT
    first_BxT = jnp.diff(segments_BxT, axis=1, prepend=-1) != 0
    return jnp.where(first_BxT, start_id, shifted_BxT)


def _layer_position(config: T5Config, num: int, *, bidirectional: bool, rngs: nnx.Rngs) -> RelativeBias | None:
    """The position biases of a stack's layers, if each has its own."""
    return RelativeBias(config, num, bidirectional=bidirectional, rngs=rngs) if config.layer_position_bias else None


def _stack_position(config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs) -> RelativeBias | None:
    """The position bias that all layers of a stack share, if they do."""
    return None if config.layer_position_bias else RelativeBias(config, None, bidirectional=bidirectional, rngs=rngs)


def _with_position(position: RelativeBias | None, pattern: Pattern, batch: int) -> Pattern:
    """The pattern, with the position bias of this module if it has one."""
    return pattern if position is None else position.add_to(pattern, current_batch_shards(batch))


def _split_key(key: Array | None, num: int) -> list[Array | None]:
    return [None] * num if key is None else list(jax.random.split(key, num))


class EncoderBlock(nnx.Module):
    """Self-attention and mlp, each pre-normalized and residual."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        num = config.num_encoder_layers
        self.position = _layer_position(config, num, bidirectional=True, rngs=rngs)
        self.attention_norm = RMSNorm(config, num, rngs=rngs)
        self.attention = Attention(config, num, rngs=rngs)
        self.mlp_norm = RMSNorm(config, num, rngs=rngs)
        self.mlp = MLP(config, num, rngs=rngs)
        self.rate = config.dropout

    def __call__(self, x_BxSxD: Array, pattern: Pattern, key: Array | None) -> Array:
        keys = _split_key(key, 4)
        pattern = _with_position(self.position, pattern, x_BxSxD.shape[0])
        normed_BxSxD = self.attention_norm(x_BxSxD)
        attended_BxSxD = self.attention(normed_BxSxD, *self.attention.keys_values(normed_BxSxD), pattern, keys[0])
        x_BxSxD = saved(x_BxSxD + dropout(attended_BxSxD, self.rate, keys[1]))
        x_BxSxD = x_BxSxD + dropout(self.mlp(self.mlp_norm(x_BxSxD), keys[2]), self.rate, keys[3])
        return constrain_batch(x_BxSxD)


class DecoderBlock(nnx.Module):
    """Causal self-attention, cross-attention and mlp, each pre-normalized and residual."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        num = config.num_decoder_layers
        self.position = _layer_position(config, num, bidirectional=False, rngs=rngs)
        self.attention_norm = RMSNorm(config, num, rngs=rngs)
        self.attention = Attention(config, num, rngs=rngs)
        self.cross_norm = RMSNorm(config, num, rngs=rngs)
        self.cross_attention = Attention(config, num, rngs=rngs)
        self.mlp_norm = RMSNorm(config, num, rngs=rngs)
        self.mlp = MLP(config, num, rngs=rngs)
        self.rate = config.dropout

    def __call__(
        self,
        x_BxTxD: Array,
        encoded_BxSxD: Array,
        pattern: Pattern,
        cross_pattern: Pattern,
        key: Array | None,
    ) -> Array:
        keys = _split_key(key, 6)
        pattern = _with_position(self.position, pattern, x_BxTxD.shape[0])
        normed_BxTxD = self.attention_norm(x_BxTxD)
        attended_BxTxD = self.attention(normed_BxTxD, *self.attention.keys_values(normed_BxTxD), pattern, keys[0])
        x_BxTxD = saved(x_BxTxD + dropout(attended_BxTxD, self.rate, keys[1]))
        keys_values_BxSxHxK = self.cross_attention.keys_values(encoded_BxSxD)
        attended_BxTxD = self.cross_attention(self.cross_norm(x_BxTxD), *keys_values_BxSxHxK, cross_pattern, keys[2])
        x_BxTxD = saved(x_BxTxD + dropout(attended_BxTxD, self.rate, keys[3]))
        x_BxTxD = x_BxTxD + dropout(self.mlp(self.mlp_norm(x_BxTxD), keys[4]), self.rate, keys[5])
        return constrain_batch(x_BxTxD)


class Encoder(nnx.Module):
    """Parameters of the encoder stack."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.position = _stack_position(config, bidirectional=True, rngs=rngs)
        self.blocks = EncoderBlock(config, rngs=rngs)
        self.final_norm = RMSNorm(config, None, rngs=rngs)


class Decoder(nnx.Module):
    """Parameters of the decoder stack."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.position = _stack_position(config, bidirectional=False, rngs=rngs)
        self.blocks = DecoderBlock(config, rngs=rngs)
        self.final_norm = RMSNorm(config, None, rngs=rngs)


class T5(nnx.Module):
    """The network. Parameters are float32; dropout is on where a method is given a key."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = declare(rngs, (config.vocab_size, config.d_model), ("vocab", "embed"), 1.0)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        shape, axes = (config.d_model, config.vocab_size), ("embed", "vocab")
        self.head = None if config.tied else declare(rngs, shape, axes, config.d_model**-0.5)

    def _embed(self, ids_BxT: Array, key: Array | None) -> Array:
        x_BxTxD = self.embedding[ids_BxT].astype(self.config.dtype)
        return dropout(constrain_batch(x_BxTxD), self.config.dropout, key)

    def _run(self, block: nnx.Module, apply: Callable, carry: Array | None, inputs: object, num: int) -> tuple:
        """Scan over a stack of layers: apply(layer, carry, layer's slice of inputs) → (carry, output)."""
        graph, params = nnx.split(block)

        def body(carry: Array | None, layer: tuple[object, object]) -> tuple[Array | None, object]:
            return apply(nnx.merge(graph, layer[0]), carry, layer[1])

        body = rematerialize(body, self.config)
        # Unrolled inside scan, not by indexing the stack in a Python loop: the gradient of each index operation would
        # be an addition to the whole stack.
        return jax.lax.scan(body, carry, (params, inputs), unroll=1 if self.config.scan_layers else num)

    def encode(self, inputs_BxS: Array, key: Array | None = None, segments_BxS: Array | None = None) -> Array:
        """Encoder states [B, S, D] of padded token ids; with segments, a row holds several sequences.

        Segments are numbered from 1, each contiguous; 0 is padding. Position biases are relative, so positions need not
        restart in each segment.
        """
        num = self.config.num_encoder_layers
        embed_key, final_key, layers_key = _split_key(key, 3)
        if segments_BxS is None:
            pattern = padding_pattern(inputs_BxS != self.config.pad_id, inputs_BxS.shape[1])
        else:
            pattern = Pattern(query_segments_BxT=segments_BxS, key_segments_BxS=segments_BxS)
        pattern = _with_position(self.encoder.position, pattern, inputs_BxS.shape[0])
        x_BxSxD, _ = self._run(
            self.encoder.blocks,
            lambda block, x, layer_key: (block(x, pattern, layer_key), None),
            self._embed(inputs_BxS, embed_key),
            None if layers_key is None else jax.random.split(layers_key, num),
            num,
        )
        return dropout(self.encoder.final_norm(x_BxSxD), self.config.dropout, final_key)

    def decode(
        self,
        encoded_BxSxD: Array,
        inputs_BxS: Array,
        targets_BxT: Array,
        key: Array | None = None,
        segments: tuple[Array, Array] | None = None,
        source_segments_BxT: Array | None = None,
        split: int = 0,
    ) -> Array:
        """Decoder states [B, T, D] under teacher forcing; states[:, t] depends on targets[:, :t].

        segments: in packed rows, those of the inputs [B, S] and of the targets [B, T]; a target token attends only to
        tokens of its own segment. source_segments_BxT: the segment of the inputs that each target token attends to,
        where several segments of targets have the same input. split: a column at which no segment of targets continues;
        self-attention is computed apart before and from it, which takes less time. 0: no such column.
        """
        num = self.config.num_decoder_layers
        embed_key, final_key, layers_key = _split_key(key, 3)
        input_segments_BxS, target_segments_BxT = (None, None) if segments is None else segments
        pattern = Pattern(
            query_segments_BxT=target_segments_BxT, key_segments_BxS=target_segments_BxT, causal=True, split=split
        )
        pattern = _with_position(self.decoder.position, pattern, targets_BxT.shape[0])
        if segments is None:
            cross_pattern = padding_pattern(inputs_BxS != self.config.pad_id, targets_BxT.shape[1])
        else:
            reads_BxT = target_segments_BxT if source_segments_BxT is None else source_segments_BxT
            cross_pattern = Pattern(query_segments_BxT=reads_BxT, key_segments_BxS=input_segments_BxS)
        x_BxTxD, _ = self._run(
            self.decoder.blocks,
            lambda block, x, layer_key: (block(x, encoded_BxSxD, pattern, cross_pattern, layer_key), None),
            self._embed(shift_right(targets_BxT, self.config.pad_id, target_segments_BxT), embed_key),
            None if layers_key is None else jax.random.split(layers_key, num),
            num,
        )
        return dropout(self.decoder.final_norm(x_BxTxD), self.config.dropout, final_key)

    def logits(self, states_BxTxD: Array) -> Array:
        """Vocabulary logits [B, T, V] in float32."""
        return self.make_logits()(states_BxTxD)

    def make_logits(self) -> Callable[[Array], Array]:
        """`logits` as a function to call many times: the head is cast to the activations' dtype once.

        objectives.token_scan then copies the cast matrix, not the float32 parameter, to each batch shard.
        """
        config = self.config
        head_DxV = (self.embedding.T if self.head is None else self.head[...]).astype(config.dtype)

        def logits(states_BxTxD: Array) -> Array:
            if config.tied:
                states_BxTxD = states_BxTxD * config.d_model**-0.5
            return jnp.matmul(states_BxTxD, head_DxV, preferred_element_type=jnp.float32)

        return logits

    def __call__(self, inputs_BxS: Array, targets_BxT: Array, key: Array | None = None) -> Array:
        """Logits [B, T, V] of the targets given the inputs, both padded with pad_id."""
        encoder_key, decoder_key = _split_key(key, 2)
        return self.logits(self.decode(self.encode(inputs_BxS, encoder_key), inputs_BxS, targets_BxT, decoder_key))
