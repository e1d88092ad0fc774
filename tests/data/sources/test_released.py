"""The reader of the layout of the Distilling Step-by-Step release: files, bad input, known facts of the real data."""

import collections
import json
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from releases import cqa_row, json_lines, nli_row, write_release

from cotmi_jax.data.example import EOS_TEXT, Corpus, Example
from cotmi_jax.data.labels import equal_values, evaluate_expression
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.errors import UserError

SVAMP_ROWS = [
    {"input": f"Ida has {n} kites.\nHow many kites are left?", "label": f"( {n}.0 - 1.0 )"} for n in (5, 6, 7)
]
SVAMP_COMPLETIONS = [
    f"One kite of {n} is gone. The answer is ({n} - 1).\n\nQ: Next?\nA: The answer is (0)." for n in (5, 6, 7)
]


def read_dss(root: Path, name: str, **settings) -> Corpus:
    return ReleasedSource(root, name, **settings).read()


# Files.


def test_completion_files_are_joined_in_numeric_order_and_aligned_by_row(tmp_path):
    rows = [{"input": f"Question {i}?", "label": f"( {i}.0 + 1.0 )"} for i in range(11)]
    write_release(tmp_path, "svamp", rows, *[[f"Thought {i}. The answer is ({i} + 1)."] for i in range(11)])
    corpus = read_dss(tmp_path, "svamp")
    assert (corpus.name, corpus.label_kind, list(corpus.splits)) == ("svamp", "equation", ["train"])
    for i, example in enumerate(corpus.splits["train"]):
        assert example.id == f"svamp/train/{i}"
        assert (example.input, example.label) == (f"Question {i}?", f"( {i}.0 + 1.0 )")
        assert (example.rationale, example.teacher_label) == (f"Thought {i}.", f"({i} + 1)")


def test_root_can_be_the_parent_of_dss_and_gold_can_be_a_json_list(tmp_path):
    gold = write_release(tmp_path / "dss", "svamp", SVAMP_ROWS, SVAMP_COMPLETIONS)
    lines = read_dss(tmp_path, "svamp")
    gold.write_text(json.dumps(SVAMP_ROWS, indent=1))
    assert read_dss(tmp_path, "svamp") == lines == read_dss(tmp_path / "dss", "svamp")


def test_line_separators_inside_texts_and_blank_lines_do_not_split_rows(tmp_path):
    rows = [{"input": "One\u2028two\x85three", "label": "( 1.0 + 1.0 )"}, SVAMP_ROWS[0]]
    gold = write_release(tmp_path, "svamp", rows, SVAMP_COMPLETIONS[:2])
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    gold.write_text("\n\n".join(lines) + "\n\n", encoding="utf-8")
    assert [example.input for example in read_dss(tmp_path, "svamp").splits["train"]] == [r["input"] for r in rows]


def test_cqa_input_lists_the_choices(tmp_path):
    row = cqa_row(["a stone", "iron", "sand", "a cork", "a nail"])
    write_release(tmp_path, "cqa", [row], ["Corks do. So the answer is (d) a cork."])
    (example,) = read_dss(tmp_path, "cqa").splits["train"]
    assert example.input == "What floats?\nAnswer Choices:\n(a) a stone\n(b) iron\n(c) sand\n(d) a cork\n(e) a nail"
    assert example.label == example.teacher_label == "a cork"


@pytest.mark.parametrize("name", ["esnli", "anli1"])
def test_nli_sentences_are_joined_with_the_eos_text_and_labels_have_names(tmp_path, name):
    write_release(tmp_path, name, [nli_row(0), nli_row(1), nli_row(2)], ["", "", ""])
    write_release(tmp_path, name, [nli_row(2)], [""], split="valid")
    splits = read_dss(tmp_path, name).splits
    assert list(splits) == ["train", "valid"]
    assert [example.label for example in splits["train"]] == ["entailment", "neutral", "contradiction"]
    assert splits["valid"][0].input == "A boy hums.</s>A boy sings."


def test_the_second_teacher_has_its_own_folder_and_rules(tmp_path):
    write_release(tmp_path, "anli1", [nli_row(1)], ["First. So the answer is entailment."])
    (tmp_path / "gpt-neox" / "anli1").mkdir(parents=True)
    (tmp_path / "gpt-neox" / "anli1" / "train.json").write_text('[" Second. The answer is neutral."]')
    first, second = (read_dss(tmp_path, "anli1", teacher=t).splits["train"][0] for t in ("palm", "gpt-neox"))
    assert (first.rationale, first.teacher_label) == ("First.", "entailment")
    assert (second.rationale, second.teacher_label) == ("Second.", "neutral")


@pytest.mark.parametrize("original_fields", [True, False])
def test_asdiv_extends_train_with_rationales_free_of_labels(tmp_path, original_fields):
    write_release(tmp_path, "svamp", SVAMP_ROWS, SVAMP_COMPLETIONS)
    write_release(tmp_path, "svamp", SVAMP_ROWS[:1], SVAMP_COMPLETIONS[:1], split="test")
    if original_fields:
        rows = [
            {"Body": "Two cats meet.", "Question": "How many?", "Formula": "1+1=2", "Answer": f"{n} (cats)"}
            for n in "23"
        ]
    else:
        rows = [{"input": "Two cats meet.\nHow many?", "label": n} for n in "23"]
    write_release(
        tmp_path, "asdiv", rows, ["A pair of cats. The answer is (1 + 1).\n\nQ: x"], ["Three. The answer is 3."]
    )
    splits = read_dss(tmp_path, "svamp", augment_asdiv=True).splits
    assert splits["train"][:3] == read_dss(tmp_path, "svamp").splits["train"]
    added = splits["train"][3:]
    assert [example.id for example in added] == ["asdiv/train/0", "asdiv/train/1"]
    assert [example.input for example in added] == ["Two cats meet.\nHow many?"] * 2
    assert [example.label for example in added] == ["2", "3"]
    assert [example.rationale for example in added] == ["A pair of cats.", "Three."]
    assert [example.teacher_label for example in added] == ["(1 + 1)", None]
    assert len(splits["test"]) == 1


def test_prefix_alignment_keeps_the_rows_that_have_both(tmp_path):
    gold = write_release(tmp_path, "svamp", SVAMP_ROWS, SVAMP_COMPLETIONS)
    expected = read_dss(tmp_path, "svamp").splits["train"]
    write_release(tmp_path, "svamp", SVAMP_ROWS, SVAMP_COMPLETIONS[:2])
    assert read_dss(tmp_path, "svamp", align="prefix").splits["train"] == expected[:2]
    with pytest.raises(UserError, match=rf"{gold}: 3 rows but 2 completions in .*llm; .*align=prefix"):
        read_dss(tmp_path, "svamp")
    write_release(tmp_path, "svamp", SVAMP_ROWS[:1], SVAMP_COMPLETIONS)
    assert read_dss(tmp_path, "svamp", align="prefix").splits["train"] == expected[:1]


# Bad input is an error of one line that names the place.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gsm8k"}, "dataset = 'gsm8k': choose one of anli1, cqa, esnli, svamp"),
        ({"name": "svamp", "teacher": "gpt"}, "teacher = 'gpt': choose one of palm, gpt-neox"),
        ({"name": "svamp", "align": "loose"}, "align = 'loose': choose one of strict, prefix"),
        ({"name": "cqa", "augment_asdiv": True}, "augment_asdiv goes with dataset 'svamp' only, not 'cqa'"),
        ({"name": "svamp"}, "holds neither svamp/ nor dss/svamp/"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        read_dss(tmp_path, **arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("esnli", json_lines([nli_row(0), nli_row(3)]), ":2: label = 3; give one of 0 (entailment), 1 (neutral)"),
        ("esnli", json_lines([nli_row(-1)]), ":1: label = -1; give one of"),
        ("anli1", json_lines([nli_row("neutral")]), ":1: label = 'neutral'; give one of"),
        ("esnli", json_lines([nli_row(True)]), ":1: label = True; give one of"),
        ("esnli", json.dumps([nli_row(0), nli_row(None)]), ": item 1: label = None; give one of"),
        ("esnli", '{"premise": "A", "label": 0}', ":1: field 'hypothesis' holds no text; the row has label, premise"),
        ("svamp", json_lines([{"input": "Why?"}]), ":1: field 'label' holds no text; the row has input"),
        ("svamp", json_lines([{"input": "Why?", "label": 4}]), ":1: field 'label' holds no text"),
        ("svamp", json_lines([{"input": " \n", "label": "( 1 )"}]), ":1: the input is empty"),
        ("svamp", json_lines([{"input": "Why?", "label": " "}]), ":1: the label is empty"),
        ("esnli", '{"premise": "", "hypothesis": " ", "label": 0}', ":1: the input is empty"),
        ("cqa", json_lines([cqa_row(["a", "b", "c", "d"])]), ":1: choices = ['a', 'b', 'c', 'd']; give a list of 5"),
        ("cqa", json_lines([cqa_row(list("abcdef"))]), ":1: choices = "),
        ("cqa", '{"question": "Why?", "answer": "a"}', ":1: choices = None; give a list of 5 texts"),
        ("svamp", json_lines(SVAMP_ROWS[:1]) + '{"input": "Why?",\n', ":2: broken JSON (Expecting property name"),
        ("svamp", '[{"input": "Why?",\n"label": }]', ":2: broken JSON (Expecting value"),
        ("svamp", json_lines(SVAMP_ROWS[:1]) + "7\n", ":2: not a JSON object but 7"),
        ("svamp", "", ": holds nothing"),
    ],
)
def test_bad_gold_rows(tmp_path, name, rows, message):
    gold = write_release(tmp_path, name, [], ["Thought."])
    gold.write_text(rows)
    with pytest.raises(UserError) as error:
        read_dss(tmp_path, name)
    assert str(error.value).startswith(f"{gold}{message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["Thought.",\n"Another]', ":2: broken JSON (Unterminated string"),
        (b'{"train": []}', ":1: not a JSON list"),
        (b'["Thought.", null]', ": item 1 of the list is not a text but None"),
        (b'["Thought.",\n"caf\xe9"]', ":2: not UTF-8 (invalid continuation byte)"),
        (b"[]", ": holds nothing"),
    ],
)
def test_bad_completions(tmp_path, content, message):
    write_release(tmp_path, "svamp", SVAMP_ROWS, [])
    completions = tmp_path / "svamp" / "llm" / "train_CoT_0.json"
    completions.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_dss(tmp_path, "svamp", align="prefix")
    assert str(error.value).startswith(f"{completions}{message}") and "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    gold = write_release(
        tmp_path, "svamp", SVAMP_ROWS, SVAMP_COMPLETIONS[:1], SVAMP_COMPLETIONS[1:2], SVAMP_COMPLETIONS[2:]
    )
    folder = tmp_path / "svamp" / "llm"
    neox = tmp_path / "gpt-neox" / "svamp" / "train.json"
    with pytest.raises(UserError, match=f"^{neox}: No such file or directory; restore"):
        read_dss(tmp_path, "svamp", teacher="gpt-neox")
    with pytest.raises(UserError, match=r"^.*asdiv_train.json: No such file or directory; restore"):
        read_dss(tmp_path, "svamp", augment_asdiv=True)
    (folder / "train_CoT_1.json").unlink()
    with pytest.raises(UserError, match=f"^{folder / 'train_CoT_1.json'}: missing, but there is train_CoT_2.json; "):
        read_dss(tmp_path, "svamp")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"^{folder / 'train_CoT_0.json'}: No such file or directory; restore"):
        read_dss(tmp_path, "svamp")
    gold.unlink()
    with pytest.raises(UserError, match=f"^{gold}: No such file or directory; restore"):
        read_dss(tmp_path, "svamp")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("svamp", '{"input": "Why?"', "broken JSON (Expecting ',' delimiter)"),
        ("svamp", b'{"input": "caf\xe9", "label": "( 1 )"}', "not UTF-8 (invalid continuation byte)"),
        ("svamp", '{"input": "Why?"}', "field 'label' holds no text"),
        ("svamp", "7", "not a JSON object but 7"),
        ("svamp", '{"input": "\\ud83d?", "label": "( 1 )"}', "field 'input' holds \\ud83d, half a character"),
        ("esnli", json.dumps(nli_row(3)), "label = 3; give one of 0 (entailment)"),
        ("cqa", json.dumps(cqa_row(list("abcde"))), "answer = 'a cork'; give one of the choices, a, b, c, d, e"),
    ],
)
def test_a_bad_row_is_an_error_or_is_skipped_with_its_completion(tmp_path, name, row, message):
    good = {"svamp": SVAMP_ROWS[0], "esnli": nli_row(0), "cqa": cqa_row(["a cork", *"abcd"])}[name]
    marker = {"svamp": "The answer is (1).", "esnli": "Answer: neutral", "cqa": "So the answer is (a) b."}[name]
    gold = write_release(tmp_path, name, [good], [f"Thought {i}. {marker}" for i in range(3)])
    line = json.dumps(good).encode()
    gold.write_bytes(b"\n".join([line, row if isinstance(row, bytes) else row.encode(), line]))
    with pytest.raises(UserError) as error:
        read_dss(tmp_path, name)
    assert str(error.value).startswith(f"{gold}:2: {message}")
    corpus = read_dss(tmp_path, name, bad_rows="skip")
    assert [(e.id, e.rationale) for e in corpus.splits["train"]] == [
        (f"{name}/train/0", "Thought 0."),
        (f"{name}/train/2", "Thought 2."),
    ]
    assert corpus.skipped == {"train": 1} and corpus.skip_notes == (str(error.value),)


def test_a_problem_of_more_than_one_row_is_always_an_error(tmp_path):
    gold = write_release(tmp_path, "svamp", [{"input": "Why?"}], ["Thought."])
    with pytest.raises(UserError, match=f"^{gold}: none of its 1 rows is usable; bad_rows=error says what is wrong$"):
        read_dss(tmp_path, "svamp", bad_rows="skip")
    write_release(tmp_path, "svamp", [*SVAMP_ROWS, {"input": "Why?"}], SVAMP_COMPLETIONS)
    with pytest.raises(UserError, match=f"^{gold}: 4 rows but 3 completions"):
        read_dss(tmp_path, "svamp", bad_rows="skip")
    gold.write_text("")
    with pytest.raises(UserError, match=f"^{gold}: holds nothing"):
        read_dss(tmp_path, "svamp", bad_rows="skip")
    gold.write_text('[{"input": "Why?"')
    with pytest.raises(UserError, match=f"^{gold}:1: broken JSON"):
        read_dss(tmp_path, "svamp", bad_rows="skip")
    write_release(tmp_path, "svamp", SVAMP_ROWS, [*SVAMP_COMPLETIONS[:2], 7])
    with pytest.raises(UserError, match="train_CoT_0.json: item 2 of the list is not a text but 7"):
        read_dss(tmp_path, "svamp", bad_rows="skip")


# Known facts of the real data.


def has_gold_value(example: Example) -> bool:
    """Equal value as in the known figures, which use Python's eval: "(1 + 2) and (3 + 4)" is (3 + 4) there."""
    label = re.sub(r"\([^()]*\) and ", "", example.teacher_label or "")
    return equal_values(evaluate_expression(label), evaluate_expression(example.label))


@pytest.fixture(scope="module")
def corpora(data_root):
    return {name: read_dss(data_root, name) for name in ("svamp", "cqa", "esnli")}


@pytest.mark.parametrize(
    ("name", "split", "count", "accuracy", "unreadable", "without_rationale"),
    [
        ("svamp", "train", 800, 0.7350, 13, 0),
        ("svamp", "test", 200, 0.7400, 2, 0),
        ("cqa", "train", 9741, 0.7426, 3, 0),
        ("cqa", "test", 1221, 0.7723, 0, 0),
        ("esnli", "train", 10_000, 0.6986, 170, 1),
        ("esnli", "valid", 9842, 0.7317, 4, 0),
        ("esnli", "test", 9824, 0.7299, 0, 0),
    ],
)
def test_real_split(corpora, name, split, count, accuracy, unreadable, without_rationale):
    examples = corpora[name].splits[split]
    assert len(examples) == count
    right = [has_gold_value(e) if name == "svamp" else e.teacher_label == e.label for e in examples]
    assert f"{np.mean(right):.4f}" == f"{accuracy:.4f}"
    assert sum(e.teacher_label is None for e in examples) == unreadable
    assert sum(not e.rationale for e in examples) == without_rationale
    assert all(e.input.strip() and e.label.strip() and e.rationale == e.rationale.strip() for e in examples)
    marker = {"svamp": "The answer is", "cqa": "So the answer is", "esnli": "Answer:"}[name]
    assert not any(marker in e.rationale for e in examples)
    assert [e.id for e in examples] == [f"{name}/{split}/{i}" for i in range(count)]


def test_two_teacher_labels_of_svamp_are_correct_only_in_python(corpora):
    """Arithmetic has no "and", so by evaluate_expression the teacher is correct on .7325 of train."""
    train = corpora["svamp"].splits["train"]
    with_and = [e for e in train if e.teacher_label and " and " in e.teacher_label]
    assert sum(has_gold_value(e) for e in with_and) == 2


def test_real_corpora_have_no_other_splits_and_the_known_labels(corpora):
    assert {name: list(corpus.splits) for name, corpus in corpora.items()} == {
        "svamp": ["train", "test"],
        "cqa": ["train", "test"],
        "esnli": ["train", "valid", "test"],
    }
    labels = collections.Counter(example.label for example in corpora["esnli"].splits["train"])
    assert labels == {"entailment": 3340, "neutral": 3326, "contradiction": 3334}
    assert {label for s in corpora["esnli"].splits.values() for label in {e.label for e in s}} == set(labels)
    for split in corpora["cqa"].splits.values():
        assert all(f") {e.label}\n" in e.input + "\n" for e in split)
    for split in corpora["svamp"].splits.values():
        assert None not in [evaluate_expression(e.label) for e in split]


def test_real_svamp_splits_are_the_permutation_of_the_raw_file(corpora, data_root):
    raw = json.loads((data_root / "dss" / "svamp" / "SVAMP.json").read_text())
    order = np.random.RandomState(0).permutation(len(raw))
    for split, rows in (("train", order[:800]), ("test", order[800:])):
        expected = [(f"{raw[i]['Body']}\n{raw[i]['Question']}", raw[i]["Equation"]) for i in rows]
        assert [(e.input, e.label) for e in corpora["svamp"].splits[split]] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "field", "known"),
    [
        ("cqa", "input", "48.5/62/105"),
        ("cqa", "label", "2.9/5/10"),
        ("cqa", "rationale", "30.9/41/71"),
        ("svamp", "input", "43.0/64/80"),
        ("svamp", "label", "11.4/17/19"),
        ("svamp", "rationale", "40.1/72/136"),
        ("esnli", "input", "30.4/47/106"),
    ],
)
def test_real_token_counts(corpora, data_root, name, field, known):
    """The known counts are of train before a valid split is made, with the task prefix, and </s> as one token."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data_root / "t5" / "spiece.model"))
    prefix = "predict: " if field == "input" else ""
    sentences = [(prefix + getattr(e, field)).split(EOS_TEXT) for e in corpora[name].splits["train"]]
    lengths = [sum(len(ids) + 1 for ids in tokenizer.encode(texts)) for texts in sentences]
    assert f"{np.mean(lengths):.1f}/{np.percentile(lengths, 95):.0f}/{max(lengths)}" == known
