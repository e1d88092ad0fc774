"""Evaluation by length: results by row, equal to those of single examples; few programs; one encoding."""

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import helpers
import jax
import numpy as np
import pytest
import runs
from jax.sharding import Mesh
from mi_helpers import mi_config

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import TokenizedSplit, gather
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.evaluation import batches
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.mi_monitor import MIMonitor
from cotmi_jax.inference.candidates import Target, TargetScorer
from cotmi_jax.inference.segments import Tokens
from cotmi_jax.inference.voting import Sampling
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import StudentDef
from cotmi_jax.models.t5 import T5
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.mesh import make_mesh

quick_compilation = runs.quick_compilation

VOCABULARY = Vocabulary(VOCABULARY_PATH)
STUDENT = StudentDef.of(helpers.small_config(vocab_size=512, d_model=32, num_encoder_layers=1, num_decoder_layers=1))
GREEDY = Decoding("greedy", max_tokens=6)
LIMITS = TokenLimits(256, 256)
OBJECTIVE = Objective("cotmi", mi_term=mi_config("barber_agakov"))  # without networks of its own
WORDS = (9, 30, 2, 14, 3, 41, 6, 27, 1, 20, 35, 4, 17, 25, 8, 11, 5, 38, 22)
EXAMPLES = tuple(
    Example(f"a/test/{n}", " ".join([f"{n} pens"] * n), str(n), " ".join(["Then 2."] * (n % 7))) for n in WORDS
)


@functools.cache
def params() -> dict[str, Any]:
    return jax.tree.map(np.asarray, helpers.numpy_params(STUDENT))  # of no mesh


@functools.cache
def tokens() -> TokenizedSplit:
    return tokenize_split(EXAMPLES, VOCABULARY, objective="cotmi", label_type="gt", limits=TokenLimits(256, 256))


class Alone(NamedTuple):
    """The terms of each example, (sum, weight), its texts and label ids, by an evaluation of that example only."""

    terms: list[dict[str, Any]]
    texts: dict[str, list[str]]
    labels: list[list[int]]


@functools.cache
def alone() -> Alone:
    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        student = STUDENT.bind(params)
        outputs = {task: generate(student, batch[task]["inputs"], GREEDY).tokens for task in (PREDICT, EXPLAIN)}
        return OBJECTIVE.evaluate(student, batch).terms, outputs

    found = [jax.device_get(run(params(), gather(tokens(), np.array([row])))) for row in range(len(EXAMPLES))]
    texts = {task: [VOCABULARY.decode(outputs[task][0]) for _, outputs in found] for task in (PREDICT, EXPLAIN)}
    return Alone([terms for terms, _ in found], texts, [outputs[PREDICT][0].tolist() for _, outputs in found])


def small_mesh() -> Mesh:
    return make_mesh(data=1, devices=jax.devices()[:1])


@pytest.fixture
def cheap_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape that saves a token is used."""
    monkeypatch.setattr(batches, "_COMPILATION_TOKENS", {"cpu": 1})


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_an_evaluation_by_length_equals_that_of_single_examples(cheap_compilation: None, devices: int) -> None:
    with jax.set_mesh(mesh := make_mesh(devices=jax.devices()[:devices])):
        evaluator = Evaluator(STUDENT, OBJECTIVE, VOCABULARY, mesh, batch_size=8)
        losses, texts, *_, targets = evaluator.scores(params(), tokens(), GREEDY, (PREDICT, EXPLAIN))
        again = evaluator.scores(params(), tokens(), GREEDY, (PREDICT, EXPLAIN))
    assert texts == alone().texts and len(set(texts[PREDICT])) > 5
    assert losses.keys() == {"predict", "explain", "mi", "predict_token_accuracy", "explain_token_accuracy"}
    for name, value in losses.items():
        terms = [row[name] for row in alone().terms]
        expected = sum(term.sum for term in terms) / sum(term.weight for term in terms)
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)
    own = [terms[PREDICT] for terms in alone().terms]
    assert [target.tokens[PREDICT] for target in targets] == [int(term.weight) for term in own]
    np.testing.assert_allclose([each.loss[PREDICT] for each in targets], [term.sum for term in own], rtol=1e-5)
    assert again[:2] == (losses, texts)
    # 19 examples are three batches, each of another shape; nothing is compiled for the second evaluation.
    segments = evaluator._generation._segments.get((GREEDY, False))  # on one device
    programs = [segments._start, segments._advance] if segments else [evaluator._generation.generate]
    assert [each._cache_size() for each in (evaluator._terms, *programs)] == [3] * (1 + len(programs))  # type: ignore[attr-defined]


def shapes_of(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int], list[int]]]:
    """Shape of the inputs and first tokens of the rows of every batch, in order."""
    seen = []
    with jax.set_mesh(mesh := small_mesh()):
        evaluator = Evaluator(STUDENT, objective, VOCABULARY, mesh, batch_size=8)

        def terms(params: Any, batch: Any) -> Any:
            seen.append((batch[PREDICT]["inputs"].shape, np.asarray(batch[EXPLAIN]["targets"])[:, 0].tolist()))
            return {}, {}, {}

        monkeypatch.setattr(evaluator, "_terms", terms)
        evaluator.scores(params(), tokens(), GREEDY)
    return seen


def test_a_loss_that_depends_on_the_padding_keeps_the_order_of_the_split(
    cheap_compilation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_length = shapes_of(OBJECTIVE, monkeypatch)
    assert len({shape for shape, _ in by_length}) == 3
    in_order = shapes_of(Objective("cotmi", mi_term=mi_config("released")), monkeypatch)
    assert {shape for shape, _ in in_order} == {(8, tokens().input_length)}
    first = tokens().tasks[EXPLAIN].targets.padded(np.r_[: len(EXAMPLES), [-1] * 5], 1)[:, 0]
    assert [token for _, row in in_order for token in row] == first.tolist()


@pytest.mark.slow
def test_the_encoder_runs_once_for_losses_texts_and_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, traced = T5.encode, []
    monkeypatch.setattr(T5, "encode", lambda *arguments: (traced.append(arguments[1].shape), encode(*arguments))[1])
    with jax.set_mesh(mesh := small_mesh()):
        evaluator = Evaluator(STUDENT, OBJECTIVE, VOCABULARY, mesh, batch_size=8)
        evaluator.scores(params(), tokens(), GREEDY, (PREDICT, EXPLAIN), examples=CHOSEN, confidences=True)
    assert traced == [(16, tokens().input_length)]  # the inputs of both tasks


@pytest.mark.slow
def test_features_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([3, 0, 17, 5, 4, 11, 2, 7, 9, 8, 14, 18])
    found = []
    with jax.set_mesh(mesh := small_mesh()):
        monitor = MIMonitor(STUDENT, runs.tiny_config(), mesh, batch_size=4)
        for tokens_saved, programs in ((10**9, 1), (1, 3)):  # the shape of the longest batch is that of the split
            monkeypatch.setattr(batches, "_COMPILATION_TOKENS", {"cpu": tokens_saved})
            found.append(monitor.features(params(), tokens(), rows))
            assert monitor._states._cache_size() == programs  # type: ignore[attr-defined]
    assert found[0].keys() == found[1].keys() == {"z", "v", "x", "first", "y"}
    for name, feature in found[0].items():
        np.testing.assert_allclose(found[1][name], feature, rtol=1e-4, atol=1e-5, err_msg=name)


CHOSEN = tuple(
    dataclasses.replace(example, choices=tuple(map(str, range(row % 4))), cluster=f"a/{row % 3}")
    for row, example in enumerate(EXAMPLES)
)


@pytest.mark.slow
def test_predictions_have_the_confidence_of_the_label_and_ranked_candidates(cheap_compilation: None) -> None:
    """Whatever the batch: compared with each output and each choice alone."""
    with jax.set_mesh(mesh := small_mesh()):
        evaluator = Evaluator(STUDENT, OBJECTIVE, VOCABULARY, mesh, batch_size=8)
        losses, predictions = evaluator.evaluate(params(), tokens(), CHOSEN, GREEDY, rationales=False, confidences=True)
        assert [each["predicted_label"] for each in predictions] == [text.strip() for text in alone().texts[PREDICT]]
        scorer, encode = TargetScorer(STUDENT, mesh), jax.jit(lambda params, ids: STUDENT.bind(params).encode(ids))
        for row in (2, 7, 15):
            inputs = gather(tokens(), np.array([row]))[PREDICT]["inputs"]
            encoded, generated = encode(params(), inputs), alone().labels[row]
            ids = [generated[: generated.index(EOS_ID) + 1] if EOS_ID in generated else generated]
            ids += [[*each, EOS_ID] for each in VOCABULARY.encode(CHOSEN[row].choices)]
            own, *log_p = scorer(params(), inputs, encoded, [Target(0, each) for each in ids])
            prediction, ranks = predictions[row], np.argsort(log_p)[::-1]
            assert prediction["confidence"] == pytest.approx(np.exp(own), rel=1e-4)
            assert prediction["choices"] == list(CHOSEN[row].choices) and prediction["cluster"] == f"a/{row % 3}"
            assert [each["label"] for each in prediction["candidates"]] == [str(rank) for rank in ranks]
            found = [each["log_p"] for each in prediction["candidates"]]
            np.testing.assert_allclose(found, np.array(log_p)[ranks], atol=2e-5)


@pytest.mark.slow
def test_losses_can_be_computed_again_from_predictions() -> None:
    """Also where rationales have weights, and where examples have none, whose empty target is no loss."""
    weights = [(0.25 if row % 3 else 1.0) if each.rationale else 0.0 for row, each in enumerate(EXAMPLES)]
    examples = [dataclasses.replace(each, weight=weight) for each, weight in zip(EXAMPLES, weights, strict=True)]
    split = tokenize_split(examples, VOCABULARY, objective="cotmi", label_type="gt", limits=LIMITS)
    with jax.set_mesh(mesh := small_mesh()):
        evaluator = Evaluator(STUDENT, OBJECTIVE, VOCABULARY, mesh, batch_size=8)
        losses, predictions = evaluator.evaluate(params(), split, examples, GREEDY, rationales=False)
    assert {json.dumps(each.get("loss_weight")) for each in predictions} == {"null", '{"explain": 0.25}'}
    assert [EXPLAIN in each["tokens"] for each in predictions] == [bool(each.rationale) for each in examples]
    for task in (PREDICT, EXPLAIN):
        weights = [each.get("loss_weight", {}).get(task, 1.0) for each in predictions if task in each["loss"]]
        sums = [
            np.dot(weights, [each[kind][task] for each in predictions if task in each["loss"]])  # type: ignore[literal-required]
            for kind in ("loss", "tokens")
        ]
        assert sums[0] / sums[1] == pytest.approx(losses[task], rel=1e-5)


def test_labels_are_scored_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with jax.set_mesh(mesh := small_mesh()):
        evaluator = Evaluator(STUDENT, Objective("standard"), VOCABULARY, mesh, batch_size=8)

        def outputs(params: Any, inputs: Any, *_: Any, scores: bool, **__: Any) -> Any:
            asked.append(scores)
            return Tokens(np.zeros((len(inputs), 1), np.int32), None)

        monkeypatch.setattr(evaluator, "_terms", lambda params, batch: ({}, {PREDICT: None}, {}))
        monkeypatch.setattr(evaluator, "_labels", None)
        monkeypatch.setattr(evaluator._generation, "outputs", outputs)
        _, predictions = evaluator.evaluate({}, tokens(), CHOSEN, GREEDY, limit=8)
    assert asked == [False]
    assert all(each["confidence"] is None and each["candidates"] == [] for each in predictions)


def test_sampled_rationales_vote_on_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first output with the label that most have stands for the example. Keys differ by batch and sample."""
    rationales = ("One.", "Two.", "Three.", "Four.")
    votes = (("4", "5", "5", "4"), ("5", "7", "( 3 + 4 )", "7"), ("", "", "", "5"), ("", "", "", ""))
    examples = [dataclasses.replace(example, kind="equation") for example in EXAMPLES[:8]]
    seen = []
    with jax.set_mesh(mesh := small_mesh()):
        evaluator = Evaluator(
            STUDENT, Objective("single_task"), VOCABULARY, mesh, batch_size=4, sampling=Sampling(3, votes=4)
        )

        def outputs(params: Any, inputs: Any, encoded: Any, key: Any, **_: Any) -> Tokens:
            sample = len(seen) % 4
            seen.append(tuple(jax.random.key_data(key).tolist()))
            texts = [
                rationales[sample] + (f" So the answer is {each[sample]}" if each[sample] else "") for each in votes
            ]
            ids = [[*ids, EOS_ID] for ids in VOCABULARY.encode(texts)]
            return Tokens(np.array([each + [0] * (40 - len(each)) for each in ids], np.int32), None)

        split = tokenize_split(examples, VOCABULARY, objective="single_task", label_type="gt", limits=LIMITS)
        monkeypatch.setattr(evaluator, "_terms", lambda params, batch: ({}, {PREDICT: None}, {}))
        monkeypatch.setattr(evaluator._generation, "outputs", outputs)
        sampling = Decoding("sample", max_tokens=40)
        in_order = [(np.arange(start, start + 4), (256, 256)) for start in (0, 4)]
        monkeypatch.setattr(batches, "eval_batches", lambda *_, **__: in_order)
        _, predictions = evaluator.evaluate({}, split, examples, sampling)
    found = [(each["predicted_label"], each["predicted_rationale"], each["vote_share"]) for each in predictions]
    expected = [("4", "One.", 0.5), ("7", "Two.", 0.75), ("5", "Four.", 0.25), ("", "", 0.0)]
    assert found == 2 * expected
    assert len(set(seen)) == len(seen) == 8
