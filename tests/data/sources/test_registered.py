"""A registered data set is found by name, checked, mixed, and identified by its examples or its version."""

import dataclasses
from collections.abc import Iterator
from unittest import mock

import pytest

from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.registered import SOURCES, register_source
from cotmi_jax.errors import UserError


def examples(split: str, count: int, rationale: str = "One.") -> list[Example]:
    return [Example(f"mine/{split}/{n}", f"{n}?", "yes", rationale) for n in range(count)]


@pytest.fixture(autouse=True)
def restore_sources() -> Iterator[None]:
    with mock.patch.dict(SOURCES):
        yield


def test_a_registered_set_is_loaded_alone_and_in_a_mixture() -> None:
    register_source("mine", lambda: {"train": iter(examples("train", 4)), "valid": examples("valid", 2)})
    alone = load_corpus(Loading(dataset="mine"))
    assert alone.corpus.splits == {"train": tuple(examples("train", 4)), "valid": tuple(examples("valid", 2))}
    mixed = load_corpus(Loading(dataset="mine=3,arithmetic", size=5))
    assert [(one.name, one.size, one.rate) for one in mixed.components] == [("mine", 4, 3.0), ("arithmetic", 5, 1.0)]


def test_the_fingerprint_depends_on_the_examples_or_the_stated_version() -> None:
    def fingerprint(count: int, version: str = "", rationale: str = "One.") -> str:
        register_source("mine", lambda: {"train": examples("train", count, rationale)}, version=version)
        return corpus_fingerprint(Loading(dataset="mine"))

    placed = [dataclasses.replace(example, place="elsewhere:1") for example in examples("train", 3)]
    assert fingerprint(3) == fingerprint(3)
    register_source("mine", lambda: {"train": placed})
    assert corpus_fingerprint(Loading(dataset="mine")) == fingerprint(3)
    assert len({fingerprint(3), fingerprint(4), fingerprint(3, rationale="Two."), fingerprint(3, "1")}) == 4
    assert fingerprint(3, "1") == fingerprint(4, "1") != fingerprint(4, "2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "source mine returns the splits none: it needs a train split"),
        ({"train": [], "valid": examples("valid", 2)}, "returns the splits train, valid: it needs a train split"),
        ({"train": examples("train", 2), "dev": examples("dev", 2)}, "returns the splits train, dev"),
        ({"train": examples("valid", 2)}, "id 'mine/valid/0' in split train: give every example a unique id"),
        ({"train": examples("train", 1) * 2}, "id 'mine/train/0' in split train"),
        ({"train": [Example("mine/train/0", " ", "yes", "One.")]}, "input or label of mine/train/0 is blank"),
        ({"train": examples("train", 2, " ")}, "source mine: no rationale for example mine/train/0"),
    ],
)
def test_unusable_examples_are_refused(given: dict[str, list[Example]], message: str) -> None:
    register_source("mine", lambda: given)
    with pytest.raises(UserError, match=message):
        load_corpus(Loading(dataset="mine"))


def test_names_are_simple_and_listed_among_the_choices() -> None:
    with pytest.raises(UserError, match="source 'a=b': a name consists of letters"):
        register_source("a=b", dict)
    register_source("mine", dict)
    with pytest.raises(UserError, match="dataset = 'yours': choose one of .*tfds:NAME, mine, or several"):
        load_corpus(Loading(dataset="yours"))
