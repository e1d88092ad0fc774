"""The valid split made from train, and subsets of train for learning curves.

By default both select the examples that the Distilling Step-by-Step release (arXiv 2305.02301) selects.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cotmi_jax.data.example import SPLITS, Example
from cotmi_jax.errors import UserError

SPLIT_BY = ("example", "cluster")


def with_valid_split(
    examples_by_split: Mapping[str, tuple[Example, ...]], name: str = "train", split_by: str = "example"
) -> dict[str, tuple[Example, ...]]:
    """Makes a tenth of train (rounded up) the valid split if there is none; returns splits in the order of SPLITS.

    name: the name of train in messages. split_by, of SPLIT_BY: what is drawn.

    example: with p = numpy.random.default_rng(0).permutation(n), valid is p[:ceil(n/10)] and train the rest in that
    order. cluster: clusters in the order in which p first meets them go to valid whole until it has ceil(n/10) examples
    or more, so that no cluster is in both.

    Raises:
      UserError: train holds fewer than 2 examples, or clusters, so that one split would be empty.
    """
    splits = dict(examples_by_split)
    if "valid" not in splits:
        train = splits["train"]
        if len(train) < 2:
            raise UserError(f"{name} holds {len(train)} example(s), too few to make a valid split: use at least 2")
        order = np.random.default_rng(0).permutation(len(train))
        cut = math.ceil(len(train) / 10)
        if split_by == "cluster":
            order, cut = _by_cluster(train, order, cut, name)
        splits["valid"] = tuple(train[i] for i in order[:cut])
        splits["train"] = tuple(train[i] for i in order[cut:])
    return {split: splits[split] for split in SPLITS if split in splits}


def _by_cluster(train: Sequence[Example], order: np.ndarray, cut: int, name: str) -> tuple[np.ndarray, int]:
    """The order with the examples of each cluster together, and the end of the cluster that reaches the cut."""
    keys = [train[int(i)].cluster or train[int(i)].id for i in order]
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    if len(first) < 2:
        raise UserError(
            f"{name} holds one cluster, which config.data.split_by = cluster cannot divide: use example, or give a "
            "valid split"
        )
    place_N = np.array([first[key] for key in keys])
    grouped = np.argsort(place_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(place_N[grouped])) + 1, len(order))
    cut = int(ends[min(int(np.searchsorted(ends, cut)), len(ends) - 2)])  # train keeps a cluster
    return order[grouped], cut


def subsample(examples: tuple[Example, ...], fraction: float, seed: int) -> tuple[Example, ...]:
    """Keeps a random fraction of the examples; at 1 all of them, in their order.

    With p = numpy.random.default_rng(seed).permutation(n), p[ceil((1 − fraction)·n):] is kept, in that order.

    Raises:
      UserError: fraction is outside (0, 1], or it keeps no example.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"subsample = {fraction}: give a fraction above 0 and at most 1")
    if fraction == 1:
        return examples
    # In floating point, as in the release: (1 - 0.7) * 10 is slightly above 3, so 4 are dropped.
    dropped = math.ceil((1 - fraction) * len(examples))
    if dropped == len(examples):
        raise UserError(f"subsample = {fraction} of {len(examples)} examples keeps none: give a larger fraction")
    return tuple(examples[i] for i in np.random.default_rng(seed).permutation(len(examples))[dropped:])
