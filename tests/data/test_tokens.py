"""Vocabularies, task texts, tokenized splits and padded batches."""

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from cotmi_jax.data import tokenize as tokenizing
from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.tasks import EXPLAIN, PREDICT, PREFIX, read_label, read_rationale, task_texts
from cotmi_jax.data.tokenize import TokenLimits, check_split, tokenize_split
from cotmi_jax.data.tokens import MULTIPLE, Ragged, TokenizedSplit, gather
from cotmi_jax.data.vocabulary import EOS_ID, PAD_ID, Vocabulary, check_fits
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ProcessRows

EXAMPLES = make_arithmetic(seed=3, num_train=24, num_valid=0, num_test=0).splits["train"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(VOCABULARY_PATH)


def tokenized(
    vocabulary: Vocabulary,
    examples: tuple[Example, ...] = EXAMPLES,
    *,
    objective: Any = "dss",
    label_type: Any = "gt",
    **limits: Any,
) -> TokenizedSplit:
    limits = dict(max_input_tokens=1024, max_target_tokens=256) | limits
    return tokenize_split(
        examples, vocabulary, objective=objective, label_type=label_type, limits=TokenLimits(**limits)
    )


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [ragged.flat[a:b].tolist() for a, b in zip(ragged.offsets, ragged.offsets[1:], strict=False)]


# Padding.


def test_rows_are_padded_in_the_given_order() -> None:
    ragged = Ragged.of([[5, 6, 7], [], [8]])
    assert ragged.longest == 3
    padded = ragged.padded(np.array([2, 0, 1, 0, -1]), 4)
    np.testing.assert_array_equal(
        padded, [[8, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]], strict=False
    )
    assert padded.dtype == np.int32


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_empty_sequences_are_padded(sequences: list[list[int]]) -> None:
    ragged = Ragged.of(sequences)
    assert ragged.longest == 0
    np.testing.assert_array_equal(ragged.padded(np.full(2, -1), 3), np.zeros((2, 3)))


def test_a_batch_holds_its_rows_and_marks_padding(vocabulary: Vocabulary) -> None:
    split = tokenized(vocabulary)
    batch = gather(split, np.array([7, -1, 2]))
    assert batch["valid"].tolist() == [True, False, True] and batch["valid"].dtype == bool
    assert batch.keys() == {PREDICT, EXPLAIN, "valid", "weight"}
    for task in (PREDICT, EXPLAIN):
        for name, ragged in (("inputs", split.tasks[task].inputs), ("targets", split.tasks[task].targets)):
            padded = batch[task][name]
            for got, row in zip(padded, (7, -1, 2), strict=True):
                expected = rows_of(ragged)[row] if row >= 0 else []
                assert got.tolist() == expected + [PAD_ID] * (padded.shape[1] - len(expected))


def test_a_batch_of_short_rows_can_be_shorter_than_the_split(vocabulary: Vocabulary) -> None:
    split = tokenized(vocabulary)
    rows = np.argsort(split.eval_lengths(np.arange(split.size)).sum(axis=1))[:4]
    lengths = split.eval_lengths(rows).max(axis=0)
    batch, longer = gather(split, rows, lengths=lengths), gather(split, rows)
    assert lengths.tolist() == [batch[PREDICT]["inputs"].shape[1], *(batch[t]["targets"].shape[1] for t in split.tasks)]
    for task in split.tasks:
        for name, short in batch[task].items():
            assert short.any(axis=0).all() or name == "inputs"  # the longest row has no padding
            whole = longer[task][name]
            assert whole.shape[1] > short.shape[1]
            np.testing.assert_array_equal(np.pad(short, ((0, 0), (0, whole.shape[1] - short.shape[1]))), whole)


def test_hosts_divide_a_batch_without_overlap_and_an_uneven_one_is_refused() -> None:
    groups = [ProcessRows(0, 3, (0, 4)), ProcessRows(1, 3, (1, 2)), ProcessRows(2, 3, (3, 5))]
    assert [process_rows.indices(12).tolist() for process_rows in groups] == [
        [0, 1, 8, 9],
        [2, 3, 4, 5],
        [6, 7, 10, 11],
    ]
    assert [process_rows.size(12) for process_rows in groups] == [4, 4, 4]
    with pytest.raises(UserError, match="batch of 9 does not divide into 6 shards on 3 hosts"):
        groups[0].indices(9)


# Tokenizing.


def test_both_tasks_have_one_input_length_and_all_lengths_are_rounded_up(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PREFIX, EXPLAIN, "explain how many pens Tom has now: ")
    split = tokenized(vocabulary)
    tasks = split.tasks
    assert tasks[EXPLAIN].inputs.longest >= tasks[PREDICT].inputs.longest + MULTIPLE
    longest = max(tokens.inputs.longest for tokens in tasks.values())
    assert longest <= split.input_length < longest + MULTIPLE and split.input_length % MULTIPLE == 0
    for task, tokens in tasks.items():
        length = split.target_lengths[task]
        assert length % MULTIPLE == 0 and tokens.targets.longest <= length < tokens.targets.longest + MULTIPLE
        assert (tokens.truncated_inputs, tokens.truncated_targets) == (0, 0)


def test_long_sequences_are_cut_before_their_eos_and_counted(vocabulary: Vocabulary) -> None:
    uncut = tokenized(vocabulary).tasks
    lengths = sorted(len(row) for row in rows_of(uncut[EXPLAIN].targets))
    target_limit, input_limit = lengths[len(lengths) // 2], len(rows_of(uncut[EXPLAIN].inputs)[0])
    cut = tokenized(vocabulary, max_input_tokens=input_limit, max_target_tokens=target_limit).tasks
    for task in (PREDICT, EXPLAIN):
        for limit, before, after, count in (
            (input_limit, uncut[task].inputs, cut[task].inputs, cut[task].truncated_inputs),
            (target_limit, uncut[task].targets, cut[task].targets, cut[task].truncated_targets),
        ):
            expected = [row if len(row) <= limit else [*row[: limit - 1], EOS_ID] for row in rows_of(before)]
            assert rows_of(after) == expected
            assert count == sum(len(row) > limit for row in rows_of(before))
    assert cut[EXPLAIN].truncated_targets > 0 and cut[PREDICT].truncated_targets == 0


def test_a_limit_of_one_token_keeps_the_eos(vocabulary: Vocabulary) -> None:
    tokens = tokenized(vocabulary, max_target_tokens=1).tasks[PREDICT]
    assert rows_of(tokens.targets) == [[EOS_ID]] * len(EXAMPLES) and tokens.truncated_targets == len(EXAMPLES)


def lengths(ragged: Ragged) -> list[int]:
    return ragged.lengths.tolist()


def test_examples_with_long_sequences_can_be_skipped_and_counted(vocabulary: Vocabulary) -> None:
    uncut = tokenized(vocabulary)
    explained = lengths(uncut.tasks[EXPLAIN].targets)
    limit = sorted(explained)[len(explained) // 2]
    split = tokenized(vocabulary, max_target_tokens=limit, too_long="skip")
    fits = [length <= limit for length in explained]
    assert split.kept.tolist() == fits and split.size == sum(fits) < len(EXAMPLES)
    kept = tuple(example for example, short in zip(EXAMPLES, fits, strict=True) if short)
    for task, tokens in tokenized(vocabulary, kept).tasks.items():
        for kind in ("inputs", "targets"):
            assert rows_of(getattr(split.tasks[task], kind)) == rows_of(getattr(tokens, kind))
        assert (split.tasks[task].truncated_inputs, split.tasks[task].truncated_targets) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_target_tokens": 30},
            r"mine.jsonl:8: the rationale has \d+ tokens, more than config.data.max_target_tok",
        ),
        (
            {"max_target_tokens": 4},
            r"a/train/0: the label has \d+ tokens, more than config.data.max_target_tokens 4: r",
        ),
        (
            {"max_input_tokens": 9},
            r"a/train/0: the input has \d+ tokens, more than config.data.max_input_tokens 9: rai",
        ),
    ],
)
def test_a_long_sequence_can_be_an_error_that_names_its_place(
    vocabulary: Vocabulary, limits: dict[str, int], message: str
) -> None:
    short = Example("a/train/0", "Tom has 3 pens and buys 4.", "( 3 + 4 )", "3 + 4 = 7.")
    long = dataclasses.replace(short, id="a/train/1", more=(("It is " + "7 and " * 30, 1.0),), place="mine.jsonl:8")
    tokenized(vocabulary, (short, long), too_long="error")
    with pytest.raises(UserError, match=message):
        tokenized(vocabulary, (short, long), too_long="error", **limits)


def test_an_empty_split_is_refused(vocabulary: Vocabulary) -> None:
    limits = TokenLimits(4, 256, "skip")
    nothing = tokenized(vocabulary, max_input_tokens=4, too_long="skip")
    with pytest.raises(UserError, match="train: all 24 examples are longer than config.data.max_input_tokens 4 or"):
        check_split("train", nothing.kept, limits)
    with pytest.raises(UserError, match="valid has no examples"):
        check_split("valid", tokenized(vocabulary, ()).kept, limits)
    check_split("train", tokenized(vocabulary).kept, limits)


def test_each_pass_uses_the_next_rationale_as_target(vocabulary: Vocabulary) -> None:
    one, other = EXAMPLES[:2]
    several = dataclasses.replace(one, weight=0.5, more=(("Because.", 2.0), ("Thus.", 0.0)))
    for objective, task in (("dss", EXPLAIN), ("single_task", PREDICT)):
        split = tokenized(vocabulary, (several, other), objective=objective)
        alone = [dataclasses.replace(one, rationale=text) for text in (one.rationale, "Because.", "Thus.")]
        expected = tokenized(vocabulary, (*alone, other), objective=objective)
        assert rows_of(split.tasks[task].targets) == rows_of(expected.tasks[task].targets)
        assert split.rationale_offsets.tolist() == [0, 3, 4] and split.weights.tolist() == [0.5, 2.0, 0.0, 1.0]
        assert split.rationale_counts.tolist() == [3, 1]
        for number in range(5):
            batch = gather(split, np.array([0, 1, -1]), number)
            current = gather(expected, np.array([number % 3, 3, -1]))
            np.testing.assert_array_equal(batch[task]["targets"], current[task]["targets"])
            assert batch["weight"].tolist() == [[0.5, 2.0, 0.0][number % 3], 1.0, 0.0]
    labels = tokenized(vocabulary, (several, other)).tasks[PREDICT].targets
    assert len(rows_of(labels)) == 2
    standard = tokenized(vocabulary, (several, other), objective="standard")
    assert standard.rationale_counts.tolist() == [1, 1] and standard.weights.tolist() == [1.0, 1.0]


def test_the_split_does_not_depend_on_the_size_of_chunks(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, seen = tokenized(vocabulary), []
    monkeypatch.setattr(tokenizing, "CHUNK", 7)
    limits = TokenLimits(1024, 256)
    split = tokenizing.tokenize_split(
        EXAMPLES, vocabulary, objective="dss", label_type="gt", limits=limits, progress=seen.append
    )
    assert split.fingerprint() == at_once.fingerprint()
    assert seen == [7, 7, 7, 3]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("standard", {PREDICT: ("Two pens.", "( 1 + 1 )")}),
        ("single_task", {PREDICT: ("Two pens.", "One and one. So the answer is ( 1 + 1 )")}),
        ("dss", {PREDICT: ("predict: Two pens.", "( 1 + 1 )"), EXPLAIN: ("explain: Two pens.", "One and one.")}),
        ("cotmi", {PREDICT: ("predict: Two pens.", "( 1 + 1 )"), EXPLAIN: ("explain: Two pens.", "One and one.")}),
    ],
)
def test_each_objective_has_its_inputs_and_targets(objective: str, expected: dict) -> None:
    example = Example("a/train/0", "Two pens.", "( 1 + 1 )", "One and one.", "( 1 * 1 )")
    assert {task: tuple(task_texts([example], objective, task, "gt")[0]) for task in expected} == expected
    teacher = task_texts([example], objective, PREDICT, "llm")[0].target
    assert teacher == expected[PREDICT][1].replace("+", "*")


def test_tokens_are_those_of_the_task_texts(vocabulary: Vocabulary) -> None:
    for objective, tasks in (("dss", (PREDICT, EXPLAIN)), ("single_task", (PREDICT,))):
        split = tokenized(vocabulary, objective=objective)
        assert tuple(split.tasks) == tasks and split.size == len(EXAMPLES)
        for task in tasks:
            texts = task_texts(EXAMPLES, objective, task, "gt")
            for field in ("input", "target"):
                expected = [[*ids, EOS_ID] for ids in vocabulary.encode([getattr(text, field) for text in texts])]
                assert rows_of(getattr(split.tasks[task], f"{field}s")) == expected


def test_an_unreadable_teacher_label_is_an_empty_target(vocabulary: Vocabulary) -> None:
    unreadable = (dataclasses.replace(EXAMPLES[0], teacher_label=None),)
    tasks = tokenized(vocabulary, unreadable, label_type="llm").tasks
    assert rows_of(tasks[PREDICT].targets) == [[EOS_ID]]
    assert rows_of(tasks[EXPLAIN].targets) == rows_of(tokenized(vocabulary, unreadable).tasks[EXPLAIN].targets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"objective": "dds"}, "unknown objective 'dds'"), ({"label_type": "gold"}, "unknown label type 'gold'")],
)
def test_unknown_names_are_refused(vocabulary: Vocabulary, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenized(vocabulary, **changes)


@pytest.mark.parametrize("rationale", ["Three and four.", "So the answer is not 3. It is 4."])
def test_label_and_rationale_are_recovered_from_the_target_of_single_task(rationale: str) -> None:
    example = Example("a/train/0", "How many?", "( 3 + 4 )", rationale)
    target = task_texts([example], "single_task", PREDICT, "gt")[0].target
    assert read_label(target, "single_task") == "( 3 + 4 )"
    assert read_rationale(target, "single_task") == rationale


@pytest.mark.parametrize(
    ("objective", "output", "label", "rationale"),
    [
        ("single_task", "It never gets there", "", ""),
        ("single_task", "Short. So the answer is", "", "Short."),
        ("single_task", "", "", ""),
        ("dss", " ( 3 + 4 ) ", "( 3 + 4 )", None),
        ("standard", "So the answer is no", "So the answer is no", None),
    ],
)
def test_labels_and_rationales_are_read_from_any_output(
    objective: str, output: str, label: str, rationale: str | None
) -> None:
    assert (read_label(output, objective), read_rationale(output, objective)) == (label, rationale)


def test_the_fingerprint_changes_with_any_token_and_only_with_tokens(vocabulary: Vocabulary) -> None:
    split = tokenized(vocabulary)
    seen = {split.fingerprint(), tokenized(vocabulary, objective="cotmi").fingerprint()}
    assert len(seen) == 1
    for task, tokens in split.tasks.items():
        for field in ("inputs", "targets"):
            ragged: Ragged = getattr(tokens, field)
            for index in (0, len(ragged.flat) // 2, len(ragged.flat) - 1):
                flat = ragged.flat.copy()
                flat[index] += 1
                changed = dataclasses.replace(tokens, **{field: Ragged(flat, ragged.offsets)})
                seen.add(dataclasses.replace(split, tasks=split.tasks | {task: changed}).fingerprint())
            offsets = ragged.offsets.copy()
            offsets[1] += 1  # the same tokens, with another boundary
            changed = dataclasses.replace(tokens, **{field: Ragged(ragged.flat, offsets)})
            seen.add(dataclasses.replace(split, tasks=split.tasks | {task: changed}).fingerprint())
    seen.add(tokenized(vocabulary, EXAMPLES[::-1]).fingerprint())
    seen.add(tokenized(vocabulary, EXAMPLES[:-1]).fingerprint())
    assert len(seen) == 1 + 2 * 2 * 4 + 2


# Vocabularies.


def test_eos_text_is_encoded_as_the_eos_token(vocabulary: Vocabulary) -> None:
    premise, hypothesis = vocabulary.encode(["Tom has 3 pens.", "Tom has 4 pens."])
    joined, after, before, alone, twice, empty = vocabulary.encode(
        ["Tom has 3 pens.</s>Tom has 4 pens.", "</s>Tom has 4 pens.", "Tom has 3 pens.</s>", "</s>", "</s></s>", ""]
    )
    assert joined == [*premise, EOS_ID, *hypothesis]
    assert (after, before) == ([EOS_ID, *hypothesis], [*premise, EOS_ID])
    assert (alone, twice, empty) == ([EOS_ID], [EOS_ID, EOS_ID], [])


def test_decoding_stops_at_eos_and_ignores_padding_and_unknown_ids(vocabulary: Vocabulary) -> None:
    (ids,) = vocabulary.encode(["Tom has 3 pens."])
    assert vocabulary.decode(ids) == "Tom has 3 pens."
    noisy = np.array([PAD_ID, *ids[:2], vocabulary.size, *ids[2:], PAD_ID, EOS_ID, *ids], np.int32)
    assert vocabulary.decode(noisy) == "Tom has 3 pens."
    assert vocabulary.decode([]) == vocabulary.decode([EOS_ID, *ids]) == ""


def test_a_vocabulary_of_another_convention_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["tom has pens"]), model_writer=model, model_type="char", vocab_size=12, minloglevel=2
    )
    path = tmp_path / "other.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"other\.model: a T5 vocabulary has pad 0 and eos 1, this one has pad -1"):
        Vocabulary(path)


@pytest.mark.parametrize("content", [None, b"", b"not a model\n" * 9])
def test_a_file_that_is_not_a_vocabulary_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "spiece.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"no vocabulary at .*/spiece\.model" if content is None else "is not a Sent"):
        Vocabulary(path)


def test_a_model_that_does_not_match_its_vocabulary_is_refused(vocabulary: Vocabulary) -> None:
    check_fits(vocabulary, vocab_size=vocabulary.size, pad_id=0, eos_id=1)
    with pytest.raises(UserError, match=f"has {vocabulary.size} pieces but the model has {vocabulary.size - 1}"):
        check_fits(vocabulary, vocab_size=vocabulary.size - 1, pad_id=0, eos_id=1)
    for pad_id, eos_id in ((1, 1), (0, 2)):
        with pytest.raises(UserError, match=f"the model has pad {pad_id} and eos {eos_id}, vocabulary .* has 0 and 1"):
            check_fits(vocabulary, vocab_size=vocabulary.size, pad_id=pad_id, eos_id=eos_id)


@pytest.mark.parametrize("name", ["svamp", "cqa", "esnli"])
def test_ids_are_those_of_the_published_tokenizer(data_root: Path, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    spiece = data_root / "t5" / "spiece.model"
    shutil.copyfile(spiece, tmp_path / "spiece.model")
    tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path)
    examples = ReleasedSource(data_root, name).read().splits["test"][:200]
    split = tokenized(Vocabulary(spiece), examples)
    for task, prefix in ((PREDICT, "predict: "), (EXPLAIN, "explain: ")):
        expected = tokenizer([prefix + example.input for example in examples])["input_ids"]
        assert rows_of(split.tasks[task].inputs) == expected
    assert rows_of(split.tasks[EXPLAIN].targets) == tokenizer([example.rationale for example in examples])["input_ids"]
