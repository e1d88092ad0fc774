"""The benchmark of rules that select a checkpoint: draws by cluster, what each rule selects, regrets, and the table."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import selection
from benchmarks.selection import SETTINGS, Study, Valid, draw_rows, regrets, selected
from cotmi_jax.errors import UserError
from cotmi_jax.objectives.objective import Objective

DSS = Objective("dss", alpha=0.5)


def line(number: int, correct: bool, loss: float, log_p: float) -> dict[str, Any]:
    """A prediction of an example with two choices, in clusters of two."""
    other = math.log1p(-math.exp(log_p))
    return {
        **{"id": str(number), "cluster": f"c{number // 2}", "label": "yes", "correct": correct},
        **{"loss": {"predict": 2 * loss, "explain": 5 * loss}, "tokens": {"predict": 2, "explain": 5}},
        "candidates": [{"label": "yes", "log_p": log_p}, {"label": "no", "log_p": other}],
    }


def made_run(size: int = 80) -> dict[str, Any]:
    """Three checkpoints: the first has the best loss, the second the best accuracy, the last the best log score."""
    draw = np.random.default_rng(0)
    valid = []
    for correct, loss, preferred in ((0.6, 0.1, 0.6), (0.9, 0.2, 0.7), (0.7, 0.3, 0.95)):
        p_N = np.where(np.arange(size) < preferred * size, 0.8, 0.2).tolist()  # of gold among its two choices
        valid.append([line(row, draw.random() < correct, loss, math.log(p)) for row, p in enumerate(p_N)])
    scores = [{"accuracy": 0.5 + 0.1 * step, "predict": 0.1 * step, "explain": 0.3} for step in range(3)]
    test = [each | {"agreement": None if step else 0.5} for step, each in enumerate(scores)]
    return {"steps": [1, 2, 3], "alpha": 0.5, "valid": valid, "test": test}


def test_each_rule_selects_as_training_does() -> None:
    valid, rows = Valid.of(made_run()["valid"]), np.arange(80)
    chosen = {rule: selected(valid, rows, rule, DSS) for rule in selection.RULES}
    assert chosen == {"loss": 0, "label_loss": 0, "accuracy": 1, "log_score": 2, "last": 2}
    first = valid.scores(rows, "log_score")[0]
    assert first["predict"] == pytest.approx(0.1) and first["explain"] == pytest.approx(0.1)
    # At the best temperature the probability of a preferred choice is the share of those that are gold.
    assert first["log_score"] == pytest.approx(0.6 * math.log(0.6) + 0.4 * math.log(0.4), abs=1e-6)
    # Equal checkpoints: the first, as training keeps the earlier student.
    assert selected(Valid.of([made_run()["valid"][1]] * 3), rows, "accuracy", DSS) == 0


def test_rows_are_drawn_by_cluster_with_replacement() -> None:
    cluster_N = np.repeat(np.arange(30), 2)
    drawn = draw_rows(cluster_N, 51, np.random.default_rng(0))
    assert len(drawn) == 51 and len(set(drawn.tolist())) < 51
    assert (cluster_N[drawn[0:50:2]] == cluster_N[drawn[1:50:2]]).all() and (np.diff(drawn[:50])[::2] == 1).all()


def test_regrets_are_differences_to_the_best_checkpoint_on_test() -> None:
    found = regrets(made_run(), 50, draws=20)
    assert found["last"] == pytest.approx({"accuracy": 0.0, "predict": 0.2, "explain": 0.0})
    assert found["loss"] == pytest.approx({"accuracy": -0.2, "predict": 0.0, "explain": 0.0})
    assert -0.2 <= found["accuracy"]["accuracy"] <= 0.0 and "agreement" not in found["loss"]
    open_labels = made_run()
    for predictions in open_labels["valid"]:
        for each in predictions:
            each["candidates"] = []
    assert regrets(open_labels, 50, draws=2).keys() == {"accuracy", "label_loss", "loss", "last"}


def test_complete_runs_are_not_repeated_and_the_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(selection, "SETTINGS", {"small": SETTINGS["arithmetic"]})
    monkeypatch.setattr(Study, "command", lambda *_: pytest.fail("a complete run was repeated"))
    page = tmp_path / "page.md"
    page.write_text("<!-- selection: begin -->\n<!-- selection: end -->\n")
    for seed in range(2):
        Study(tmp_path).result("small", seed).write_text(json.dumps(made_run()))
    arguments = [f"--folder={tmp_path}", "--seeds=2", "--draws=5", f"--markdown={page}"]
    assert selection.main(arguments) == 0 and "regret" in capsys.readouterr().out
    table = page.read_text()
    assert "| label accuracy, points | n | accuracy | label_loss | loss | log_score | last |" in table
    assert "| small | 80 | " in table and "| small | 200 |" not in table and "**-20.0** [-20.0, -20.0]" in table
    assert selection.main([arguments[0], "--seeds=1", *arguments[2:]]) == 0
    table = page.read_text()
    assert "one run, thus no interval." in table and "| small | 80 | " in table and "[" not in table
    capsys.readouterr()
    assert selection.main(["--settings=other"]) == selection.main(["--seeds=0"]) == 2
    assert "no other; choose of small" in capsys.readouterr().err


def test_a_failed_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "command", lambda *_: ["false"])
    with pytest.raises(UserError, match="^arithmetic, seed 3: exit code 1, see .*arithmetic-seed3.log"):
        Study(tmp_path).run("arithmetic", 3)
