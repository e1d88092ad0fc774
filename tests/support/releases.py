"""Synthetic data sets in the layout of the Distilling Step-by-Step release."""

import json
from pathlib import Path


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_release(root: Path, name: str, rows: list[dict], *completions: list[str], split: str = "train") -> Path:
    """Writes one split of a data set, with one file for each list of completions; returns the gold file."""
    (root / name / "llm").mkdir(parents=True, exist_ok=True)
    for i, texts in enumerate(completions):
        (root / name / "llm" / f"{split}_CoT_{i}.json").write_text(json.dumps(texts))
    gold = root / name / f"{name}_{split}.json"
    gold.write_text(json_lines(rows), encoding="utf-8")
    return gold


def cqa_row(choices: list[str]) -> dict:
    return {"question": "What floats?", "choices": choices, "answer": "a cork"}


def nli_row(label: object) -> dict:
    return {"premise": "A boy hums.", "hypothesis": "A boy sings.", "label": label}
