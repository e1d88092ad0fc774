"""Floating-point operations that a training step needs, from the shapes alone. Imports nothing of jax."""

from cotmi_jax.models.config import T5Config


def forward_flops(config: T5Config, *, rows: int, input_length: int, target_length: int) -> float:
    """Floating-point operations of one forward pass over rows of input_length tokens into target_length.

    The matrix multiplications alone, two operations a multiply-add: projections, attention over whole rows (what masks
    hide is computed all the same), mlp and output head. Look-ups, norms, softmax and biases are left out, as in
    Chowdhery et al. 2022 (PaLM), appendix B.
    """
    d, inner = config.d_model, config.num_heads * config.d_kv
    mlp = (3 if config.gated else 2) * d * config.d_ff
    # Multiply-adds of one layer for one row: weights, then the scores and what they mix.
    encoder = input_length * (4 * d * inner + mlp) + 2 * inner * input_length**2
    own = target_length * (4 * d * inner + mlp) + 2 * inner * target_length**2
    cross = 2 * d * inner * (target_length + input_length) + 2 * inner * target_length * input_length
    stacks = config.num_encoder_layers * encoder + config.num_decoder_layers * (own + cross)
    return 2.0 * rows * (stacks + target_length * d * config.vocab_size)


def step_flops(config: T5Config, *, rows: int, input_length: int, target_length: int) -> float:
    """Floating-point operations of forward and backward pass: three times the forward pass.

    Work that rematerialization does twice counts once, so that a rate made of this is model FLOP utilization and not
    hardware utilization (PaLM, appendix B). The optimizer and networks beside the student are left out.
    """
    return 3.0 * forward_flops(config, rows=rows, input_length=input_length, target_length=target_length)
