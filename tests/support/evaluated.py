"""Workdirs of evaluated runs, written as `train` and `evaluate` leave them, without a student."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cotmi_jax.config import base


def write_evaluated(folder: Path, lines: Sequence[Mapping[str, Any]], split: str = "test", **changes: Any) -> str:
    """A workdir with these predictions of a split. changes: keys of the config, "__" for a dot."""
    config = base()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    results = folder / "evaluation" / split
    results.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": config.to_dict(), "student": {}}))
    (results / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"n": len(lines), "accuracy": sum(line["correct"] for line in lines) / len(lines)}
    (results / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)
