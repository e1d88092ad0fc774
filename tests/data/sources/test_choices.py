"""The choices and the cluster of examples, from every source."""

import json
from pathlib import Path

import pytest
from releases import cqa_row, nli_row, write_release

from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.example import Corpus, Example
from cotmi_jax.data.sources.arithmetic import make_arithmetic
from cotmi_jax.data.sources.own_files import FileSource
from cotmi_jax.data.sources.registered import RegisteredSource
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.sources.released_sets import NLI_LABELS
from cotmi_jax.data.sources.row_format import RowFormat, parse_fields
from cotmi_jax.errors import UserError

CHOICES = ["a rock", "a cork", "lead", "sand", "iron"]
ROW = {"input": "Is ice cold?", "label": "yes", "choices": ["no", " yes ", "maybe"], "cluster": "ice"}


def released(root: Path, name: str, rows: list[dict]) -> tuple[Example, ...]:
    write_release(root, name, rows, ["So. The answer is (1). So the answer is x."] * len(rows))
    return ReleasedSource(root, name).read({"train"}).splits["train"]


def own(path: Path, *rows: dict, **settings) -> Corpus:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileSource("jsonl", path, RowFormat(**settings)).read()


@pytest.mark.parametrize("name", ["esnli", "anli1"])
def test_hypotheses_about_one_premise_are_a_cluster_with_three_choices(tmp_path, name):
    rows = [nli_row(0), nli_row(2) | {"hypothesis": "A boy swims."}, nli_row(0) | {"premise": "A girl hums."}]
    first, second, third = released(tmp_path, name, rows)
    assert first.choices == second.choices == NLI_LABELS
    assert first.cluster == second.cluster != third.cluster and first.cluster.startswith(f"{name}/")


def test_cqa_has_the_choices_of_its_question(tmp_path):
    rows = [cqa_row(CHOICES), cqa_row([*CHOICES[:4], "tin"]), cqa_row(CHOICES) | {"question": "What does not sink?"}]
    first, second, third = released(tmp_path, "cqa", rows)
    assert first.choices == tuple(CHOICES) and second.choices[4] == "tin"
    assert first.cluster == second.cluster != third.cluster


def test_variants_of_a_problem_of_svamp_are_a_cluster_without_choices(tmp_path):
    texts = (
        "Jack received 3 emails in the morning.\nHow many?",
        "Jack received 10 emails and 12 letters.\nHow many letters?",
        "Paul got 3 emails.\nHow many?",
    )
    first, second, third = released(tmp_path, "svamp", [{"input": text, "label": "( 3 + 4 )"} for text in texts])
    assert first.choices == () and first.cluster == second.cluster != third.cluster


def test_a_generated_problem_is_independent_of_the_others():
    """Templates are drawn anew for every problem, and no split has others: they are no clusters."""
    example = make_arithmetic(0, 1, 0, 0).splits["train"][0]
    assert (example.choices, example.cluster) == ((), "")


def test_rows_can_have_choices_and_a_cluster_under_any_name(tmp_path):
    (example,) = own(tmp_path / "mine.jsonl", ROW).splits["train"]
    assert (example.choices, example.cluster) == (("no", "yes", "maybe"), "jsonl:mine/ice")
    renamed = {"input": "Is ice cold?", "label": "yes", "options": ["no", "yes"], "page": 7}
    fields = parse_fields("choices=options,cluster=page")
    (example,) = own(tmp_path / "mine.jsonl", renamed, fields=fields).splits["train"]
    assert (example.choices, example.cluster) == (("no", "yes"), "jsonl:mine/7")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_hold_choices_as_texts(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        path.write_text("input,label,choices,cluster\nIs ice cold?,yes,no| yes |maybe,ice\nB?,no,,\n")
    else:
        import pyarrow
        from pyarrow import parquet

        rows = [ROW, {"input": "B?", "label": "no", "choices": None, "cluster": None}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    first, second = FileSource(suffix, path).read().splits["train"]
    assert (first.choices, first.cluster) == (("no", "yes", "maybe"), f"{suffix}:mine/ice")
    assert (second.choices, second.cluster) == ((), "")


def test_without_choices_the_labels_that_rows_may_have_are_the_choices(tmp_path):
    plain = {"input": "Is ice cold?", "label": "yes"}
    first, second = own(tmp_path / "mine.jsonl", plain, ROW, labels=("yes", "no")).splits["train"]
    assert first.choices == ("yes", "no") and second.choices == ("no", "yes", "maybe")


def test_fields_of_other_types_are_ignored_unless_they_are_named(tmp_path):
    """As of files whose columns have these names by chance."""
    row = {"input": "A?", "label": "B", "choices": {"A": "red", "B": "blue"}, "cluster": [1]}
    (example,) = own(tmp_path / "mine.jsonl", row).splits["train"]
    assert (example.choices, example.cluster) == ((), "")
    for field, message in (("choices", "give a list of at least 2 different"), ("cluster", "give a text or a whole")):
        with pytest.raises(UserError, match=message):
            own(tmp_path / "mine.jsonl", row, fields=parse_fields(f"{field}={field}"))


def test_a_column_of_another_type_is_ignored(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"input": "A?", "label": "B", "choices": {"text": ["red"], "label": ["B"]}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    assert FileSource("parquet", tmp_path / "mine.parquet").read().splits["train"][0].choices == ()
    named = RowFormat(fields=parse_fields("choices=choices"))
    with pytest.raises(UserError, match="column 'choices' holds struct"):
        FileSource("parquet", tmp_path / "mine.parquet", named).read()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["yes"], "give a list of at least 2 different texts"),
        (["yes", "no", "no "], "give a list of at least 2 different texts"),
        (["yes", " "], "give a list of at least 2 different texts"),
        (["no", "maybe"], "give choices with the label"),
    ],
)
def test_choices_that_cannot_be_used_are_an_error_or_a_skip(tmp_path, choices, message):
    rows = ({**ROW, "choices": choices}, ROW)
    with pytest.raises(UserError, match=rf"mine.jsonl:1: .*{message}"):
        own(tmp_path / "mine.jsonl", *rows)
    assert own(tmp_path / "mine.jsonl", *rows, bad_rows="skip").skipped == {"train": 1}


def test_choices_and_clusters_identify_registered_examples_that_have_them():
    """Examples without them keep the fingerprint that they had before there were any."""

    def fingerprint(**changes) -> str:
        example = Example("mine/train/0", "A?", "yes", "So.", **changes)
        return RegisteredSource("mine", lambda: {"train": [example]}).fingerprint()

    found = {fingerprint(), fingerprint(choices=("yes", "no")), fingerprint(cluster="a")}
    assert len(found) == 3
    assert repr(Example("a", "b", "c", "d", choices=("x",), cluster="y")) == repr(Example("a", "b", "c", "d"))


def test_real_sets_have_the_known_clusters(data_root):
    """24 questions of CommonsenseQA repeat a choice."""
    for name, clusters, choices in (("esnli", 3323, {3}), ("cqa", 1221, {4, 5}), ("svamp", 101, {0})):
        (examples,) = load_corpus(Loading(dataset=name, data_root=str(data_root)), {"test"}).corpus.splits.values()
        assert len({example.cluster for example in examples}) == clusters
        assert {len(example.choices) for example in examples} == choices
        assert all(example.label.strip() in example.choices for example in examples if example.choices)
