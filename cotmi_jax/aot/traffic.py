"""The least communication volume of a training step, to compare with what a compiled program sends."""

import math

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.meshes import (
    MeshShape,
    parameter_count,
)


def least_traffic(
    config: T5Config, mesh: MeshShape, *, rows: int, input_length: int, target_length: int, recompute: bool
) -> dict[str, float]:
    """Bytes that a device has to send in a training step, by the kind of collective; rings, no overlap of data.

    fsdp (ZeRO stage 3; Rajbhandari et al. 2020, section 7.2.2): parameters of layers and head are gathered for the
      forward pass and for the backward pass, in the dtype of activations, and gradients reduce-scattered in it:
      (f−1)/f · bytes each. Of the embedding either the rows that were looked up are exchanged, both ways, or, where
      they are more than it has, it is gathered and its gradient scattered. A tied one comes with the head.
    data: gradients that fsdp left, a shard each, are all-reduced: 2 (d−1)/d · bytes (Rajbhandari et al., section 7.1).
    tensor (Megatron; Shoeybi et al. 2019, section 3): activations [rows of a device, T, D] are all-reduced behind
      attention and mlp in the forward pass and before them in the backward pass. A layer that is recomputed from its
      input repeats all of the forward pass but the last, the mlp's, whose sum only the next layer reads. What the
      look-up, the head and the gradient of the encoder's states send is left out.
    """
    data, fsdp, tensor = mesh
    width = 2 if config.dtype == "bfloat16" else 4
    layers, everything = parameter_count(config)
    table = config.vocab_size * config.d_model
    shard = rows / (data * fsdp) * config.d_model * width  # of one token position
    gathered, scattered = (layers + table) / tensor * width, (fsdp - 1) / fsdp
    exchanged, embedding = shard * (input_length + target_length), 0.0 if config.tied else table / tensor * width
    exchanged, embedding = (exchanged, 0.0) if exchanged < embedding else (0.0, embedding)  # the lesser alone
    encoder, decoder = config.num_encoder_layers * input_length, config.num_decoder_layers * target_length
    sums = 2 * (2 * encoder + 3 * decoder) + (encoder + 2 * decoder if recompute else 0)  # token positions
    return {
        "all-gather": scattered * (2 * gathered + embedding),
        "reduce-scatter": scattered * (gathered + embedding),
        "all-reduce": 2 * (data - 1) / data * everything / tensor * width / fsdp
        + 2 * (tensor - 1) / tensor * sums * shard,
        "all-to-all": 2 * scattered * exchanged,
        "collective-permute": 0.0,
    }


def total_bytes(traffic: dict[str, float]) -> float:
    """Of all kinds."""
    return math.fsum(traffic.values())
