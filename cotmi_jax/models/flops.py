"""Floating-point operations of a training step, from shapes. Does not import jax."""

from typing import TypeVar

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.models.config import T5Config

Length = TypeVar("Length", float, np.ndarray)  # one length, or float64 [N] with a result for each


def forward_flops(config: T5Config, *, rows: int, input_length: Length, target_length: Length) -> Length:
    """Floating-point operations of one forward pass over rows of input_length tokens into target_length.

    Counts matrix multiplications, two operations per multiply-add: projections, attention over whole rows (masked
    scores are computed too), mlp and output head. Look-ups, norms, softmax and biases are left out, as in Chowdhery et
    al. 2022 (PaLM), appendix B.

    Raises UserError for the config of another network.
    """
    if not isinstance(config, T5Config):
        raise UserError(
            f"FLOPs of {type(config).__name__} are not known, only those of T5Config: compare examples/s instead of MFU"
        )
    d, inner = config.d_model, config.num_heads * config.d_kv
    mlp = (3 if config.gated else 2) * d * config.d_ff
    # Multiply-adds of one layer for one row: projections and mlp, then scores and weighted values.
    encoder = input_length * (4 * d * inner + mlp) + 2 * inner * input_length**2
    self_attention = target_length * (4 * d * inner + mlp) + 2 * inner * target_length**2
    cross = 2 * d * inner * (target_length + input_length) + 2 * inner * target_length * input_length
    stacks = config.num_encoder_layers * encoder + config.num_decoder_layers * (self_attention + cross)
    return 2.0 * rows * (stacks + target_length * d * config.vocab_size)


def step_flops(config: T5Config, *, rows: int, input_length: Length, target_length: Length) -> Length:
    """Floating-point operations of forward and backward pass: three times the forward pass.

    Operations that rematerialization repeats count once, so that model (not hardware) FLOP utilization follows from
    this (PaLM, appendix B). The optimizer and the networks of the mutual-information term are left out.

    Raises UserError as forward_flops does.
    """
    return 3.0 * forward_flops(config, rows=rows, input_length=input_length, target_length=target_length)
