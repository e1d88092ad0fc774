"""The difficulty of rationales for a student, and the command that writes it as weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import runs

from cotmi_jax.data.example import Example
from cotmi_jax.data.rationale_weights import weigh
from cotmi_jax.data.run_data import load_data
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.difficulty import Difficulties, measure_difficulty, summary, weight_rows
from cotmi_jax.evaluation.probe import CrossFitted

quick_compilation = runs.quick_compilation


def examples(num: int = 12) -> list[Example]:
    """Rationale k of example n is "r{n}.{k}"; the last example has none."""
    made = [
        Example(
            f"s/train/{n}",
            f"q{n}",
            "yes",
            f"r{n}.0",
            more=((f"r{n}.1", 2.0), (f"r{n}.2", 0.0)) if n == 1 else (),
            cluster="pair" if n < 2 else "",
        )
        for n in range(num - 1)
    ]
    return [*made, Example(f"s/train/{num - 1}", "q", "no", "", weight=0.0)]


def count_tokens(labels: Sequence[str]) -> np.ndarray:
    return np.full(len(labels), 2)


def log_p(asked: Sequence[Example], group_N: np.ndarray, steps: int, batch_size: int) -> CrossFitted:
    """In place of students: the log-probability is −0.2 times the number of the rationale's example."""
    assert (steps, batch_size) == (7, 4)
    assert [each.input for each in asked[:3]] == ["q0</s>r0.0", "q1</s>r1.0", "q1</s>r1.1"]
    assert all(each.label == "yes" and each.more == () for each in asked)
    assert len(set(group_N[:3])) == 1 and len(set(group_N)) == len(asked) - 2  # clusters stay together
    number_N = np.array([float(each.input.split("r")[1].split(".")[0]) for each in asked])
    return CrossFitted(-0.2 * number_N, number_N < 6)


def test_the_weight_is_the_inverse_perplexity_of_the_label() -> None:
    found = measure_difficulty(log_p, examples(), count_tokens, 7, 4)
    rows = weight_rows(examples(), found, 0.0)
    assert [row["id"] for row in rows] == [f"s/train/{n}" for n in range(12)]
    assert rows[4] == {
        "id": "s/train/4",
        "weight": [pytest.approx(np.exp(-0.4))],
        "perplexity": [pytest.approx(np.exp(0.4))],
        "exact": [True],
    }
    tenth = pytest.approx(np.exp(-0.1))
    assert rows[1]["weight"] == [tenth, tenth, 0.0] and rows[1]["exact"] == [True, True, None]
    assert rows[11] == {"id": "s/train/11", "weight": [0.0], "perplexity": [None], "exact": [None]}
    assert summary(found).startswith("12 rationales: a student that reads them answers 58.3% of the labels")


def test_a_share_of_the_rationales_is_selected() -> None:
    found = Difficulties(np.array([3.0, 1.0, 2.0, 1.5, 9.0]), np.ones(5, bool))
    assert found.weights(0.5).tolist() == [0, 1, 1, 1, 0]
    assert found.weights(0.2).tolist() == [0, 1, 0, 0, 0]
    assert found.weights(1.0).tolist() == [1] * 5


def test_few_clusters_are_refused() -> None:
    with pytest.raises(UserError, match="9 clusters of train examples have a rationale: .* at least 10"):
        measure_difficulty(log_p, examples(11), count_tokens, 7, 4)


@pytest.mark.slow
def test_the_command_writes_weights_that_a_run_reads(tmp_path: Path) -> None:
    file = tmp_path / "weights.jsonl"
    config = runs.tiny_config({"objective.name": "dss", "data.rationale_weights": "correct"})
    flags = [*runs.config_flags(config), f"--output={file}", "--steps=2", "--batch_size=8"]
    result = runs.command("weigh", *flags)
    assert result.code == 0 and f"--config.data.rationale_weights=jsonl:{file}" in result.out, result
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    config.data.rationale_weights = "uniform"
    train = load_data(config).corpus.splits["train"]
    right = [each.id for each in weigh("correct", train).examples if each.weight > 0]
    assert [row["id"] for row in rows] == [each.id for each in train]
    assert [row["id"] for row in rows if row["weight"] != [0.0]] == right
    assert all(0.0 < row["weight"][0] < 1.0 for row in rows if row["id"] in right)
    config.data.rationale_weights = f"jsonl:{file}"
    found = load_data(config).corpus.splits["train"]
    assert [each.weight for each in found] == [row["weight"][0] for row in rows]
    again = runs.command("weigh", *runs.config_flags(config), f"--output={file}")
    runs.assert_refused(again, "this command writes such a file")
