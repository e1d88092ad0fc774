"""Overlap of rationales with the teacher's and with the input, against the packages and by hand."""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.comparison import items_interval
from cotmi_jax.evaluation.metrics import measure, parse_metrics
from cotmi_jax.evaluation.overlap import rationale_overlap
from cotmi_jax.report.terminal import format_scores

INPUT = "Tom has 3 red cups and 4 blue cups. How many cups?"
TEACHER = "There are 3 red cups and 4 blue cups, so 3 + 4 = 7 cups."
OWN = ["There are 3 red cups and 4 blue cups, so 3 + 4 = 8 cups.", "Seven cups", "", TEACHER, "So 3 + 4 = 7 cups."]


def prediction(row: int, own: str | None, teacher: str | None = TEACHER, cluster: str = "") -> Any:
    line = {"id": f"set/test/{row}", "input": INPUT, "label": "7", "predicted_label": "7", "correct": True}
    return line | {"teacher_rationale": teacher, "predicted_rationale": own, "cluster": cluster or f"set/test/{row}"}


def predictions(own: list[str]) -> list[Any]:
    return [prediction(row, text) for row, text in enumerate(own)]


def test_overlap_is_that_of_the_packages_and_empty_rationales_count_as_none() -> None:
    sacrebleu, rouge = pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score.rouge_scorer")
    found = rationale_overlap(predictions(OWN))
    corpus = sacrebleu.corpus_bleu(OWN, [[TEACHER] * len(OWN)])
    assert found["bleu"]["value"] == pytest.approx(corpus.score) and "|version:" in found["bleu"]["settings"]
    sentences = [sacrebleu.sentence_bleu(text, [TEACHER]).score for text in OWN]
    assert found["bleu"]["quartiles"] == pytest.approx(np.quantile(sentences, (0.25, 0.5, 0.75)))
    low, high = found["bleu"]["interval"]
    assert low < corpus.score < high
    values = [rouge.RougeScorer(["rougeL"]).score(TEACHER, text)["rougeL"].fmeasure for text in OWN]
    assert values[2] == 0.0 and found["rouge_l"]["value"] == pytest.approx(np.mean(values))
    assert found["empty_rationales"]["value"] == 0.2 and found["empty_rationales"]["n"] == 5


def test_the_cosine_orders_texts_and_is_0_for_an_empty_rationale() -> None:
    pytest.importorskip("wordllama")

    def cosine(own: str) -> float:
        return rationale_overlap(predictions([own]))["cosine"]["value"]

    same, near, far = (
        cosine(own) for own in (TEACHER, "Three cups and four cups are seven.", "The stock market fell.")
    )
    assert same == pytest.approx(1.0) and same > near > far + 0.2
    assert cosine("") == 0.0
    assert rationale_overlap(predictions([""] * 2))["cosine"]["interval"] == (0.0, 0.0)


def test_lengths_and_copied_ngrams_by_hand() -> None:
    found = rationale_overlap(predictions(["3 red cups and 4 boxes", "cups", ""]))
    assert found["rationale_words"]["value"] == pytest.approx(7 / 3)
    assert found["rationale_words"]["quartiles"] == (0.5, 1.0, 3.5)
    assert found["copied_1grams"]["value"] == pytest.approx((5 / 6 + 1) / 2) and found["copied_1grams"]["n"] == 2
    assert found["copied_4grams"]["value"] == pytest.approx(2 / 3) and found["copied_4grams"]["n"] == 1
    assert found["copied_4grams"]["interval"] is None  # of a single example


def test_examples_without_a_rationale_of_teacher_or_student_are_left_out() -> None:
    assert rationale_overlap([prediction(0, None)]) == {}
    found = rationale_overlap([prediction(0, "Seven cups", ""), prediction(1, "Seven cups", None)])
    assert found.keys() == {"rationale_words", "copied_1grams", "empty_rationales"}


def test_intervals_take_clusters_as_independent() -> None:
    """Ten equal rationales of each cluster say no more than one."""
    lengths = [1, 2, 5, 7]
    once = [prediction(row, "w " * length) for row, length in enumerate(lengths)]
    often = [
        prediction(10 * row + i, "w " * length, cluster=str(row))
        for row, length in enumerate(lengths)
        for i in range(10)
    ]
    first, second = (rationale_overlap(each)["rationale_words"]["interval"] for each in (once, often))
    assert first == pytest.approx(second)
    half = 3.182446 * np.std(lengths, ddof=1) / 2  # Student's t with 3 degrees of freedom
    assert first == pytest.approx((3.75 - half, 3.75 + half), rel=1e-6)


def test_the_interval_over_clusters_covers() -> None:
    draw, covered = np.random.default_rng(0), 0
    for _ in range(400):
        cluster_N = np.repeat(np.arange(40), draw.integers(1, 6, 40))
        score_N = draw.normal(size=40)[cluster_N] + draw.normal(size=len(cluster_N))
        found = items_interval(score_N, cluster_N)
        covered += found.low <= 0.0 <= found.high
    assert 0.92 <= covered / 400 <= 0.98
    with pytest.raises(UserError, match="at least 2 clusters"):
        items_interval(np.ones(3), np.zeros(3))


def test_a_missing_package_is_named_in_place_of_its_value_in_json_and_table() -> None:
    with mock.patch.dict(sys.modules, {"sacrebleu": None, "rouge_score": None, "wordllama": None}):
        found = measure(parse_metrics("rationale_overlap"), predictions(OWN))
    reason = "the extra quality is not installed: pip install -e '.[quality]' (in the repository)"
    assert found.not_available["bleu"] == reason and found.not_available.keys() == {"bleu", "rouge_l", "cosine"}
    assert "rationale_words" in found.scores
    fields = {"dataset": "set", "split": "test", "n": 5, "accuracy": 1.0, "interval": (0.5, 1.0), "loss": {}}
    fields |= {"checkpoint": {"step": 1}, "truncated": {}}
    table = format_scores(fields | {"metrics": found.scores, "not_available": found.not_available})
    rows = (
        "not available BLEU with the teacher's rationale, ROUGE-L with the teacher's rationale, cosine of embeddings "
        f"with the teacher's: {reason}"
    )
    assert rows in " ".join(table.split())
    assert "quartiles" in table


def test_only_some_metrics_take_an_argument() -> None:
    assert parse_metrics("rationale_overlap:some/encoder")[1] == "rationale_overlap:some/encoder"
    with pytest.raises(UserError, match="metric 'steps' takes no argument, and 'x' is given"):
        parse_metrics("steps:x")


@pytest.mark.slow
def test_a_transformers_encoder_averages_states_over_tokens(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cups", "seven", "3", "4"]))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=8, **sizes)).eval()
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    own = ["seven cups", "3 4 cups and more cups"]
    found = measure(parse_metrics(f"rationale_overlap:{tmp_path}"), predictions(own)).scores["cosine"]

    def vector(text: str) -> Any:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    cosines = [float(torch.cosine_similarity(vector(text), vector(TEACHER), dim=0)) for text in own]
    assert found["value"] == pytest.approx(np.mean(cosines), abs=1e-5) and found["settings"] == str(tmp_path)
    absent = measure(parse_metrics("rationale_overlap:/no/such/folder"), predictions(own))
    assert absent.not_available["cosine"].startswith("encoder /no/such/folder: ")
