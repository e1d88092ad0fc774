"""A lower bound of the communication volume of a training step, to compare with a compiled program."""

import math

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.meshes import MeshShape, parameter_count


def least_traffic(
    config: T5Config, mesh: MeshShape, *, rows: int, input_length: int, target_length: int, recompute: bool
) -> dict[str, float]:
    """Bytes that a device has to send in a training step, by kind of collective, with ring algorithms.

    fsdp (ZeRO stage 3; Rajbhandari et al. 2020, section 7.2.2): parameters of layers and head are gathered for the
      forward pass and for the backward pass, in the dtype of activations, and gradients reduce-scattered in it:
      (f−1)/f · bytes each. For the embedding, either the rows looked up are exchanged (forward and backward), or, if
      these are more bytes, it is gathered and its gradient scattered. A tied embedding is gathered as the head.
    data: shards of gradients are all-reduced: 2 (d−1)/d · bytes (Rajbhandari et al., section 7.1).
    tensor (Megatron; Shoeybi et al. 2019, section 3): activations [rows of a device, T, D] are all-reduced after
      attention and mlp in the forward pass and before them in the backward pass. `recompute`: each layer repeats its
      forward all-reduces except the mlp's, whose result only the next layer reads. Look-up, head and the gradient of
      the encoder states are left out.
    """
    data, fsdp, tensor = mesh
    width = 2 if config.dtype == "bfloat16" else 4
    layers, everything = parameter_count(config)
    table = config.vocab_size * config.d_model
    shard = rows / (data * fsdp) * config.d_model * width  # of one token position
    gathered, scattered = (layers + table) / tensor * width, (fsdp - 1) / fsdp
    exchanged, embedding = shard * (input_length + target_length), 0.0 if config.tied else table / tensor * width
    exchanged, embedding = (exchanged, 0.0) if exchanged < embedding else (0.0, embedding)  # only the lesser
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
    """Bytes of all kinds."""
    return math.fsum(traffic.values())
