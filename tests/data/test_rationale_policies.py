"""Examples without a rationale, and with identical ones: what the policies of config.data make of them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cotmi_jax.config import base
from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.example import Example, merge_rationales
from cotmi_jax.data.run_data import load_data
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError


def write(path: Path, *rationales: object) -> str:
    """A data set with one row for each of the rationales; a row without a rationale for None."""
    rows = [
        {"input": f"{n} + 1", "label": "2"} | ({} if r is None else {"rationale": r}) for n, r in enumerate(rationales)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def test_rows_with_a_label_alone_are_refused_only_where_rationales_are_trained_on(tmp_path):
    config = base()
    config.data.dataset = write(tmp_path / "mine.jsonl", *[None] * 10)
    for objective in ("cotmi", "dss", "single_task"):
        config.objective.name = objective
        with pytest.raises(
            UserError, match=r"mine.jsonl:1: no rationale for example jsonl:mine/train/0; pass empty_rat"
        ):
            load_data(config)
    config.objective.name = "standard"
    train = load_data(config).corpus.splits["train"]
    assert len(train) == 9 and {(example.label, example.rationale) for example in train} == {("2", "")}
    config.data.empty_rationale = "drop"  # what is asked for is done
    with pytest.raises(UserError, match="none of the 9 train examples has a rationale"):
        load_data(config)


def test_rows_with_a_label_alone_are_dropped_or_kept(tmp_path):
    dataset = write(tmp_path / "mine.jsonl", *["W."] * 15, *[None] * 5)
    kept, dropped = (load_corpus(Loading(dataset=dataset, empty_rationale=policy)) for policy in ("keep", "drop"))
    weights = Counter((e.rationale, e.weight) for examples in kept.corpus.splits.values() for e in examples)
    assert weights == {("W.", 1.0): 15, ("", 0.0): 5}
    assert {e.rationale for e in dropped.corpus.splits["train"]} == {"W."} and dropped.dropped["train"] > 0


@pytest.mark.parametrize(
    ("given", "merged"),
    [
        ([("a", 1.0), ("a", 1.0), ("b", 1.0), ("a", 1.0)], [("a", 1.5), ("b", 0.5)]),
        ([("a", 1.0), ("b", 2.0)], [("a", 1.0), ("b", 2.0)]),
        ([("a", 1.0), ("a", 1.0)], [("a", 1.0)]),
        ([("a", 0.5), ("b", 1.0), ("a", 1.0)], [("a", 1.0), ("b", 2 / 3)]),
        ([("", 0.0)], [("", 0.0)]),
    ],
)
def test_the_frequency_of_a_rationale_becomes_its_weight(given, merged):
    first, *more = given
    result = merge_rationales(Example("x", "A?", "b", first[0], weight=first[1], more=tuple(more))).rationales
    assert [text for text, _ in result] == [text for text, _ in merged]
    assert [weight for _, weight in result] == pytest.approx([weight for _, weight in merged])
    # The mean weight of each rationale in an epoch, of which each uses one, is that of using them all in turn.
    for text in dict(given):
        before = sum(weight for each, weight in given if each == text) / len(given)
        assert dict(result)[text] / len(result) == pytest.approx(before)


def test_identical_rationales_are_merged_in_train_if_asked(tmp_path):
    dataset = write(tmp_path / "mine.jsonl", *[["a", "a", "b"]] * 10)
    plain, merged = (
        load_corpus(Loading(dataset=dataset, duplicate_rationales=policy)) for policy in ("keep", "weight")
    )
    assert plain.corpus == load_corpus(Loading(dataset=dataset)).corpus
    assert {len(example.rationales) for example in plain.corpus.splits["train"]} == {3}
    assert merged.corpus.splits["valid"] == plain.corpus.splits["valid"]
    train = merged.corpus.splits["train"]
    limits = TokenLimits(64, 64)
    split = tokenize_split(train, Vocabulary(VOCABULARY_PATH), objective="cotmi", label_type="gt", limits=limits)
    assert split.weights.tolist() == pytest.approx([4 / 3, 2 / 3] * 9)
    with pytest.raises(UserError, match="duplicate_rationales = 'sum': choose one of keep, weight"):
        Loading(dataset=dataset, duplicate_rationales="sum")
