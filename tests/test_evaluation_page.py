"""docs/evaluation.md: its examples are run from the text of the page, and its keys are those of metrics.json."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from paths import REPOSITORY

from cotmi_jax.evaluation.calibration_report import calibrate
from cotmi_jax.evaluation.label_scores import label_table
from cotmi_jax.evaluation.measures import MEASURES, markdown
from cotmi_jax.evaluation.metrics import METRICS

PAGE = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def printed(example: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(example, {})
    return output.getvalue()


def predictions(size: int) -> list:
    draw, labels = np.random.default_rng(1), ["yes", "no"]
    made = []
    for number in range(size):
        confidence, gold = draw.uniform(0.5, 1.0), labels[number % 2]
        said = gold if draw.random() < confidence else labels[1 - number % 2]
        other = labels[said == "yes"]
        candidates = [{"label": said, "log_p": np.log(confidence)}, {"label": other, "log_p": np.log(1 - confidence)}]
        made.append(
            {"id": str(number), "label": gold, "predicted_label": said, "correct": said == gold, "choices": labels}
            | {"confidence": confidence, "candidates": candidates}
        )
    return made


def test_the_example_on_arrays_prints_what_the_page_shows() -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert printed(EXAMPLES[0]) == shown


def test_the_example_on_predictions_says_both_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/esnli/evaluation/test"
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in predictions(100)))
    words = r"no worse than a calibrated student's would look; .* points \(95% interval .*\)\n"
    assert re.fullmatch(f"generated label: {words}among the choices: {words}", printed(EXAMPLES[1]))


def test_the_page_has_every_key() -> None:
    made = predictions(60)
    part = calibrate(made, made, draws=5)["closed_set"]
    keys = {*part, *label_table(made, draws=5), *(f"errors.{name}" for name in part["errors"])}
    keys -= {"n", "clusters", "confidence", "all_equal", "errors", "gold_not_candidate", "macro_f1"}
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()


def test_the_page_has_the_table_of_measures() -> None:
    """Write it anew with `measures.markdown()` when a measure changes."""
    assert markdown() in PAGE


def test_the_page_names_the_values_of_rationales() -> None:
    """Of families of values, such as covariation_both_correct, the first is named in full."""
    families = ("covariation_", "invariance_", "changed_early_", "agreement", "las_", "v_information_")
    values = {name for name, measure in MEASURES.items() if measure.path[0] == "metrics"}
    names = {name for name in values if not name.startswith(families)}
    named = {name for name in names if f"`{name}`" in PAGE}
    labels = {name for name in names if name.startswith(("sequence_", "closed_set_")) or name in METRICS}
    assert names - named - labels <= {"label_macro_f1", "unparsable"} and "simulated_both_masked" in named
    for name in (
        "covariation_label",
        "invariance_label",
        "changed_early_0",
        "agreement_permuted",
        "las",
        "v_information",
    ):
        assert f"`{name}`" in PAGE and name in values
    assert {"covariation", "interventions", "simulatability", "rationale_overlap"} <= METRICS.keys()
    assert all(
        f"| `{name}` |" in PAGE for name in ("covariation", "interventions", "simulatability", "rationale_overlap")
    )
