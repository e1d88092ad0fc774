"""The arithmetic data: reproducible, disjoint, solvable, with a teacher that errs at exactly the stated rate."""

import hashlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from cotmi_jax.data.example import Corpus, Example
from cotmi_jax.data.labels import equal_values, evaluate_expression
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.sources.arithmetic_templates import TEMPLATES
from cotmi_jax.data.sources.generated import GeneratedSource
from cotmi_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_arithmetic(0, 2000)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY_PATH))


@pytest.fixture(scope="module")
def small_numbers() -> Corpus:
    return make_arithmetic(0, 1000, 0, 0, version=2)


def _all_examples(corpus: Corpus) -> list[Example]:
    return [example for split in corpus.splits.values() for example in split]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def test_shape_of_the_corpus(corpus: Corpus) -> None:
    assert (corpus.name, corpus.label_kind) == ("arithmetic", "equation")
    assert {split: len(examples) for split, examples in corpus.splits.items()} == {
        "train": 2000,
        "valid": 500,
        "test": 500,
    }
    for split, examples in corpus.splits.items():
        assert [example.id for example in examples] == [f"arithmetic/{split}/{row}" for row in range(len(examples))]


def test_same_arguments_give_the_same_text_on_every_machine(corpus: Corpus) -> None:
    rows = [[e.id, e.input, e.label, e.rationale, e.teacher_label] for e in _all_examples(corpus)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "7201ae658b6d8d809906226254b5ebf38119511eca503e633dd5d5b5849c2a67", (
        "the text changed: train the vocabulary again and expect other results of every recipe"
    )
    assert make_arithmetic(1, 10).splits["train"] != make_arithmetic(0, 10).splits["train"]


def test_inputs_are_unique_and_the_size_of_train_changes_only_its_end() -> None:
    corpus = make_arithmetic(3, 5000)  # without the check, this seed repeats inputs in train and test
    inputs = [example.input for example in _all_examples(corpus)]
    assert len(set(inputs)) == len(inputs) == 6000
    smaller = make_arithmetic(3, 100).splits
    assert smaller["valid"] == corpus.splits["valid"]
    assert smaller["test"] == corpus.splits["test"]
    assert [e.input for e in smaller["train"]] == [e.input for e in corpus.splits["train"][:100]]


def test_labels_are_made_of_the_numbers_of_the_story(corpus: Corpus) -> None:
    for example in _all_examples(corpus):
        for label in (example.label, example.teacher_label):
            assert label is not None
            assert re.fullmatch(r"\(( \(| \)| [-+*/]| \d+)+ \)", label)
            assert set(_numbers(label)) <= set(_numbers(example.input))
        numbers = _numbers(example.input)
        assert len(set(numbers)) == len(numbers)
        assert all(2 <= number <= 99 for number in numbers)


def test_rationale_is_the_calculation_of_the_teacher_label(corpus: Corpus) -> None:
    for example in _all_examples(corpus):
        steps = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", example.rationale)
        for expression, result in steps:
            assert equal_values(evaluate_expression(expression), float(result)), example
            assert 2 <= int(result) <= 99
        assert example.teacher_label is not None
        assert equal_values(evaluate_expression(example.teacher_label), float(steps[-1][1])), example
        assert len(steps) == len(re.findall(r"[-+*/]", example.label))
        assert "(" not in example.rationale  # The rationale does not contain the label.


def test_problems_have_one_to_three_operations_and_some_have_a_distractor(corpus: Corpus) -> None:
    train = corpus.splits["train"]
    operations = np.array([len(re.findall(r"[-+*/]", example.label)) for example in train])
    assert set(operations.tolist()) == {1, 2, 3}
    assert np.mean(operations == 1) < 0.2 < np.mean(operations == 3)
    distracted = np.mean([len(_numbers(example.input)) > len(set(_numbers(example.label))) for example in train])
    assert distracted == pytest.approx(0.35, abs=0.05)


@pytest.mark.parametrize(("rate", "size", "errors"), [(0.2, 500, 100), (0.25, 10, 2), (0.0, 50, 0), (1.0, 800, 800)])
def test_the_teacher_errs_at_exactly_the_stated_rate(rate: float, size: int, errors: int) -> None:
    corpus = make_arithmetic(5, size, num_valid=size, num_test=size, teacher_error_rate=rate)
    correct = make_arithmetic(5, size, num_valid=size, num_test=size, teacher_error_rate=0.0)
    for split, examples in corpus.splits.items():
        wrong = [
            not equal_values(evaluate_expression(e.label), evaluate_expression(e.teacher_label or "")) for e in examples
        ]
        assert sum(wrong) == errors
        for is_wrong, example, reference in zip(wrong, examples, correct.splits[split], strict=True):
            assert (example.input, example.label) == (reference.input, reference.label)
            assert (example.rationale != reference.rationale) == is_wrong
            assert (example.teacher_label != reference.teacher_label) == is_wrong


def test_texts_are_complete_sentences(corpus: Corpus) -> None:
    for example in _all_examples(corpus):
        assert re.fullmatch(r"([A-Z][A-Za-z0-9 ]*\. )+[A-Z][A-Za-z0-9 ]*\?", example.input), example.input
        assert re.fullmatch(r"([A-Z][^.]*\.)( [A-Z][^.]*\.)*", example.rationale), example.rationale
        assert not re.search(r"[{}|[\]]|  ", example.input + example.rationale)


def test_a_few_hundred_problems_cover_every_kind_of_solution() -> None:
    skeletons = {re.sub(r"\d+", "n", example.label) for example in make_arithmetic(0, 500, 0, 0).splits["train"]}
    expected = set()
    for template in TEMPLATES:
        written: list[str] = []
        for step in template.steps:
            left, right = (written[int(key[1:])] if key[0] == "#" else "n" for key in (step.left, step.right))
            written.append(f"( {left} {step.operation} {right} )")
        expected.add(written[-1])
    assert skeletons == expected


def test_version_2_has_the_same_problems_with_small_numbers(corpus: Corpus, small_numbers: Corpus) -> None:
    examples = _all_examples(small_numbers)
    steps = [step for e in examples for step in re.findall(r"(\d+) [-+*/] (\d+) = (\d+)", e.rationale)]
    assert max(number for e in examples for number in _numbers(e.input)) == 16
    assert max(int(result) for *_, result in steps) == 24 and min(int(result) for *_, result in steps) == 2

    def facts(of: Corpus) -> list[float]:
        train = of.splits["train"][:1000]
        operations = [len(re.findall(r"[-+*/]", e.label)) for e in train]
        distracted = [len(_numbers(e.input)) > len(set(_numbers(e.label))) for e in train]
        wrong = [
            not equal_values(*(evaluate_expression(text or "") for text in (e.label, e.teacher_label))) for e in train
        ]
        return [*(np.mean(np.array(operations) == count) for count in (1, 2, 3)), np.mean(distracted), np.mean(wrong)]

    assert facts(small_numbers) == pytest.approx(facts(corpus), abs=0.05)
    assert len({e.input for e in examples}) == 1000


def test_a_version_changes_the_fingerprint_of_the_data() -> None:
    one, two = GeneratedSource("arithmetic", 5), GeneratedSource("arithmetic", 5, version=2)
    assert one.fingerprint() != two.fingerprint()
    assert (
        one.fingerprint()
        == GeneratedSource("arithmetic", 5, version=1).fingerprint()
        == "2048fd25ff2acd3b2ab18be5a8ec4fcdc950f6a1a45c264cfd24f1cd259a00eb"
    )
    with pytest.raises(UserError, match="version = 3: arithmetic has the versions 1, 2"):
        GeneratedSource("arithmetic", 5, version=3).read()


@pytest.mark.parametrize(
    ("seed", "num_train", "num_test", "rate", "message"),
    [
        (-1, 5, 5, 0.2, "seed = -1"),
        (0, -5, 5, 0.2, "num_train = -5"),
        (0, 5, -1, 0.2, "num_test = -1"),
        (0, 5, 5, 1.5, "teacher_error_rate = 1.5"),
        (0, 5, 5, float("nan"), "teacher_error_rate = nan"),
    ],
)
def test_impossible_arguments_are_refused(seed: int, num_train: int, num_test: int, rate: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_arithmetic(seed, num_train, num_test=num_test, teacher_error_rate=rate)


def test_the_committed_vocabulary_is_what_the_script_writes(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "cotmi_jax.data.sources.train_vocabulary"]
    subprocess.run([*command, f"--output={tmp_path / 'x.model'}"], check=True, cwd=VOCABULARY_PATH.parents[2])
    assert (tmp_path / "x.model").read_bytes() == VOCABULARY_PATH.read_bytes(), (
        f"train it again; it was made with sentencepiece 0.2.3, here is {sentencepiece.__version__}"
    )
    failed = subprocess.run(
        [*command, f"--output={tmp_path / 'none' / 'x.model'}"],
        capture_output=True,
        text=True,
        cwd=VOCABULARY_PATH.parents[2],
    )
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr and "no folder" in failed.stdout + failed.stderr


def test_vocabulary_ids_follow_t5(processor: sentencepiece.SentencePieceProcessor) -> None:
    assert [processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id()] == [0, 1, 2, -1]


@pytest.mark.parametrize("seed", [0, 11])
def test_vocabulary_covers_every_text(seed: int, processor: sentencepiece.SentencePieceProcessor) -> None:
    for example in _all_examples(make_arithmetic(seed, 2000)):
        for text in (f"predict: {example.input}", f"explain: {example.input}", example.label, example.rationale):
            ids = processor.encode(text)
            assert processor.unk_id() not in ids
            assert processor.decode(ids) == text


def test_numbers_and_signs_are_single_pieces(processor: sentencepiece.SentencePieceProcessor) -> None:
    pieces = [*(str(number) for number in range(100)), *"()+-*/="]
    text = " ".join(pieces)
    assert processor.encode(text, out_type=str) == ["\u2581" + piece for piece in pieces]
    assert processor.encode("takes 17.", out_type=str)[1:] == ["\u258117", "."]


def test_texts_are_short(corpus: Corpus, processor: sentencepiece.SentencePieceProcessor) -> None:
    def longest(field: str) -> int:
        return max(len(processor.encode(getattr(example, field))) for example in _all_examples(corpus))

    assert longest("input") <= 50
    assert longest("label") <= 13
    assert longest("rationale") <= 45
