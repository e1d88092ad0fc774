"""Random tokenized splits, without text or vocabulary."""

from collections.abc import Sequence

import numpy as np

from cotmi_jax.data.tokens import CounterfactualTargets, Ragged, TokenizedSplit, TokenizedTask, offsets_of

TASKS = ("predict", "explain")


def random_split(
    num: int,
    *,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    rationales: int = 1,
    inputs: tuple[int, int] = (2, 12),
    labels: tuple[int, int] = (1, 4),
    explanations: tuple[int, int] = (2, 9),
    vocab_size: int = 32,
    counterfactuals: int = 0,
) -> TokenizedSplit:
    """num examples with at most `rationales` rationales; lengths are uniform in the given ranges and include eos.

    The targets of the last task are rationales. Their weights are 1 if rationales is 1, else random, some of them 0.
    With counterfactuals, each rationale has 0 to that many.
    """
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, rationales + 1, num)
    total = int(counts.sum())

    def ragged(size: int, between: tuple[int, int]) -> Ragged:
        lengths = draw.integers(between[0], between[1] + 1, size)
        return Ragged.of([[*draw.integers(2, vocab_size, length - 1).tolist(), 1] for length in lengths])

    tokenized = {}
    for task in tasks:
        per_rationale = task == tasks[-1]
        targets = ragged(total, explanations) if per_rationale else ragged(num, labels)
        tokenized[task] = TokenizedTask(ragged(num, inputs), targets, per_rationale, 0, 0)
    weights = np.ones(total) if rationales == 1 else draw.choice([0.0, 0.25, 1.0, 2.0], total)
    further = None
    if counterfactuals:
        each = draw.integers(0, counterfactuals + 1, total)
        size = int(each.sum())
        targets = {task: ragged(size, explanations if task == tasks[-1] else labels) for task in tasks}
        further = CounterfactualTargets(offsets_of(each), targets, counterfactuals)
    return TokenizedSplit(
        tokenized, offsets_of(counts), weights.astype(np.float32), np.ones(num, bool), counterfactuals=further
    )


def sequence(ragged: Ragged, row: int) -> list[int]:
    """The ids of one sequence."""
    return ragged.flat[ragged.offsets[row] : ragged.offsets[row + 1]].tolist()
