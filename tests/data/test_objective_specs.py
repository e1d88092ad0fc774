"""Objectives are found by name; a registered one is tokenized, cached and read by its spec."""

import dataclasses
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import runs

from cotmi_jax.data import tasks
from cotmi_jax.data.example import Example
from cotmi_jax.data.run_data import _identity
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tasks import EXPLAIN, OBJECTIVES, PREDICT, ObjectiveSpec, find_objective, register_objective
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError

EXAMPLE = Example("a/train/0", "Two pens.", "2", "One and one.", more=(("Twice one.", 0.5),))
LABEL_FIRST = ObjectiveSpec(
    tasks=(PREDICT,),
    target=lambda example, task, label: f"{label} because {example.rationale}",
    rationale_tasks=(PREDICT,),
    read_label=lambda output: output.partition(" because ")[0],
    read_rationale=lambda output: output.partition(" because ")[2],
)


@pytest.fixture
def registered() -> Iterator[str]:
    with mock.patch.dict(OBJECTIVES):
        register_objective("label_first", LABEL_FIRST)
        yield "label_first"


def test_a_registered_objective_is_tokenized_and_read_by_its_spec(registered: str) -> None:
    vocabulary = Vocabulary(VOCABULARY_PATH)
    limits = TokenLimits(100, 100)
    split = tokenize_split([EXAMPLE], vocabulary, objective=registered, label_type="gt", limits=limits)
    tokens = split.tasks[PREDICT]
    assert set(split.tasks) == {PREDICT} and tokens.per_rationale
    outputs = [vocabulary.decode(tokens.targets.concatenated(np.array([row]))) for row in (0, 1)]
    assert [tasks.read_label(output, registered) for output in outputs] == ["2", "2"]
    assert [tasks.read_rationale(output, registered) for output in outputs] == ["One and one.", "Twice one."]


def test_the_cache_identifies_a_registered_objective_by_name_and_its_own_key(registered: str) -> None:
    def sequences() -> list[str]:
        config = runs.tiny_config({"objective.name": registered})
        return _identity(config, Vocabulary(VOCABULARY_PATH))["sequences"]

    assert sequences() == ["label_first"]
    register_objective(registered, dataclasses.replace(LABEL_FIRST, cache_key=("2",)))
    assert sequences() == ["label_first", "2"]


def test_cache_keys_of_the_built_in_objectives_match_existing_caches() -> None:
    two = ["two tasks", "predict: ", "explain: "]
    expected = {"standard": ["standard"], "single_task": ["single_task"], "dss": two, "cotmi": two}
    assert {name: list(find_objective(name).cache_key) for name in expected} == expected


def test_invalid_objectives_are_refused() -> None:
    with pytest.raises(UserError, match="'dss' is built in: register yours under another name"):
        register_objective("dss", LABEL_FIRST)
    with pytest.raises(UserError, match="unknown objective 'gone': choose one of standard, .*config.extensions"):
        find_objective("gone")
    for changes, message in (
        ({"tasks": (EXPLAIN,)}, r"tasks of an objective are \('explain',\)"),
        ({"rationale_tasks": (EXPLAIN,)}, "rationale_tasks"),
        ({"has_mi_term": True}, "has_mi_term needs the tasks predict and explain"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(LABEL_FIRST, **changes)
