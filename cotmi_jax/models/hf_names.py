"""The tensor of a Hugging Face checkpoint for each parameter, and its layout."""

import dataclasses
import math

import jax
import numpy as np
from flax import nnx, traverse_util

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.t5 import T5

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
# Copies of the embedding, which many releases save in addition.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Saved by the first releases but used by none: cross-attention has no position bias.
OBSOLETE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# Of each stack, in order of execution: our sublayer, our norm, the sublayer in transformers.
_SUBLAYERS = {
    "encoder": (("attention", "attention_norm", "SelfAttention"), ("mlp", "mlp_norm", "DenseReluDense")),
    "decoder": (
        ("attention", "attention_norm", "SelfAttention"),
        ("cross_attention", "cross_norm", "EncDecAttention"),
        ("mlp", "mlp_norm", "DenseReluDense"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter and its tensors in the checkpoint: one, or one for each layer.

    The checkpoint's matrices are [outputs, inputs] with heads flattened, the parameters' [inputs…, outputs…].
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool  # the first axis of shape counts layers
    num_inputs: int | None  # number of leading input axes of one layer's matrix; None: stored unchanged

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of the slice of the parameter that one tensor of the checkpoint holds."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of each of the checkpoint's tensors."""
        shape, split = self.slice_shape, self.num_inputs
        return shape if split is None else (math.prod(shape[split:]), math.prod(shape[:split]))

    def from_stored(self, tensor: np.ndarray) -> np.ndarray:
        """[*stored_shape] → [*slice_shape]."""
        return tensor if self.num_inputs is None else tensor.T.reshape(self.slice_shape)

    def to_stored(self, parameter: np.ndarray) -> np.ndarray:
        """[*slice_shape] → [*stored_shape], contiguous."""
        return np.ascontiguousarray(
            parameter if self.num_inputs is None else parameter.reshape(self.stored_shape[::-1]).T
        )


def leaves(config: T5Config) -> list[Leaf]:
    """Every parameter of the network. Raises KeyError for one that the table lacks, which is a defect of the table."""
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(T5(config, rngs=nnx.Rngs(0)))))
    names = _names(config)
    result = []
    for path, leaf in traverse_util.flatten_dict(params).items():
        name, stacked = names[".".join(path)] + ".weight", "blocks" in path
        is_matrix = path == ("head",) or (stacked and path[-1] not in ("scale", "embedding"))
        result.append(
            Leaf(
                path=path,
                shape=leaf.shape,
                names=tuple(name.format(layer) for layer in range(leaf.shape[0])) if stacked else (name,),
                stacked=stacked,
                num_inputs=None if not is_matrix else 2 if path[-1] == "out" else 1,
            )
        )
    return result


def _names(config: T5Config) -> dict[str, str]:
    """Parameter → module in the checkpoint, with {} for the number of the layer."""
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    names = {"embedding": "shared", "head": "lm_head"}
    for stack, sublayers in _SUBLAYERS.items():
        bias = f"{stack}.block.{{}}.layer.0.SelfAttention.relative_attention_bias"
        names[f"{stack}.position.embedding"], names[f"{stack}.blocks.position.embedding"] = bias.format(0), bias
        names[f"{stack}.final_norm.scale"] = f"{stack}.final_layer_norm"
        for index, (sublayer, norm, module) in enumerate(sublayers):
            prefix = f"{stack}.block.{{}}.layer.{index}"
            names[f"{stack}.blocks.{norm}.scale"] = f"{prefix}.layer_norm"
            for ours, theirs in (mlp if sublayer == "mlp" else _ATTENTION).items():
                names[f"{stack}.blocks.{sublayer}.{ours}"] = f"{prefix}.{module}.{theirs}"
    return names
