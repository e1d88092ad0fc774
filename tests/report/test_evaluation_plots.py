"""Plots of an evaluation and its table for the terminal, of made-up predictions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cotmi_jax.evaluation.calibration_report import calibrate
from cotmi_jax.evaluation.label_scores import label_table
from cotmi_jax.evaluation.metrics import OF_CHOICES, OF_LABELS, measure, parse_metrics
from cotmi_jax.report import plots
from cotmi_jax.report.evaluation_plots import draw_evaluation
from cotmi_jax.report.terminal import WIDTH, format_scores

LABELS = ["entailment", "neutral", "contradiction, or something else that is long"]


def answers(size: int) -> list[Any]:
    """An overconfident student that gives no label twice."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(size):
        gold, said = draw.choice(3, 2)
        label = LABELS[said] if number > 1 else ""
        candidates = [{"label": LABELS[(said + rank) % 3], "log_p": -0.1 - 2.0 * rank} for rank in range(3)]
        made.append(
            {"id": f"esnli/test/{number}", "label": LABELS[gold], "predicted_label": label, "choices": LABELS}
            | {"correct": label == LABELS[gold], "confidence": draw.uniform(0.8, 1.0), "candidates": candidates}
        )
    return made


def evaluated(made: list[Any]) -> dict[str, Any]:
    """metrics.json of an evaluation."""
    found = measure(parse_metrics(",".join([*OF_CHOICES, *OF_LABELS])), made)
    accuracy = found.scores["accuracy"]
    metrics: dict[str, Any] = {"dataset": "esnli", "split": "test", "n": len(made), "loss": {"predict": 0.5}}
    metrics |= {"accuracy": accuracy["value"], "interval": accuracy["interval"], "metrics": found.scores}
    metrics |= {"truncated": {}, "checkpoint": {"which": "best", "step": 9}, "not_available": found.not_available}
    metrics |= {"labels": label_table(made, draws=20), "calibration": calibrate(made, made, draws=20)}
    return metrics


@pytest.fixture(autouse=True)
def low_resolution() -> Iterator[None]:
    image = plots._image
    with mock.patch.object(plots, "_image", lambda figure, kind: (figure.set_dpi(20), image(figure, kind))[1]):
        yield


@pytest.mark.slow
def test_every_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    made = answers(60)
    names = draw_evaluation(evaluated(made), made, tmp_path)
    assert names == [
        f"{name}.{kind}" for name in ("reliability", "risk_coverage", "confusion") for kind in ("png", "svg")
    ]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    texts = {name: (tmp_path / name).read_text() for name in names if name.endswith("svg")}
    assert ">a calibrated student (95%)<" in texts["reliability.svg"] and ">among the choices, 60" in str(texts)
    assert ">no label<" in texts["confusion.svg"] and ">contradiction, or…<" in texts["confusion.svg"]


@pytest.mark.slow
def test_what_is_not_available_is_not_drawn(tmp_path: Path) -> None:
    made = [each | {"candidates": [], "choices": [], "label": "( 1 + 1 )"} for each in answers(3)]
    names = draw_evaluation(evaluated(made), made, tmp_path)
    assert [name for name in names if name.endswith("png")] == ["reliability.png", "risk_coverage.png"]
    assert draw_evaluation({"metrics": {}}, made, tmp_path) == []


def test_the_table_fits_a_terminal_and_says_what_is_out_of_the_ordinary() -> None:
    made = answers(60)
    metrics = evaluated(made) | {"not_available": {"bleu": "a reason of many words " * 9}}
    text = format_scores(metrics)
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    joined = " ".join(text.split())
    part = metrics["calibration"]["sequence"]
    assert f"right: overconfident by {100 * part['overconfidence']['value']:.1f} points" in joined
    assert "outputs that hold no label 2 of 60, 3.3%" in joined and "macro-F1 of labels" in joined
    floor = part["errors"]["smooth_ece"]["noise_floor"]
    assert f"(a calibrated student: {floor['low']:.3f} to {floor['high']:.3f})" in joined
    assert "sequence_brier" not in joined and "after temperature" in joined
    long = format_scores(metrics | {"metrics": metrics["metrics"] | {"x" * 60: made_score()}})
    assert f"{'x' * 60}\n" in long and max(map(len, long.splitlines())) <= WIDTH


def made_score() -> dict[str, Any]:
    return {"value": 0.5, "interval": None, "n": 60}
