"""A set of a single label, smaller than a batch, is trained on, described and evaluated without a value that is nan."""

import json
from pathlib import Path
from typing import Any

import pytest
import runs

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.evaluation.job import score
from cotmi_jax.training.job import train

quick_compilation = runs.quick_compilation

SIZES = {"train": 9, "valid": 8, "test": 8}  # as few as mutual information is measured for


def finite(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {text}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
def test_one_label_class_in_batches_larger_than_the_data(tmp_path: Path) -> None:
    for split, size in SIZES.items():
        rows = [{"input": f"Is {n} a number?", "label": "yes", "rationale": f"{n} is one."} for n in range(size)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = runs.tiny_config(
        {
            **{"steps": 3, "batch_size": 16, "eval.batch_size": 16, "data.dataset": f"jsonl:{tmp_path}"},
            **{"data.vocabulary": str(VOCABULARY_PATH), "mi.monitor.every": 3},
            **{"mi.monitor.estimators": "infonce", "mi.monitor.steps": 20},
        }
    )
    workdir = tmp_path / "run"
    assert train(config, str(workdir)) == 3
    lines = [finite(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    scored = score(str(workdir), "test", checkpoint="latest")
    found = finite((scored.output / "metrics.json").read_text())
    assert found["n"] == 8 and found["information"] == {"not_available": "8 examples, at least 32 are needed"}
    described = runs.command("describe", *runs.config_flags(config), "--json")
    assert (described.code, described.err) == (0, "")
    checks = finite(described.out)["checks"]
    assert {split: (each["labels"], each["distinct_labels"]) for split, each in checks.items()} == {
        split: ({"yes": size}, 1) for split, size in SIZES.items()
    }
