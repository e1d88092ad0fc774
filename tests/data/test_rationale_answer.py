"""The answer that a rationale states: its text, the span of its tokens, and the way of the span into batches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from answers import answer_split
from splits import sequence

from cotmi_jax.config import base
from cotmi_jax.data.cache import Recipe, prepare
from cotmi_jax.data.codecs import tokenizer_json
from cotmi_jax.data.example import Example
from cotmi_jax.data.order import Picks
from cotmi_jax.data.packing import PackShape, pack
from cotmi_jax.data.rationale_answer import CUT, NO_SPAN, OTHER_ANSWER, count_spans, find_spans, state_answer
from cotmi_jax.data.run_checks import answer_error
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.sources.released_sets import RELEASED, answer_sentence
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import TokenizedSplit, gather
from cotmi_jax.data.vocabulary import Vocabulary

ARITHMETIC = Vocabulary(VOCABULARY_PATH)
EXAMPLES = make_arithmetic(seed=3, num_train=40, num_valid=0, num_test=0).splits["train"]
PENS = Example("a/train/0", "Two pens?", "( 1 + 1 )", "One and one.", "(1 + 1)", kind="equation")


def stated(example: Example, how: str, label: str | None = None) -> tuple[str, str]:
    found = state_answer(example, how, example.label if label is None else label)  # type: ignore[arg-type]
    return found.text, found.answer


def split_of(vocabulary: Vocabulary, examples: tuple[Example, ...] = EXAMPLES, **limits: object) -> TokenizedSplit:
    allowed = TokenLimits(**({"max_input_tokens": 512, "max_target_tokens": 512} | limits))  # type: ignore[arg-type]
    return tokenize_split(
        examples, vocabulary, objective="dss", label_type="gt", limits=allowed, rationale_answer="append"
    )


def test_a_split_in_which_no_rationale_states_its_label_is_refused() -> None:
    config = base()
    config.objective.name, config.mi.estimator = "cotmi", "consistency"
    assert answer_error(config, split_of(ARITHMETIC)) == ""
    silent = split_of(ARITHMETIC, tuple(dataclasses.replace(each, teacher_label=None) for each in EXAMPLES))
    assert "0 of 40 rationales" in answer_error(config, silent) and "rationale_answer to append" in (
        answer_error(config, silent)
    )
    config.objective.name = "dss"
    assert answer_error(config, silent) == ""


# The text.


def test_an_answer_is_cut_kept_or_appended() -> None:
    """Appended in the form of the label if both have the same value; kept as the teacher wrote it."""
    taught = dataclasses.replace(PENS, answer_text="The answer is (1 + 1)")
    assert stated(taught, "cut") == ("One and one.", "")
    assert stated(taught, "keep") == ("One and one. The answer is (1 + 1)", "(1 + 1)")
    assert stated(PENS, "keep") == ("One and one.", "")
    assert stated(PENS, "append") == ("One and one. So the answer is ( 1 + 1 )", "( 1 + 1 )")
    assert stated(PENS, "append", "( 1 + 2 )") == ("One and one. So the answer is (1 + 1)", "(1 + 1)")
    for absent in (dataclasses.replace(PENS, teacher_label=None), dataclasses.replace(PENS, rationale="")):
        assert stated(absent, "append") == (absent.rationale, "")


@pytest.mark.parametrize("how", ["keep", "append"])
@pytest.mark.parametrize(
    ("rationale", "text", "answer"),
    [
        ("Ice melts. So the answer is yes.", "Ice melts. So the answer is yes", "yes"),
        ("Ice melts. So the answer is: 2.5", "Ice melts. So the answer is: 2.5", "2.5"),
        ("So the answer is no. Not: So the answer is y.\n", "So the answer is no. Not: So the answer is y", "y"),
    ],
)
def test_a_rationale_can_state_its_answer_itself(how: str, rationale: str, text: str, answer: str) -> None:
    assert stated(dataclasses.replace(PENS, rationale=rationale, teacher_label=None), how) == (text, answer)
    assert stated(dataclasses.replace(PENS, rationale=rationale), "cut") == (rationale, "")


@pytest.mark.parametrize(
    ("name", "completion", "expected"),
    [
        ("cqa", "It is a. So the answer is (a) a.\n\nQ: next (b) c", "So the answer is (a) a"),
        ("cqa", "Math. So the answer is (d) math problem.", "So the answer is (d) math problem"),
        ("cqa", "Words. So the answer is (b) answer.", "So the answer is (b) answer"),
        ("svamp", "6 * 7 = 42. The answer is (6 * 7) * 2.\nQ: 8", ""),  # not the label alone
        ("svamp", "84 / 2 = 42. The answer is (84 / 2).", "The answer is (84 / 2)"),
        ("svamp", "The answer is 8 (8 * 1).", "The answer is 8 (8 * 1)"),
        ("esnli", "A dog.\nAnswer: neutral\n\nPremise: Answer: entailment", "Answer: neutral"),
        ("anli1", "A dog. So the answer is neutral.\n\nPremise: B", "So the answer is neutral"),
        ("anli1", "A dog. No mark.", ""),
    ],
)
def test_the_sentence_of_a_completion_ends_with_its_label(name: str, completion: str, expected: str) -> None:
    rationale, label = RELEASED[name].parse(completion)
    found = answer_sentence(completion, rationale, label)
    assert found == expected or (expected == "" and label is not None and found.endswith(label))


# The span.


def check_spans(split: TokenizedSplit, examples: tuple[Example, ...], vocabulary: Vocabulary) -> None:
    """A span holds the tokens of the label without its eos; decoded, what precedes it ends with the mark."""
    assert split.answer_starts is not None and (split.answer_starts >= 0).any()
    for row, start in enumerate(split.answer_starts):
        target, label = (sequence(split.tasks[task].targets, row) for task in (EXPLAIN, PREDICT))
        if start >= 0:
            assert target[start:] == label
            assert vocabulary.decode(target[:start]).rstrip().endswith("So the answer is")
            assert examples[row].label == examples[row].teacher_label
        else:
            assert start == OTHER_ANSWER and examples[row].label != examples[row].teacher_label


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json", "bytes"])
def test_a_span_holds_the_tokens_of_the_label(kind: str, tmp_path: Path) -> None:
    vocabulary = ARITHMETIC
    if kind == "tokenizer.json":
        (tmp_path / kind).write_bytes(tokenizer_json(VOCABULARY_PATH, VOCABULARY_PATH.read_bytes()))
        vocabulary = Vocabulary(tmp_path / kind)
    elif kind == "bytes":
        vocabulary = Vocabulary(Path("bytes"))
    split = split_of(vocabulary)
    check_spans(split, EXAMPLES, vocabulary)
    whole = vocabulary.encode([f"{e.rationale} So the answer is {e.teacher_label}" for e in EXAMPLES])
    assert [sequence(split.tasks[EXPLAIN].targets, row)[:-1] for row in range(len(EXAMPLES))] == whole


def test_an_answer_whose_tokens_are_not_in_the_target_has_no_span() -> None:
    """Such as the piece ")." of T5's vocabulary, with a full stop after the answer; other reasons have other codes."""
    answer = state_answer(PENS, "append", PENS.label)
    target = ARITHMETIC.encode([answer.text])[0]
    label = ARITHMETIC.encode([PENS.label])[0]

    def found(text: str, ids: list[int], label: list[int], limit: int = 99) -> int:
        return int(find_spans(ARITHMETIC, [answer], [text], [ids], [label], limit)[0])

    start = len(target) - len(label)
    assert found(answer.text, target, label) == start
    assert found(answer.text, target, label, len(target) + 1) == start
    assert found(answer.text, target, label, len(target)) == CUT
    assert found(answer.text, target, label[:-1]) == OTHER_ANSWER
    assert found(answer.text, [*target[:-1], 9], label) == NO_SPAN
    assert found("Another text.", target, label) == NO_SPAN
    longer = ARITHMETIC.encode([f"Now: {answer.text}"])[0]  # of an objective that adds words
    assert found(f"Now: {answer.text}", longer, label) == len(longer) - len(label)


def test_spans_end_where_sequences_are_cut_and_leave_with_examples_that_are_left_out() -> None:
    whole = split_of(ARITHMETIC)
    assert whole.answer_starts is not None
    lengths = whole.tasks[EXPLAIN].targets.lengths
    limit = int(np.median(lengths))
    cut = split_of(ARITHMETIC, max_target_tokens=limit).answer_starts
    expected = np.where((whole.answer_starts >= 0) & (lengths > limit), CUT, whole.answer_starts)
    np.testing.assert_array_equal(cut, expected)
    assert cut is not None and count_spans(cut).cut > 0
    skipped = split_of(ARITHMETIC, max_target_tokens=limit, too_long="skip")
    np.testing.assert_array_equal(skipped.answer_starts, whole.answer_starts[skipped.kept])


def test_only_the_first_of_several_rationales_keeps_the_sentence_of_the_teacher() -> None:
    taught = dataclasses.replace(
        PENS, label="yes", teacher_label="yes", answer_text="So the answer is yes", more=(("Two.", 0.5),), kind="text"
    )
    limits = TokenLimits(99, 99)
    for how, found in (("keep", [True, False]), ("append", [True, True])):
        split = tokenize_split(
            [taught],
            ARITHMETIC,
            objective="dss",
            label_type="gt",
            limits=limits,
            rationale_answer=how,  # type: ignore[arg-type]
        )
        assert split.answer_starts is not None and (split.answer_starts >= 0).tolist() == found


# Joined, cached, in batches.


def test_spans_are_part_of_what_is_joined_cached_and_identified(tmp_path: Path) -> None:
    pieces = [split_of(ARITHMETIC, EXAMPLES[:13]), split_of(ARITHMETIC, EXAMPLES[13:])]
    whole = split_of(ARITHMETIC)
    joined = TokenizedSplit.join(pieces)
    np.testing.assert_array_equal(joined.answer_starts, whole.answer_starts)
    assert joined.fingerprint() == whole.fingerprint()
    without = dataclasses.replace(whole, answer_starts=None)
    moved = dataclasses.replace(whole, answer_starts=whole.answer_starts - 1)  # type: ignore[operator]
    assert len({each.fingerprint() for each in (whole, without, moved)}) == 3

    recipe = Recipe(
        lambda: (EXAMPLES, EXAMPLES[:9], {}),
        lambda examples, _: split_of(ARITHMETIC, tuple(examples)),
        lambda split, name, facts: None,
    )
    made, _ = prepare(tmp_path, {"a": 1}, recipe)
    read, found = prepare(tmp_path, {"a": 1}, recipe)
    assert found
    for prepared in (made, read):
        np.testing.assert_array_equal(prepared.train.answer_starts, whole.answer_starts)
        np.testing.assert_array_equal(prepared.valid.answer_starts, whole.answer_starts[:9])  # type: ignore[index]


def test_tokens_without_answers_keep_their_fingerprint() -> None:
    """That of the version before rationales stated answers: its runs can be resumed."""
    limits = TokenLimits(99, 99)
    cut = tokenize_split([PENS], Vocabulary(Path("bytes")), objective="dss", label_type="gt", limits=limits)
    assert cut.answer_starts is None and cut.fingerprint() == "d3d1c4b4"
    assert "answer_length" not in gather(cut, np.arange(1))


@pytest.mark.parametrize("rationales", [1, 3])
def test_batches_hold_the_positions_of_answers(rationales: int) -> None:
    """Padded or packed, the tokens at the positions of both tasks are those of the label, without its eos."""
    split = answer_split(9, rationales=rationales)
    picks = Picks(np.arange(9), np.arange(9))
    assert split.answer_starts is not None
    takes_part_B = split.answer_starts[split.rationale_rows(*picks)] >= 0
    labels = [sequence(split.tasks[PREDICT].targets, row)[:-1] for row in range(9)]
    padded, packed = gather(split, *picks), pack(split, picks, PackShape(6, 64, 64, 6))
    for batch, examples in ((padded, padded), (packed, packed["examples"])):
        expected = np.where(takes_part_B, [len(label) for label in labels], 0)
        np.testing.assert_array_equal(examples["answer_length"], expected)
        for row in range(9):
            for task in (PREDICT, EXPLAIN):
                if batch is padded:
                    target, position_L = batch[task]["targets"][row], batch[task]["answers"][row]
                else:
                    slot = divmod(int(examples["slots"][task][row]), 6)
                    target, position_L = batch["rows"]["targets"][slot[0]], batch["rows"]["answers"][slot]
                inside = position_L >= 0
                assert inside.sum() == expected[row] and inside[: expected[row]].all()
                assert target[position_L[inside]].tolist() == (labels[row] if takes_part_B[row] else [])
    taken = np.zeros(packed["rows"]["answers"].shape[:2], bool).reshape(-1)
    for slots in packed["examples"]["slots"].values():
        taken[slots] = True
    assert (packed["rows"]["answers"].reshape(len(taken), -1)[~taken] == -1).all()


def test_a_row_of_padding_has_no_answer() -> None:
    batch = gather(answer_split(9), np.array([3, -1]))
    assert batch["answer_length"][1] == 0 and (batch[EXPLAIN]["answers"][1] == -1).all()


# Data sets of the papers.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "how", "label_type", "found", "of"),
    [
        ("cqa", "test", "keep", "gt", 943, 1221),
        ("svamp", "train", "keep", "llm", 787, 800),
        ("svamp", "train", "append", "gt", 586, 800),
    ],
)
def test_spans_of_the_released_sets(
    name: str, split: str, how: str, label_type: str, found: int, of: int, data_root: Path
) -> None:
    """Every readable label has a span; that of the others, unless the teacher's label is trained on, is not gold."""
    examples = ReleasedSource(data_root, name).read({split}).splits[split]
    tokens = tokenize_split(
        examples,
        Vocabulary(data_root / "t5" / "spiece.model"),
        objective="dss",
        label_type=label_type,  # type: ignore[arg-type]
        limits=TokenLimits(1024, 256),
        rationale_answer=how,  # type: ignore[arg-type]
    )
    assert tokens.answer_starts is not None
    counts = count_spans(tokens.answer_starts)
    unreadable = sum(example.teacher_label is None for example in examples)
    assert counts == (found, unreadable, 0, of - found - unreadable)
