"""Statistics of a corpus, against numbers computed by hand, and their table."""

import dataclasses
import json

import pytest

from cotmi_jax.data.checks import check_splits, context_of, format_checks
from cotmi_jax.data.corpus import Component, LoadedCorpus
from cotmi_jax.data.example import Corpus, Example, LabelKind, Pair
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.statistics import describe, format_description
from cotmi_jax.data.vocabulary import Vocabulary


def encode_words(texts: list[str]) -> list[list[int]]:
    """One token per word, and an end-of-sequence token."""
    return [[*range(len(text.split())), 1] for text in texts]


def make_loaded(kind: LabelKind = "equation") -> LoadedCorpus:
    train = [
        Example("made/train/0", "one two three", "( 1 + 2 )", "so\nit goes", "(1 + 2)", kind=kind),
        Example("made/train/1", "one", "( 3 )", "why", "( 3 )", kind=kind),
        Example("made/train/2", "one two", "( 4 )", "because " * 40, "( 5 )", kind=kind),
        Example("made/train/3", "one two three four", "( 6 )", "no idea", None, kind=kind),
    ]
    test = [Example("made/test/0", "one two", "( 7 )", "", None, kind=kind)]
    corpus = Corpus("made", {"train": tuple(train), "test": tuple(test)})
    return LoadedCorpus(corpus, dropped={"train": 5, "test": 0}, unparsed={"train": 1, "test": 1})


def test_describe_counts():
    description = describe(make_loaded(), encode_words)
    train, test = description["splits"]["train"], description["splits"]["test"]
    assert train["examples"] == 4 and test["examples"] == 1
    assert train["tokens"]["input"] == {"mean": 3.5, "p95": pytest.approx(4.85), "max": 5}
    assert train["tokens"]["label"] == {"mean": 4.5, "p95": pytest.approx(5.7), "max": 6}
    assert train["tokens"]["rationale"] == {"mean": 12.5, "p95": pytest.approx(35.45), "max": 41}
    assert (train["teacher_exact"], train["teacher_value"]) == (0.25, 0.5)
    assert train["unparsable"] == 1
    assert test["tokens"]["rationale"] == {"mean": 1.0, "p95": 1.0, "max": 1}
    assert (test["teacher_exact"], test["teacher_value"], test["unparsable"]) == (None, None, None)
    assert [sample["id"] for sample in description["samples"]] == [f"made/train/{i}" for i in range(3)]
    assert json.loads(json.dumps(description)) == description


def test_skipped_rows_and_components_are_shown_if_there_are_any():
    plain = make_loaded()
    text = format_description(describe(plain, encode_words))
    assert "skipped" not in text and "rate" not in text
    components = (Component("made", 3, 2.0), Component("jsonl:mine", 1, 0.5))
    notes = ("made.json:7: the label is empty",)
    loaded = dataclasses.replace(plain, components=components, skipped={"train": 2, "test": 0}, skip_notes=notes)
    description = describe(loaded, encode_words)
    assert [split["skipped"] for split in description["splits"].values()] == [2, 0]
    assert description["components"][1] == {"name": "jsonl:mine", "train": 1, "rate": 0.5}
    lines = format_description(description).split("\n")
    assert lines[2].endswith("  skipped") and lines[3].split()[-1] == "2" and lines[4].split()[-1] == "0"
    assert "  made.json:7: the label is empty" in lines and "jsonl:mine: 1 train, rate 0.5" in lines


def test_prefix_counts_in_inputs_only():
    plain, prefixed = (
        describe(make_loaded(), encode_words, input_prefix=prefix)["splits"]["train"] for prefix in ("", "predict: ")
    )
    assert prefixed["tokens"]["input"]["mean"] == plain["tokens"]["input"]["mean"] + 1
    assert prefixed["tokens"]["label"] == plain["tokens"]["label"]
    assert prefixed["tokens"]["rationale"] == plain["tokens"]["rationale"]


def test_values_are_compared_for_equations_only():
    description = describe(make_loaded("text"), encode_words)
    assert description["splits"]["train"]["teacher_value"] is None
    assert "by value" not in format_description(description)


def test_format_is_an_aligned_table_followed_by_the_samples():
    lines = format_description(describe(make_loaded(), encode_words)).split("\n")
    assert lines[0] == "made (equation labels)"
    header, train, test = lines[2:5]
    assert len(header) == len(train) == len(test)
    assert train.split() == ("train 4 3.5 / 5 / 5 4.5 / 6 / 6 12.5 / 35 / 41 25.00% 50.00% 1".split())
    for column in ("examples", "input", "rationale", "by value", "unparsable"):
        end = header.index(column) + len(column)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in (header, train, test))
    text = "\n".join(lines[5:])
    assert "  rationale      so\n                 it goes\n  teacher_label  (1 + 2)\n" in text
    assert "made/train/2" in text and "made/train/3" not in text
    assert max(map(len, lines)) <= 100


def test_format_shows_labels_that_could_not_be_read():
    loaded = make_loaded()
    only_test = Corpus("made", {"test": loaded.corpus.splits["test"]})
    text = format_description(describe(LoadedCorpus(only_test, {"test": 0}, {"test": 1}), encode_words))
    assert "  rationale\n  teacher_label  (none that can be read)" in text.replace("rationale      \n", "rationale\n")


def test_absent_teacher_labels_are_not_called_wrong():
    text = format_description(describe(make_loaded(), encode_words))
    assert "no teacher labels in test: there is no teacher" in text and " 0.00%" not in text


def test_labels_repetitions_and_overlap_are_counted():
    vocabulary = Vocabulary(VOCABULARY_PATH)
    train = [Example("a", "Snow.</s>Cold?", "yes", "So."), Example("b", "Fire.</s>Cold?", "no", "東")]
    train += [Example("c", "Fire.</s>Cold?", "yes", "", cluster="weather")]
    test = [
        Example("d", "Fire.</s>Hot?", "東", "So.", cluster="weather"),
        Example("e", "Snow.</s>Cold?", "yes", "So. " * 20),
    ]
    limits = {"input": 50, "label": 20, "rationale": 20}
    checks = check_splits({"train": train, "test": test}, vocabulary, limits, "")
    assert checks["train"]["labels"] == {"yes": 2, "no": 1} and checks["train"]["distinct_labels"] == 2
    found = {name: (split["repeated_inputs"], split["contradictory"]) for name, split in checks.items()}
    assert found == {"train": (1, 1), "test": (0, 0)}
    assert (checks["test"]["inputs_in_train"], checks["test"]["contexts_in_train"]) == (1, 2)
    assert (checks["test"]["clusters_in_train"], checks["train"]["clusters_in_train"]) == (1, None)
    assert (checks["train"]["inputs_in_train"], checks["train"]["without_rationale"]) == (None, 1)
    assert checks["train"]["unknown"]["rationale"] == 1 and checks["test"]["unknown"]["label"] == 1
    assert checks["test"]["cut"] == {"input": 0, "label": 0, "rationale": 1}
    assert [split["lost_labels"] for split in checks.values()] == [0, 1]
    text = format_checks(checks)
    assert max(map(len, text.split("\n"))) <= 100 and "context is in train" in text
    story = Example("f", "Ida has 3 pens.\nHow many?", "3", "So.", kind="equation")
    assert context_of(story) == "Ida has # pens."


def test_counterfactuals_are_counted_with_the_reasons_why_others_have_none():
    steps = "There are 2 + 3 = 5."
    train = [
        Example("made/train/0", "2 red and 3 blue", "( 2 + 3 )", steps, "( 3 + 2 )", kind="equation"),
        Example("made/train/1", "2 red and 3 blue", "( 2 + 3 )", steps, "( 2 - 3 )", kind="equation"),
        Example("made/train/2", "2 red and 3 blue", "( 2 + 3 )", "There are 5.", None, kind="equation"),
    ]
    given = dataclasses.replace(train[2], id="made/train/3", counterfactuals=(Pair("( 2 * 3 )", "There are 6."),))
    loaded = LoadedCorpus(Corpus("made", {"train": (*train, given)}), dropped={}, unparsed={"train": 2})
    description = describe(loaded, encode_words)
    assert description["splits"]["train"]["counterfactuals"] == {"found": 2, "other_answer": 1, "unstated": 1}
    assert "  train: 2 of 4 (50.0%); of the others the teacher answers otherwise in 1" in format_description(
        description
    )
    plain = Corpus("made", {"train": (Example("made/train/0", "one", "two", "three"),)})
    description = describe(LoadedCorpus(plain, dropped={}, unparsed={"train": 1}), encode_words)
    assert description["splits"]["train"]["counterfactuals"] is None
    assert "counterfactuals" not in format_description(description)
