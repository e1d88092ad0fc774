"""Why the train split of a run cannot be used: it lacks what the objective or the weights need."""

import numpy as np
from ml_collections import ConfigDict

from cotmi_jax.data.rationale_answer import count_spans
from cotmi_jax.data.tasks import find_objective
from cotmi_jax.data.token_weights import parse_token_weights
from cotmi_jax.data.tokens import TokenizedSplit


def has_rationales(config: ConfigDict) -> bool:
    """Whether the objective trains on rationales."""
    return bool(find_objective(config.objective.name).rationale_tasks)


def rationale_error(config: ConfigDict, train: TokenizedSplit) -> str:
    """Why a train split in which no example has a rationale cannot be used; "" if it can."""
    if not has_rationales(config) or train.without_rationale < train.size:
        return ""
    return (
        f"train: none of the {train.size} examples has a rationale, which objective {config.objective.name} trains on: "
        "set config.objective.name to standard, or write rationales with python -m cotmi_jax.annotate"
    )


def token_weight_error(config: ConfigDict, train: TokenizedSplit) -> str:
    """Why weights of tokens cannot be used; "" if they can, or if there are none."""
    rules = parse_token_weights(config.data.token_weights)
    found = [(tokens.weights, tokens.targets) for tokens in train.tasks.values() if tokens.weights is not None]
    if rules is None or not found:
        return ""
    given = f"config.data.token_weights {config.data.token_weights}: "
    if all((weights == 1.0).all() for weights, _ in found):
        return f"{given}no token of train has another weight than 1: give rows a field token_weights, or leave it empty"
    if all(np.count_nonzero(weights) == len(targets.lengths) for weights, targets in found):
        return f"{given}every token of train but eos has weight 0: raise the weights"
    return ""


def answer_error(config: ConfigDict, train: TokenizedSplit) -> str:
    """Why a train split whose rationales state no label cannot be used; "" if some do, or nothing compares them."""
    starts = train.answer_starts
    compares = find_objective(config.objective.name).has_mi_term and config.mi.estimator == "consistency"
    if not compares or starts is None or ((starts >= 0) & (train.weights > 0)).any():
        return ""
    return (
        f"train: {count_spans(starts)}: mi.estimator consistency compares nothing: set config.data.rationale_answer to "
        "append, or config.data.label_type to llm"
    )


def counterfactual_error(train: TokenizedSplit) -> str:
    """Why a train split without any counterfactual cannot be used; "" if it has some, or needs none."""
    if train.counterfactuals is None or len(train.counterfactuals.offsets) == 1 or train.counterfactuals.offsets[-1]:
        return ""
    return (
        f"train: none of the {train.size} examples has a counterfactual, which mi.estimator conditional contrasts: "
        "give rows a column counterfactuals, register a rule for the set, or set config.mi.estimator to another"
    )
