"""Losses of a target token that training can minimize in place of the cross-entropy, by name."""

from collections.abc import Callable

from jax import Array

from cotmi_jax.errors import UserError, unknown_name

# (float32 logits [B, L, V], targets [B, L]) → losses [B, L]: each position's loss from its own logits alone.
TokenLoss = Callable[[Array, Array], Array]

CROSS_ENTROPY = "cross_entropy"
# None: the scan of token_scan.py has its derivative in closed form.
TOKEN_LOSSES: dict[str, TokenLoss | None] = {CROSS_ENTROPY: None}


def register_token_loss(name: str) -> Callable[[TokenLoss], TokenLoss]:
    """Decorator: make a token loss available as config.objective.token_loss; an earlier one of that name is replaced.

    The function is pure and differentiable by jax.vjp; padded positions are masked after it. Evaluation reports the
    cross-entropy whatever the training loss is, so that runs compare.

    Raises:
      UserError: the name is cross_entropy.
    """
    if name == CROSS_ENTROPY:
        raise UserError(f"token loss {name!r} is built in: register yours under another name")

    def register(token_loss: TokenLoss) -> TokenLoss:
        TOKEN_LOSSES[name] = token_loss
        return token_loss

    return register


def find_token_loss(name: str) -> TokenLoss | None:
    """The token loss of a name, None for the cross-entropy. UserError, listing the known ones, where there is none."""
    if name not in TOKEN_LOSSES:
        raise unknown_name(f"unknown objective.token_loss {name!r}", TOKEN_LOSSES)
    return TOKEN_LOSSES[name]
