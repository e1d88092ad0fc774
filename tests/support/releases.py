"""Made-up data sets in the layout of the Distilling Step-by-Step release."""

import json
from pathlib import Path


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_release(root: Path, name: str, rows: list[dict], *parts: list[str], split: str = "train") -> Path:
    """Writes one split of a set and its completions in parts; returns the gold file."""
    (root / name / "llm").mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts):
        (root / name / "llm" / f"{split}_CoT_{i}.json").write_text(json.dumps(part))
    gold = root / name / f"{name}_{split}.json"
    gold.write_text(json_lines(rows), encoding="utf-8")
    return gold


def cqa_row(choices: list[str]) -> dict:
    return {"question": "What floats?", "choices": choices, "answer": "a cork"}


def nli_row(label: object) -> dict:
    return {"premise": "A boy hums.", "hypothesis": "A boy sings.", "label": label}
