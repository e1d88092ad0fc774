"""How difficult rationales are for a student: how well a small one answers when the rationale stands in its input.

After MoRSD (Yan et al. 2025, arXiv 2509.23574), which selects rationales of low difficulty. Difficulty here is the
perplexity, by token, of the gold label given input and rationale, under a student that was trained on other examples to
answer so. Imports no jax.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cotmi_jax.data.example import EOS_TEXT, Example
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.probe import CrossFit

MIN_GROUPS = 10


class Difficulties(NamedTuple):
    """Of each rationale, those of an example one after another: perplexity of the label, and whether it is answered.

    exact_R: greedy decoding gives exactly the gold label.
    """

    perplexity_R: np.ndarray
    exact_R: np.ndarray

    def weights(self, select: float) -> np.ndarray:
        """The weight of each rationale, [R]: 1 / perplexity, or with select > 0 one of 0 and 1.

        select: the share of all rationales that get 1, rounded up, those of the lowest perplexity.
        """
        if not select:
            return 1.0 / self.perplexity_R
        weights_R = np.zeros(len(self.perplexity_R))
        chosen = np.argsort(self.perplexity_R, kind="stable")[: math.ceil(select * len(weights_R))]
        weights_R[chosen] = 1.0
        return weights_R


def measure_difficulty(
    cross_fit: CrossFit,
    examples: Sequence[Example],
    count_tokens: Callable[[Sequence[str]], np.ndarray],
    steps: int,
    batch_size: int,
) -> Difficulties:
    """The difficulty of every rationale with a weight above 0.

    cross_fit: trains two students, each on half of the clusters of examples, and scores the other half. count_tokens:
    labels → tokens of each, with eos.

    Raises:
      UserError: fewer than MIN_GROUPS clusters of examples have a rationale.
    """
    asked = [
        dataclasses.replace(each, id=f"{each.id}/{number}", input=f"{each.input}{EOS_TEXT}{text}", more=())
        for each in examples
        for number, (text, weight) in enumerate(each.rationales)
        if weight > 0
    ]
    keys = [each.cluster or each.id for each in examples for _, weight in each.rationales if weight > 0]
    groups, group_R = np.unique(keys, return_inverse=True)
    if len(groups) < MIN_GROUPS:
        raise UserError(
            f"{len(groups)} clusters of train examples have a rationale: two students that are each trained on half of "
            f"them need at least {MIN_GROUPS}"
        )
    found = cross_fit(asked, group_R, steps, batch_size)
    tokens_R = count_tokens([each.label for each in asked])
    return Difficulties(np.exp(-found.log_p_N / tokens_R), found.exact_N)


def weight_rows(examples: Sequence[Example], found: Difficulties, select: float) -> list[dict[str, object]]:
    """A row for each example of a file of weights: id, and weight, perplexity and exact of each of its rationales.

    A rationale whose weight is 0 already has weight 0, and neither perplexity nor exact (None).
    """
    measured = zip(found.weights(select).tolist(), found.perplexity_R.tolist(), found.exact_R.tolist(), strict=True)
    rows: list[dict[str, object]] = []
    for example in examples:
        each = [next(measured) if weight > 0 else (0.0, None, None) for _, weight in example.rationales]
        weight, perplexity, exact = (list(column) for column in zip(*each, strict=True))
        rows.append({"id": example.id, "weight": weight, "perplexity": perplexity, "exact": exact})
    return rows


def summary(found: Difficulties) -> str:
    """One line about all rationales."""
    low, middle, high = np.quantile(found.perplexity_R, (0.25, 0.5, 0.75))
    return (
        f"{len(found.exact_R)} rationales: a student that reads them answers {found.exact_R.mean():.1%} of the labels; "
        f"perplexity by token: quartiles {low:.3g}, {middle:.3g}, {high:.3g}"
    )
