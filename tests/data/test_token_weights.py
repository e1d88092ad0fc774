"""Weights of the tokens of rationales: from characters to tokens, through batches, into the loss and its gradient."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from helpers import assert_trees_close, numpy_params, toy_student
from paths import REPOSITORY
from splits import random_split

from cotmi_jax.config import base, flatten
from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.example import Example, Span, merge_rationales
from cotmi_jax.data.order import Picks, TrainOrder
from cotmi_jax.data.packing import make_shape, pack
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.sources.registered import RegisteredSource
from cotmi_jax.data.token_weights import TokenWeights, parse_spans, parse_token_weights
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import Batch, TokenizedSplit, gather
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import make_objective
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.training.step import loss_and_grads

quick_compilation = runs.quick_compilation
VOCABULARY = Vocabulary(VOCABULARY_PATH)
BYTES = Vocabulary(Path("bytes"))
TEXT = "Tom has 12 + 30 = 42 pens."


def tokenized(*examples: Example, rules: str, vocabulary: Vocabulary = VOCABULARY, **changes: Any) -> TokenizedSplit:
    settings: dict[str, Any] = dict(objective="dss", label_type="gt", limits=TokenLimits(64, 64))
    return tokenize_split(examples, vocabulary, token_weights=parse_token_weights(rules), **(settings | changes))


def example(rationale: str = TEXT, spans: tuple = (), **changes: Any) -> Example:
    return Example("s/train/0", "How many?", "42", rationale, "42", token_weights=spans and (spans,), **changes)


def by_token(split: TokenizedSplit, vocabulary: Vocabulary, task: str = "explain") -> list[tuple[str, float]]:
    ids, weights = split.tasks[task].targets.flat, split.tasks[task].weights
    assert weights is not None
    return [(vocabulary.decode([token]), float(weight)) for token, weight in zip(ids, weights, strict=True)]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, BYTES], ids=["pieces", "bytes"])
def test_the_weight_of_a_token_is_the_mean_over_its_characters(vocabulary: Vocabulary) -> None:
    start = TEXT.index("12")
    split = tokenized(example(spans=(Span(start, start + 2, 0.25),)), rules="given", vocabulary=vocabulary)
    tokens = by_token(split, vocabulary)
    assert tokens[-1] == ("", 1.0)  # eos
    inside = [token for token, weight in tokens if weight == 0.25]
    assert "".join(inside) == "12" and {weight for _, weight in tokens} == {0.25, 1.0}


def test_a_piece_that_a_span_holds_in_part_has_a_weight_in_between() -> None:
    text = "How many"
    pieces = VOCABULARY.spans([text])[0]
    start, end = max(pieces, key=lambda span: span[1] - span[0])
    length = len(text[start:end].strip())
    assert length > 1
    split = tokenized(example(text, spans=(Span(end - 1, end, 3.0),)), rules="given")
    weights = split.tasks["explain"].weights
    assert weights is not None
    np.testing.assert_allclose(weights[pieces.index((start, end))], (length - 1 + 3.0) / length, rtol=1e-6)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, BYTES], ids=["pieces", "bytes"])
def test_spans_of_tokens_cover_their_text_in_order(vocabulary: Vocabulary) -> None:
    texts = ["", " A  naïve 漢字 😀 test 1234 ", "premise </s> hypothesis</s>x", TEXT]
    for text, ids, spans in zip(texts, vocabulary.encode(texts), vocabulary.spans(texts), strict=True):
        assert len(ids) == len(spans)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert sorted(spans) == spans
        covered = {index for start, end in spans for index in range(start, end)}
        assert all(text[index].isspace() for index in set(range(len(text))) - covered)
        for token, (start, end) in zip(ids, spans, strict=True):
            if token == 1:
                assert text[start:end] == "</s>"


def test_rules_weigh_numbers_and_the_answer_and_multiply_with_given_spans() -> None:
    rules = parse_token_weights("numbers=2, answer=3 ,given")
    assert rules == TokenWeights(given=True, numbers=2.0, answer=3.0)
    one = example(spans=(Span(0, 10, 0.5),))
    expected = np.ones(len(TEXT))
    expected[:10] *= 0.5
    for number in ("12", "30", "42"):
        expected[TEXT.index(number) : TEXT.index(number) + 2] *= 2
    at = TEXT.index("42")
    expected[at : at + 2] *= 3
    np.testing.assert_array_equal(rules.of_characters(one, (at, at + 2)), expected)
    assert parse_token_weights("") is None


def test_the_answer_that_a_rationale_states_gets_its_weight() -> None:
    split = tokenized(example(), rules="answer=5", vocabulary=BYTES, rationale_answer="append")
    tokens = by_token(split, BYTES)
    assert "".join(token for token, weight in tokens if weight == 5.0) == "42"
    assert [weight for _, weight in tokens[-3:]] == [5.0, 5.0, 1.0]  # the end of "So the answer is 42"


@pytest.mark.parametrize(
    "rules", ["numbers", "numbers=", "numbers=-1", "numbers=nan", "numbers=1e9", "given=2", "verbs=2", "given,given"]
)
def test_rules_that_cannot_be_meant_are_refused(rules: str) -> None:
    with pytest.raises(UserError, match="config.data.token_weights: .* is no rule"):
        parse_token_weights(rules)


def test_an_answer_needs_a_sentence_that_states_it() -> None:
    config = base()
    config.data.token_weights = "answer=2"
    with pytest.raises(UserError, match="rationale_answer cut leaves no answer in rationales"):
        make_objective(config)
    config.data.rationale_answer = "append"
    make_objective(config)


def test_cutting_keeps_tokens_and_weights_aligned() -> None:
    whole, cut = (
        tokenized(example(), example("2 pens."), rules="numbers=2", limits=TokenLimits(64, limit)) for limit in (64, 5)
    )
    expected, found = (by_token(split, VOCABULARY) for split in (whole, cut))
    first = whole.tasks["explain"].targets.lengths[0]
    assert found == [*expected[:4], ("", 1.0), *expected[first : first + 4], ("", 1.0)][: len(found)]
    assert cut.tasks["explain"].truncated_targets >= 1


def test_each_of_several_rationales_has_its_own_spans() -> None:
    spans = ((Span(0, 1, 2.0),), (), (Span(0, 1, 2.0),))
    several = Example("s/train/0", "A?", "b", "aa", more=(("aa", 1.0), ("aa", 1.0)), token_weights=spans)
    split = tokenized(several, rules="given", vocabulary=BYTES)
    weights = split.tasks["explain"].target_weights
    assert weights is not None
    assert weights.padded(np.arange(3), 4).tolist() == [[2, 1, 1, 0], [1, 1, 1, 0], [2, 1, 1, 0]]
    merged = merge_rationales(several)  # those alike in text and weights
    assert merged.rationales == (("aa", pytest.approx(4 / 3)), ("aa", pytest.approx(2 / 3)))
    assert merged.token_weights == ((Span(0, 1, 2.0),), ())


def test_the_target_of_single_task_has_weight_1_outside_the_rationale() -> None:
    split = tokenized(example(), rules="numbers=3", vocabulary=BYTES, objective="single_task")
    text = "".join(token for token, weight in by_token(split, BYTES, "predict") if weight == 3.0)
    assert text == "123042"  # not the 42 of the label


# Rows of the user.


def write(path: Path, *rows: dict[str, Any]) -> str:
    full = [{"input": f"{n}?", "label": "b", "rationale": "It is 4."} | row for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in full))
    return f"jsonl:{path}"


def test_rows_give_spans_where_the_config_asks_for_them(tmp_path: Path) -> None:
    dataset = write(
        tmp_path / "a.jsonl",
        {"token_weights": [[6, 7, 2]]},
        {"rationale": "  It is 4. ", "token_weights": [[8, 11, 0.5], [0, 3, 4]]},
        {"rationale": ["It.", "", "4"], "token_weights": [[], [], [[0, 1, 2.5]]], "weight": [1, 1, 2]},
        {"token_weights": None},
        *[{}] * 8,
    )
    # Before the key existed such fields were ignored.
    assert not any(e.token_weights for e in load_corpus(Loading(dataset=dataset)).corpus.splits["train"])
    given = Loading(dataset=dataset, token_weights="given")
    assert corpus_fingerprint(given) != corpus_fingerprint(Loading(dataset=dataset))
    loaded = load_corpus(given).corpus.splits
    by_id = {e.id.rpartition("/")[2]: e for split in loaded.values() for e in split}
    assert by_id["0"].token_weights == ((Span(6, 7, 2.0),),)
    assert by_id["1"].token_weights == ((Span(0, 1, 4.0), Span(6, 8, 0.5)),) and by_id["1"].rationale == "It is 4."
    assert by_id["2"].token_weights == ((), (Span(0, 1, 2.5),)) and by_id["2"].more == (("4", 2.0),)
    assert by_id["3"].token_weights == ()


def test_the_row_of_the_page_weighs_a_word() -> None:
    page = (REPOSITORY / "docs" / "weights.md").read_text()
    (line,) = re.findall(r'^ +(\{"input".*\})$', page, flags=re.MULTILINE)
    row = json.loads(line)
    (span,) = parse_spans(row["token_weights"], row["rationale"], "page")
    assert row["rationale"][span.start : span.end] == "frozen"
    keys = set(re.findall(r"--config\.((?:data|objective)\.\w+)", page))
    assert (
        keys == {"objective.alpha_schedule", "data.rationale_weights", "data.token_weights"} <= flatten(base()).keys()
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"token_weights": 2}, r"a.jsonl:1, token_weights: 2; give a list of \[start, end, weight\]"),
        ({"token_weights": [0, 3, 2.0]}, r"token_weights: 0; give a list of"),
        ({"token_weights": [[0, 3]]}, r"\[0, 3\]; give a list of"),
        ({"token_weights": [[0, True, 1]]}, "give a list of"),
        ({"token_weights": [[0, 9, 1.0]]}, r"0 ≤ start < end ≤ 8, the number of characters"),
        ({"token_weights": [[3, 3, 1.0]]}, "0 ≤ start < end ≤ 8"),
        ({"token_weights": [[0, 3, -1.0]]}, "a weight of 0 to 1e\\+06"),
        ({"token_weights": [[0, 3, 2], [2, 4, 2]]}, r"overlap; give each character one weight"),
        ({"rationale": ["It.", "4"], "token_weights": [[0, 1, 2]]}, "for 2 rationales; give a list"),
    ],
)
def test_spans_that_cannot_be_used_name_their_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    dataset = write(tmp_path / "a.jsonl", row, *[{}] * 9)
    with pytest.raises(UserError, match=message):
        load_corpus(Loading(dataset=dataset, token_weights="given"))


def test_a_table_has_no_spans(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("input,label,rationale,spans\na,b,c,1\n")
    with pytest.raises(UserError, match="a table cannot hold token_weights"):
        load_corpus(Loading(dataset=f"csv:{tmp_path / 'a.csv'}", fields="token_weights=spans", token_weights="given"))


def test_the_cache_keeps_weights_and_knows_the_rules(tmp_path: Path) -> None:
    config = runs.tiny_config({"objective.name": "dss", "data.cache": str(tmp_path)})
    plain = RunData.of(config, VOCABULARY)
    config.data.token_weights = "numbers=2"
    made, found = (RunData.of(config, VOCABULARY) for _ in range(2))
    assert not made.found and found.found
    weights = [data.train.tasks["explain"].weights for data in (made, found)]
    np.testing.assert_array_equal(*weights)  # type: ignore[call-overload]
    assert set(np.unique(weights[0])) == {1.0, 2.0}
    assert made.prepared.fingerprint == found.prepared.fingerprint != plain.prepared.fingerprint
    assert found.valid.tasks["explain"].weights is None  # held-out losses weigh all tokens alike
    (note,) = [note for note in made.notes(None) if "another weight" in note]
    assert "explain target tokens have another weight than 1 (numbers=2), weights 1 to 2" in note
    config.objective.name = "standard"  # trains on no rationale
    assert all(tokens.weights is None for tokens in RunData.of(config, VOCABULARY).train.tasks.values())


def test_spans_of_valid_examples_return_from_the_cache(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "valid"):
        write(tmp_path / "set" / f"{split}.jsonl", *[{"token_weights": [[6, 7, 2]]}] * 12)
    changes = {"data.dataset": f"jsonl:{tmp_path / 'set'}", "data.cache": str(tmp_path), "data.token_weights": "given"}
    config = runs.tiny_config({"objective.name": "dss"} | changes)
    made, found = (RunData.of(config, BYTES).prepared.valid_examples for _ in range(2))
    assert found == made and found[0].token_weights == ((Span(6, 7, 2.0),),)


def test_a_registered_source_is_another_with_other_spans() -> None:
    def fingerprint(*spans: Span) -> str:
        return RegisteredSource("s", lambda: {"train": [example(spans=spans)]}).fingerprint()

    assert len({fingerprint(), fingerprint(Span(0, 1, 2.0)), fingerprint(Span(0, 1, 3.0))}) == 3


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((), ()), "source s: token_weights of s/train/0: 2 for 1 rationales"),
        (((Span(0, 99, 1.0),),), "start < end ≤ 26"),
    ],
)
def test_spans_of_a_registered_source_are_checked(spans: Any, message: str) -> None:
    given = dataclasses.replace(example(), token_weights=spans)
    with pytest.raises(UserError, match=message):
        RegisteredSource("s", lambda: {"train": [given]}).read()


def test_pieces_of_a_split_join_with_their_weights() -> None:
    whole = tokenized(example(), example("2 pens."), rules="numbers=2")
    pieces = [tokenized(each, rules="numbers=2") for each in (example(), example("2 pens."))]
    assert TokenizedSplit.join(pieces).fingerprint() == whole.fingerprint()
    assert by_token(TokenizedSplit.join(pieces), VOCABULARY) == by_token(whole, VOCABULARY)


@pytest.mark.parametrize(
    ("rationale", "rules", "message"),
    [("It is so.", "numbers=2", "no token of train has another weight"), ("4", "numbers=0", "but eos has weight 0")],
)
def test_weights_without_effect_are_refused(tmp_path: Path, rationale: str, rules: str, message: str) -> None:
    dataset = write(tmp_path / "a.jsonl", *[{"rationale": rationale}] * 12)
    config = runs.tiny_config({"objective.name": "dss", "data.dataset": dataset, "data.token_weights": rules})
    with pytest.raises(UserError, match=message):
        RunData.of(config, BYTES)


# Losses.


def weighed_split() -> TokenizedSplit:
    """A split whose rationales have random token weights, some of them 0."""
    split = random_split(40, rationales=3)
    explain = split.tasks["explain"]
    weights = np.random.default_rng(5).choice([0.0, 0.5, 1.0, 3.0], len(explain.targets.flat)).astype(np.float32)
    tasks = split.tasks | {"explain": dataclasses.replace(explain, weights=weights)}
    return dataclasses.replace(split, tasks=tasks)


STUDENT = toy_student()
DSS = Objective("dss", alpha=0.4)


@functools.cache
def batches() -> tuple[TokenizedSplit, Picks, dict[str, Batch]]:
    split = weighed_split()
    order = TrainOrder.of(split.size, 8, seed=1, tokens=split)
    picks = order.picks(7)
    return (
        split,
        picks,
        {"padded": gather(split, *picks), "packed": pack(split, picks, make_shape(split, order, multiple=2))},
    )


@functools.cache
def computed(form: str, micro_batches: int = 1) -> dict[str, Any]:
    run = jax.jit(lambda params, batch: loss_and_grads(STUDENT, DSS, params, batch, None, micro_batches))
    found = run({"student": numpy_params(STUDENT)}, batches()[2][form])
    return jax.device_get({"loss": found.loss, "grads": found.grads, "explain": found.terms["explain"]._asdict()})


def float64_explain(params: dict[str, np.ndarray], batch: Batch) -> float:
    """Σ w · weight · −log p(token) / Σ w · weight of the rationale task, of a padded batch, position by position."""
    table, mix = (np.asarray(params[name], np.float64) for name in ("table", "mix"))
    inputs, targets, weights = (batch["explain"][name] for name in ("inputs", "targets", "target_weights"))
    total = norm = 0.0
    for row in range(len(targets)):
        read = np.tanh(table[inputs[row]] @ mix)[inputs[row] != 0].sum(axis=0)
        for position in np.flatnonzero(targets[row]):
            previous = targets[row, position - 1] if position else 0
            logits = np.tanh(np.tanh(table[previous] @ mix) + read) @ table.T
            loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[targets[row, position]]
            weight = float(batch["weight"][row]) * float(weights[row, position])
            total, norm = total + weight * loss, norm + weight
    return total / norm


def test_the_loss_and_its_gradient_are_those_of_float64() -> None:
    """The gradient, which the token scan derives by hand, along random directions."""
    params: Any = numpy_params(STUDENT)
    batch, found = batches()[2]["padded"], computed("padded")
    value = float64_explain(params, batch)
    np.testing.assert_allclose(found["explain"]["sum"] / found["explain"]["weight"], value, rtol=1e-5)
    unweighed = batch | {
        "explain": batch["explain"] | {"target_weights": np.ones_like(batch["explain"]["target_weights"])}
    }
    assert abs(float64_explain(params, unweighed) - value) > 0.01
    draw = np.random.default_rng(2)
    run = jax.jit(
        lambda params: loss_and_grads(STUDENT, Objective("dss", alpha=0.0), params, batch, None, 1).grads["student"]
    )
    grads = jax.device_get(run({"student": params}))
    for _ in range(3):
        direction = {name: draw.normal(size=leaf.shape) for name, leaf in params.items()}
        ends = [
            float64_explain(
                {name: np.asarray(leaf, np.float64) + h * direction[name] for name, leaf in params.items()}, batch
            )
            for h in (-1e-5, 1e-5)
        ]
        slope = sum((direction[name] * grads[name]).sum() for name in params)
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-5, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "micro_batches"), [("packed", 1), ("packed", 2), ("padded", 2)])
def test_packed_rows_and_micro_batches_give_the_padded_loss(form: str, micro_batches: int) -> None:
    assert_trees_close(computed(form, micro_batches), computed("padded"), rtol=3e-5, atol=3e-6)


def test_packed_rows_hold_the_weight_of_each_token() -> None:
    split, picks, found = batches()
    rows, padded = found["packed"]["rows"], found["padded"]
    slots = found["packed"]["examples"]["slots"]
    for task in ("predict", "explain"):
        for place, slot in enumerate(slots[task]):
            row, segment = divmod(int(slot), rows["task"].shape[1])
            here = rows["target_segments"][row] == segment + 1
            expected = padded[task].get("target_weights", np.ones_like(padded[task]["targets"], np.float32))
            length = int((padded[task]["targets"][place] != 0).sum())
            np.testing.assert_array_equal(rows["target_weights"][row][here], expected[place][:length])
    assert (rows["target_weights"][rows["target_segments"] == 0] == 0).all()
