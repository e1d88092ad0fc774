"""Factors of the weights of train rationales: by the teacher's answer, and from a file."""

import json
from pathlib import Path

import pytest
import runs

from cotmi_jax.data import corpus
from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.example import Example, Span, with_factors
from cotmi_jax.data.rationale_weights import weigh
from cotmi_jax.data.run_data import RunData, _identity, load_data
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.sources.base import digest
from cotmi_jax.data.sources.own_files import FileSource
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import with_data_root

quick_compilation = runs.quick_compilation
VOCABULARY = Vocabulary(VOCABULARY_PATH)


def example(name: str, teacher: str | None = "4", **changes: object) -> Example:
    defaults: dict = dict(
        input="2 + 2?", label="( 2 + 2 )", rationale="It is 4.", teacher_label=teacher, kind="equation"
    )
    return Example(f"s/train/{name}", **(defaults | changes))


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def test_rationales_of_a_wrong_or_unreadable_answer_get_weight_0() -> None:
    right, wrong, unread = example("0", "(1 + 3)"), example("1", "5"), example("2", None)
    empty = example("3", rationale="", weight=0.0)
    found = weigh("correct", [right, wrong, unread, empty])
    assert [each.weight for each in found.examples] == [1.0, 0.0, 0.0, 0.0]  # equations compare by value
    assert found.examples[0] == right and found.examples[1].rationale == "It is 4."
    assert found.note == "train: 1 of 3 rationales count (correct), weights 1 to 1"
    with pytest.raises(UserError, match="correct: no teacher's label is the gold one: set it to uniform"):
        weigh("correct", [wrong, unread])


def test_a_rationale_of_weight_0_is_left_out_unless_it_is_the_only_one() -> None:
    spans = ((Span(0, 1, 2.0),), (), (Span(1, 2, 3.0),))
    several = example("0", more=(("b", 2.0), ("c", 4.0)), answer_text="So 4", token_weights=spans)
    found = with_factors(several, [0.0, 0.5, 0.25])
    assert found.rationales == (("b", 1.0), ("c", 1.0)) and found.token_weights == ((), (Span(1, 2, 3.0),))
    assert found.answer_text == ""  # it was of the first
    assert with_factors(several, [1.0, 0.0, 0.0]).answer_text == "So 4"
    none = with_factors(several, [0.0, 0.0, 0.0])
    assert none.rationales == (("It is 4.", 0.0),)


def test_a_file_gives_each_example_its_weights(tmp_path: Path) -> None:
    examples = [example("0"), example("1", more=(("b", 3.0),)), example("2", rationale="", weight=0.0)]
    given = write(
        tmp_path / "w.jsonl",
        {"id": "s/train/1", "weight": [2, 0.5], "perplexity": 1.5},
        {"id": "s/train/0", "weight": 0.25},
        {"id": "s/train/9", "weight": 1},
    )
    found = weigh(given, examples)
    assert [each.rationales for each in found.examples] == [
        (("It is 4.", 0.25),),
        (("It is 4.", 2.0), ("b", 1.5)),
        (("", 0.0),),
    ]
    assert found.note.startswith("train: 3 of 3 rationales count (jsonl:")
    assert found.note.endswith("weights 0.25 to 2; 1 of its ids are none of these examples")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": "s/train/0", "weight": 1}],
            "has no weight of 1 of the 2 train examples, such as s/train/1: give each",
        ),
        ([{"id": "s/train/0", "weight": -1}], "w.jsonl:1: weight = -1; give a number of 0 to"),
        ([{"id": "s/train/0", "weight": True}], "w.jsonl:1: weight = True"),
        ([{"id": "s/train/0", "weight": float("nan")}], "w.jsonl:1: weight = nan"),
        ([{"id": "s/train/0", "weight": 10**400}], "w.jsonl:1: weight = <integer of"),
        ([{"id": "s/train/0", "weight": []}], "w.jsonl:1: weight = "),
        ([{"id": "s/train/0"}], "w.jsonl:1: weight = None"),
        ([{"weight": 1}], "w.jsonl:1: field 'id' holds no text"),
        ([{"id": "s/train/0", "weight": 1}] * 2, "w.jsonl:2: id s/train/0 is also that of .*w.jsonl:1"),
        (
            [{"id": "s/train/0", "weight": [1, 2]}, {"id": "s/train/1", "weight": 1}],
            "w.jsonl:1: 2 weights for the 1 rationales of s/train/0",
        ),
        ([{"id": f"s/train/{n}", "weight": 0} for n in range(2)], "it gives every rationale weight 0"),
        ([], "has no weight of 2 of the 2 train examples"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        weigh(write(tmp_path / "w.jsonl", *rows), [example("0"), example("1")])


def test_unknown_values_and_absent_files_are_refused(tmp_path: Path) -> None:
    for given in ("right", "jsonl:", "weights.jsonl"):
        with pytest.raises(
            UserError, match="config.data.rationale_weights is .*: choose uniform, correct or jsonl:PATH"
        ):
            Loading(dataset="arithmetic", rationale_weights=given)
    loading = Loading(dataset="arithmetic", size=10, rationale_weights=f"jsonl:{tmp_path / 'absent.jsonl'}")
    for function in (load_corpus, corpus_fingerprint):
        with pytest.raises(UserError, match="absent.jsonl"):
            function(loading)


def test_only_train_is_weighed_and_the_cache_knows_the_content_of_the_file(tmp_path: Path) -> None:
    config = runs.tiny_config({"objective.name": "dss", "data.cache": str(tmp_path / "cache")})
    plain, train = RunData.of(config, VOCABULARY), load_data(config).corpus.splits["train"]
    file = tmp_path / "w.jsonl"
    write(file, *({"id": each.id, "weight": 0.5 + n % 2} for n, each in enumerate(train)))
    config.data.rationale_weights = f"jsonl:{file}"
    one, same = (RunData.of(config, VOCABULARY) for _ in range(2))
    assert one.train.weights.tolist() == [0.5 + n % 2 for n in range(len(train))]
    assert (one.valid.weights == 1.0).all()
    assert not one.found and same.found
    write(file, *({"id": each.id, "weight": n % 2} for n, each in enumerate(train)))
    other = RunData.of(config, VOCABULARY)
    assert not other.found and len({data.prepared.fingerprint for data in (plain, one, other)}) == 3
    text = "\n".join(other.notes(None))
    assert f"train: 10 of {len(train)} rationales count" in text
    assert f"10 of {len(train)} examples (50.0%) have no rationale, or one of weight 0: only their label" in text
    config.objective.name = "standard"  # of which no rationale is trained
    assert (RunData.of(config, VOCABULARY).train.weights == 1.0).all()
    file.unlink()
    assert "test" in load_data(config, {"test"}).corpus.splits
    config.objective.name = "dss"
    assert "test" in load_data(config, {"test"}).corpus.splits  # evaluation needs no weights


def test_without_weights_prepared_tokens_are_those_of_versions_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a", "label": "b", "rationale": "c"}\n')
    expected = digest(corpus._VERSION, "error", FileSource("jsonl", path).fingerprint())
    assert corpus_fingerprint(Loading(dataset=f"jsonl:{path}")) == expected
    identity = _identity(runs.tiny_config({"objective.name": "dss"}), VOCABULARY)
    assert not any("weights" in key for key in [*identity, *identity["settings"]])


def test_a_recorded_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = runs.tiny_config({"data.rationale_weights": "jsonl:w.jsonl"})
    assert with_data_root(config).data.rationale_weights == f"jsonl:{tmp_path / 'w.jsonl'}"
    config.data.rationale_weights = "correct"
    assert with_data_root(config).data.rationale_weights == "correct"
