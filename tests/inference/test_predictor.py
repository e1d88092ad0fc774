"""Prediction and evaluation: which text becomes a label or a rationale; results do not depend on the batch size."""

import functools
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import Mesh
from mi_helpers import mi_config

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.metrics import measure
from cotmi_jax.evaluation.monitor import HeldOutEstimates
from cotmi_jax.inference import generation
from cotmi_jax.inference import predictor as predictor_module
from cotmi_jax.inference.lines import Answer, Line, read_lines
from cotmi_jax.inference.predictor import Predictor, padded_length
from cotmi_jax.models.decoding import Decoding, Generated
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import param_shardings
from cotmi_jax.report.terminal import format_examples, format_scores

quick_compilation = runs.quick_compilation

VOCABULARY = Vocabulary(VOCABULARY_PATH)
CONFIG = helpers.small_config(vocab_size=512, d_model=32, num_encoder_layers=1, num_decoder_layers=1)
STUDENT = StudentDef.of(CONFIG)
EXAMPLES = make_arithmetic(seed=3, num_train=11, num_valid=0, num_test=0).splits["train"]
GREEDY = Decoding("greedy", max_tokens=6)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        yield mesh


@functools.cache
def params() -> dict[str, Any]:
    return helpers.numpy_params(STUDENT)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces generation by a student whose output is its input."""

    def generate(student: Any, inputs_BxS: jax.Array, *_: Any, scores: bool = True) -> Generated:
        return Generated(inputs_BxS, jnp.zeros(inputs_BxS.shape[0]) if scores else None)

    monkeypatch.setattr(predictor_module, "generate", generate)
    monkeypatch.setattr(generation, "generate", generate)


def predict(mesh: Mesh, lines: list[str], batch_size: int = 8, **settings: Any) -> list[Answer]:
    settings = {"task": "both", "objective": "dss", "decoding": GREEDY} | settings
    predictor = Predictor(STUDENT, params(), VOCABULARY, settings.pop("objective"), mesh, **settings)
    stream = io.BytesIO("".join(f"{line.rstrip()}\n" for line in lines).encode())
    found = predictor.answers(read_lines(stream), batch_size)
    return [json.loads(line.answered(samples)) for answers in found for line, samples in answers]


# Prediction.


@pytest.mark.parametrize(
    ("objective", "task", "expected"),
    [
        ("dss", "predict", {"label": "predict: 3 pens"}),
        ("dss", "explain", {"rationale": "explain: 3 pens"}),
        ("cotmi", "both", {"label": "predict: 3 pens", "rationale": "explain: 3 pens"}),
        ("dss", "raw", {"output": "3 pens"}),
        (None, "both", {"label": "predict: 3 pens", "rationale": "explain: 3 pens"}),
        ("standard", "predict", {"label": "3 pens"}),
        ("standard", "raw", {"output": "3 pens"}),
        ("single_task", "predict", {"label": ""}),
    ],
)
def test_inputs_have_the_prefix_of_task_and_objective(
    echo: None, mesh: Mesh, objective: str | None, task: str, expected: dict
) -> None:
    assert predict(mesh, ["3 pens\n"], objective=objective, task=task) == [{"input": "3 pens"} | expected]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("both", {"label": "( 3 + 4 )", "rationale": "3 and 4."}),
        ("predict", {"label": "( 3 + 4 )"}),
        ("explain", {"rationale": "3 and 4."}),
        ("raw", {"output": "3 and 4. So the answer is ( 3 + 4 )"}),
    ],
)
def test_single_task_output_is_split_into_label_and_rationale(
    echo: None, mesh: Mesh, task: str, expected: dict
) -> None:
    (answer,) = predict(mesh, ["3 and 4. So the answer is ( 3 + 4 )"], objective="single_task", task=task)
    assert answer == {"input": "3 and 4. So the answer is ( 3 + 4 )"} | expected


@pytest.mark.parametrize("task", ["explain", "both"])
def test_rationales_of_a_student_trained_without_them_are_refused(mesh: Mesh, task: str) -> None:
    with pytest.raises(UserError, match=f"--task={task}: this student was trained with objective standard"):
        predict(mesh, ["3 pens"], objective="standard", task=task)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_answers_are_in_the_order_of_the_lines(echo: None, mesh: Mesh, batch_size: int) -> None:
    lines = [f"{n} pens" for n in range(2, 13)]
    answers = predict(mesh, [f" {line}\n" for line in lines], batch_size)
    assert [answer["input"] for answer in answers] == lines
    assert [answer["label"] for answer in answers] == [f"predict: {line}" for line in lines]


MIXED = [" ".join(["pens"] * words) for words in (3, 40, 1, 9, 70, 2, 25, 5, 33, 4, 11)]


def observed(predictor: Predictor) -> list[tuple[int, int]]:
    """The shapes of the inputs that the student is given from now on."""
    shapes, generate = [], predictor._generate
    predictor._generate = lambda params, inputs, *rest, **settings: (
        shapes.append(inputs.shape),
        generate(params, inputs, *rest, **settings),
    )[1]
    return shapes


def make_predictor(mesh: Mesh, **settings: Any) -> Predictor:
    settings = {"task": "raw", "decoding": GREEDY} | settings
    return Predictor(STUDENT, params(), VOCABULARY, "dss", mesh, **settings)


def test_lines_of_a_window_are_sorted_by_length_and_answered_in_order(echo: None) -> None:
    """Windows of one, two, then four batches of two: 11 lines."""
    with jax.set_mesh(mesh := make_mesh(data=1, devices=jax.devices()[:1])):
        predictor = make_predictor(mesh)
        shapes = observed(predictor)
        lines = [Line(number, text) for number, text in enumerate(MIXED)]
        windows = list(predictor.answers(lines, 2))
    assert [len(window) for window in windows] == [2, 4, 5]
    assert [(line, samples[0]["output"]) for window in windows for line, samples in window] == [
        (line, line.text) for line in lines
    ]
    lengths = [len(ids) + 1 for ids in VOCABULARY.encode(MIXED)]
    pairs = [
        lengths[:2],
        sorted(lengths[2:6])[2:],
        sorted(lengths[2:6])[:2],
        *np.split(np.sort(lengths[6:])[::-1], [2, 4]),
    ]
    assert shapes == [(2, padded_length(int(max(pair)))) for pair in pairs]


def test_padded_lengths_are_few_and_at_most_a_third_is_padding() -> None:
    lengths = [padded_length(longest) for longest in range(1, 1025)]
    assert sorted(set(lengths)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    for longest, length in enumerate(lengths, 1):
        assert longest <= length and (length == 32 or longest > 2 * length / 3)


def test_a_pause_of_the_input_ends_the_window_after_full_batches(echo: None, mesh: Mesh) -> None:
    lines: list[Line | None] = [Line(number, text) for number, text in enumerate(MIXED)]
    asked = []

    def arriving() -> Iterator[Line | None]:
        for line in [None, *lines[:2], None, None, *lines[2:5], None, *lines[5:]]:
            asked.append(line)
            yield line

    answers = make_predictor(mesh).answers(arriving(), 2)
    assert [line for line, _ in next(answers)] == lines[:2] and asked == [None, *lines[:2]]
    # The fifth line is less than a batch: it waits for the sixth.
    assert [line for line, _ in next(answers)] == lines[2:4] and asked[-2:] == [lines[4], None]
    assert [line for window in answers for line, _ in window] == lines[4:]


def test_a_short_stream_is_not_padded_to_the_batch_size(echo: None) -> None:
    with jax.set_mesh(mesh := make_mesh(data=2, devices=jax.devices()[:2])):
        for size, rows in ((1, [2]), (3, [4]), (8, [8]), (9, [8, 8])):
            predictor = make_predictor(mesh)
            shapes = observed(predictor)
            answers = predictor.answers([None, *(Line(number, "3 pens") for number in range(size))], 8)
            assert sum(map(len, answers)) == size and [shape[0] for shape in shapes] == rows


def test_samples_depend_on_the_batch_size_only_by_the_place_in_a_batch(mesh: Mesh) -> None:
    lines = [Line(number, example.input) for number, example in enumerate(EXAMPLES)]
    sampling = Decoding("sample", max_tokens=6)
    (one,) = make_predictor(mesh, decoding=sampling).answers(lines[:1], 32)
    several = list(make_predictor(mesh, decoding=sampling).answers(lines, 4))
    assert [len(window) for window in several] == [4, 4, 3]  # windows of one batch, which is not sorted
    assert several[0][0] == one[0]


def test_no_lines_give_no_answers(mesh: Mesh) -> None:
    assert predict(mesh, []) == []


@pytest.mark.parametrize("empty", ["", "\n", " \t\n"])
def test_an_empty_line_is_refused_after_earlier_lines_are_answered(echo: None, mesh: Mesh, empty: str) -> None:
    predictor = Predictor(STUDENT, params(), VOCABULARY, "dss", mesh, task="predict", decoding=GREEDY)
    stream = io.BytesIO(f"3 pens\n4 pens\n5 pens\n{empty.strip(chr(10))}\n6 pens".encode())
    answers = predictor.answers(read_lines(stream), 2)
    assert [line.text for line, _ in next(answers)] == ["3 pens", "4 pens"]
    assert [line.text for line, _ in next(answers)] == ["5 pens"]
    with pytest.raises(UserError, match="line 4 of the input is empty"):
        next(answers)


def test_truncation_of_an_input_is_reported(echo: None, mesh: Mesh) -> None:
    (ids,) = VOCABULARY.encode(["3 pens"])
    for limit, truncated in ((len(ids), True), (len(ids) + 1, False)):
        (answer,) = predict(mesh, ["3 pens"], task="raw", max_input_tokens=limit)
        assert answer.get("input_truncated", False) is truncated
        assert answer["output"] == VOCABULARY.decode(ids[:-1] if truncated else ids)


def test_a_line_of_text_or_json_is_read_as_a_training_row_is(echo: None, mesh: Mesh) -> None:
    texts = ["3 pens", "3  pens </s> left"]
    answers = predict(mesh, texts)
    assert predict(mesh, [json.dumps({"input": text}) for text in texts]) == answers
    text = " 3 pens\nleft "  # a line of text can hold no newline
    (answer,) = predict(mesh, [json.dumps({"input": text})], task="predict")
    split = tokens("dss", (Example("a/train/0", text, "3", "Three."),))
    assert answer["label"] == VOCABULARY.decode(split.tasks["predict"].inputs.flat).strip() != "predict: 3 pens left"


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(mesh: Mesh) -> None:
    lines = [example.input for example in EXAMPLES]
    together, alone = (predict(mesh, lines, size) for size in (8, 1))
    assert together == alone
    for field in ("label", "rationale"):
        assert len({answer[field] for answer in together}) > 3  # the outputs differ between inputs


def test_the_seed_determines_the_samples(mesh: Mesh) -> None:
    sampling = Decoding("sample", max_tokens=6)
    lines = [EXAMPLES[0].input] * 9
    first, again, other = (
        [answer["output"] for answer in predict(mesh, lines, 8, task="raw", decoding=sampling, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) > 3 and first[0] != first[8]  # each batch has its own random key


# Evaluation.


def tokens(objective: str, examples: tuple[Example, ...] = EXAMPLES) -> TokenizedSplit:
    return tokenize_split(examples, VOCABULARY, objective=objective, label_type="gt", limits=TokenLimits(256, 256))


def make_evaluator(mesh: Mesh, objective: str, batch_size: int = 8) -> Evaluator:
    mi_term = mi_config("barber_agakov") if objective == "cotmi" else None  # needs no critic
    evaluated = Objective(objective, mi_term=mi_term)
    return Evaluator(STUDENT, evaluated, VOCABULARY, mesh, batch_size=batch_size)


@pytest.mark.slow
def test_resharding_from_fsdp_keeps_the_generated_texts(mesh: Mesh) -> None:
    split = tokens("cotmi")
    expected = make_evaluator(mesh, "cotmi").scores(params(), split, GREEDY, ("explain",))
    for sizes in ((1, 8, 1), (2, 2, 2), (1, 2, 4)):
        other = make_mesh(*sizes)
        sharded = jax.device_put(params(), param_shardings(STUDENT.shapes, STUDENT.axes, other))
        with jax.set_mesh(other):
            found = make_evaluator(other, "cotmi").scores(sharded, split, GREEDY, ("explain",))
            assert jax.sharding.get_mesh() == other, sizes
        assert found.texts == expected.texts, sizes
        for name, value in expected.losses.items():
            np.testing.assert_allclose(found.losses[name], value, rtol=1e-5)


def test_a_limit_evaluates_the_first_examples(echo: None, mesh: Mesh) -> None:
    evaluator, split = make_evaluator(mesh, "standard"), tokens("standard")
    for limit, expected in ((0, 11), (3, 3), (8, 8), (11, 11), (99, 11)):
        texts = evaluator.scores(params(), split, GREEDY, ("predict",), limit=limit).texts["predict"]
        assert texts == [example.input for example in EXAMPLES[:expected]]


def test_accuracy_is_the_fraction_of_correct_labels(echo: None, mesh: Mesh) -> None:
    correct = [Example(f"a/test/{n}", f"( {n} + 1 )", f"{n + 1}", "One more.", kind="equation") for n in range(3)]
    wrong = [Example(f"a/test/{n}", f"( {n} + 1 )", f"{n}", "One more.", kind="equation") for n in range(3, 10)]
    examples = (*correct, *wrong)
    evaluator, split = make_evaluator(mesh, "standard"), tokens("standard", examples)
    for limit, expected, n in ((0, 0.3, 10), (4, 0.75, 4)):
        _, predictions = evaluator.evaluate(params(), split, examples, GREEDY, limit=limit, rationales=False)
        score = measure(["accuracy"], predictions).scores["accuracy"]
        assert (score["value"], score["n"]) == (expected, n)


@pytest.mark.parametrize(
    ("objective", "label", "rationale"),
    [
        ("standard", "Two. So the answer is ( 1 + 1 )", None),
        ("single_task", "( 1 + 1 )", "Two."),
        ("dss", "predict: Two. So the answer is ( 1 + 1 )", "explain: Two. So the answer is ( 1 + 1 )"),
    ],
)
def test_predictions_have_every_example_and_the_output_of_the_student(
    echo: None, mesh: Mesh, objective: str, label: str, rationale: str | None
) -> None:
    text = "Two. So the answer is ( 1 + 1 )"
    examples = tuple(
        Example(f"a/test/{n}", text, "2", f"Rationale {n}.", f"( {n} )", kind="equation") for n in range(10)
    )
    _, predictions = make_evaluator(mesh, objective).evaluate(params(), tokens(objective, examples), examples, GREEDY)
    assert [prediction["id"] for prediction in predictions] == [example.id for example in examples]
    tasks = {"predict", "explain"} if objective == "dss" else {"predict"}
    assert predictions[7].pop("loss").keys() == predictions[7].pop("tokens").keys() == tasks
    assert predictions[7] == {
        "id": "a/test/7",
        "input": text,
        "label": "2",
        "predicted_label": label,
        "correct": objective == "single_task",
        "teacher_label": "( 7 )",
        "teacher_rationale": "Rationale 7.",
        "predicted_rationale": rationale,
        "cluster": "a/test/7",
        "choices": [],
        "confidence": None,
        "candidates": [],
        "vote_share": None,
    }
    _, labels = make_evaluator(mesh, objective).evaluate(
        params(), tokens(objective, examples), examples, GREEDY, rationales=False
    )
    labels[7] = {key: value for key, value in labels[7].items() if key not in ("loss", "tokens")}
    without_decoding = None if objective == "dss" else rationale  # else it is part of the output with the label
    assert labels == [prediction | {"predicted_rationale": without_decoding} for prediction in predictions]


def test_the_terminal_table_has_every_result() -> None:
    metrics = {"dataset": "svamp", "split": "test", "checkpoint": {"which": "best", "step": 7}, "n": 200}
    metrics |= {
        "accuracy": 0.655,
        "interval": (0.587, 0.7175),
        "loss": {"predict": 0.25, "predict_token_accuracy": 0.5},
    }
    metrics |= {"truncated": {"predict": {"inputs": 3, "targets": 0}}}
    metrics |= {"metrics": {"accuracy": {"value": 0.655, "interval": (0.587, 0.7175), "n": 200}}}
    metrics["metrics"] |= {
        "macro_f1": {"value": 0.51234, "interval": (0.4, 0.6), "n": 200},
        "words": {"value": 12, "interval": None, "n": 7},
    }
    text = format_scores(metrics)
    assert re.search(r"^macro_f1 +0\.5123  \(95% interval 0\.4 to 0\.6\)$", text, re.M)
    assert re.search(r"^words +12, 7 examples$", text, re.M)
    for part in ("svamp test", "200 examples, checkpoint of step 7", "65.5%", "58.7% to 71.8%", "0.250 nats", "50.0%"):
        assert part in text
    assert "truncated to the limit, predict inputs  3" in text and "targets" not in text and "rationale" not in text
    assert "unknown" not in text and "vocabulary" not in text
    text = format_scores(metrics | {"unknown": {"input": 0, "label": 2}, "lost_labels": 1})
    assert re.search(r"^unknown tokens, label +2, for characters that the vocabulary lacks$", text, re.M)
    assert re.search(r"^labels not in the vocabulary +1: no answer to them is correct$", text, re.M)
    assert "unknown tokens, input" not in text
    assert "decoding" not in format_scores(metrics | {"decoding": {"method": "greedy", "votes": 1}})
    text = format_scores(metrics | {"decoding": {"method": "sample", "votes": 3}})
    assert re.search(r"^decoding +sample, 3 outputs vote on a label$", text, re.M)
    text = " ".join(format_scores(metrics, HeldOutEstimates({})).split())
    assert "what ± covers one standard error over held-out pairs and refits of the critic; no other training" in text
    assert "±" not in format_scores(metrics, HeldOutEstimates({}, not_available="too few examples"))
    prediction = {"input": "How many?", "label": "2", "predicted_label": "( 1 + 1 )", "correct": True}
    assert format_examples([prediction | {"predicted_rationale": None}]).splitlines() == [
        "  problem  How many?",
        "  student  ( 1 + 1 )  (right; gold 2)",
    ]
    assert "  because  Two." in format_examples([prediction | {"predicted_rationale": "Two."}])
