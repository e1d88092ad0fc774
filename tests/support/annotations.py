"""Helpers for the tests of annotation: questions, runs, and readers of the output."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_teacher import MODEL

from cotmi_jax.teacher.annotate import Annotation, Policy
from cotmi_jax.teacher.prompt import load_prompt
from cotmi_jax.teacher.questions import load_questions
from cotmi_jax.teacher.session import Endpoint, Limits, Prices, Service, request_settings

Row = dict[str, Any]


def sums(count: int, wrong_gold: Sequence[int] = ()) -> list[Row]:
    """Questions q0, q1, … "What is i + 10?"; the gold label is correct except for the indices in wrong_gold."""
    return [
        {"id": f"q{i}", "input": f"What is {i} + 10?", "label": str(i + 10 + (i in wrong_gold))} for i in range(count)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def annotation(folder: Path, url: str | None, rows: Sequence[Row], **changes: Any) -> Annotation:
    """A run over `rows` that writes r.jsonl, r.journal.jsonl and r.report.json to the folder; retries wait 10 ms."""
    options: dict[str, Any] = dict(
        samples=1, rationalize=False, prompt="generic", model=MODEL, settings={}, min_readable=0.5
    )
    options |= dict(
        rationale="completion",
        concurrency=4,
        samples_per_request=None,
        requests_per_minute=None,
        tokens_per_minute=None,
    )
    options |= dict(
        max_retries=3, backoff=0.01, timeout=5.0, policy=Policy("drop", 0.25, 1.0), prices=Prices(None, None)
    )
    assert changes.keys() <= options.keys()
    o = options | changes
    prompt = load_prompt(str(o["prompt"])).with_source(o["rationale"])
    return Annotation(
        questions=load_questions(str(write_rows(folder / "q.jsonl", rows)), None, "", None, prompt.rule.kind),
        prompt=prompt,
        service=service(url, o),
        samples=o["samples"],
        rationalize=o["rationalize"],
        policy=o["policy"],
        output=folder / "r.jsonl",
        journal=folder / "r.journal.jsonl",
        min_readable=o["min_readable"],
    )


def service(url: str | None, o: Row) -> Service:
    """The server at `url`, asked with these options."""
    limits = (o["concurrency"], o["samples_per_request"], o["requests_per_minute"], o["tokens_per_minute"])
    return Service(
        Endpoint(o["model"], url, "COTMI_TEST_KEY", o["timeout"]),
        request_settings(0.7, 64, json.dumps(o["settings"])),
        Limits(*limits, 64, o["max_retries"], o["backoff"]),
        o["prices"],
    )


def report(folder: Path) -> Row:
    return json.loads((folder / "r.report.json").read_text())
