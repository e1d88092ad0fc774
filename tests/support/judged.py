"""Evaluated runs with rationales, and a judge's run over them against a fake server."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_teacher
from evaluated import write_evaluated

from cotmi_jax.evaluation.methods import read_evaluated
from cotmi_jax.teacher.judge_items import read_items
from cotmi_jax.teacher.judging import Judging, default_output
from cotmi_jax.teacher.report import Prices
from cotmi_jax.teacher.rubric import load_rubric
from cotmi_jax.teacher.session import Endpoint, Limits, Service, request_settings

SUMS = 30


def plain(number: int) -> str:
    return f"{number} and 10 make {number + 10}."


def make_run(folder: Path, rationale: Callable[[int], str | None] = plain, size: int = SUMS, **changes: Any) -> str:
    """The workdir of an evaluated run on sums s/0, s/1, …; three neighbours share a cluster."""
    lines = [
        {
            "id": f"s/{number}",
            "input": f"What is {number} + 10?",
            "label": f"= {number + 10}",
            "predicted_label": "1",
            "correct": number % 2 == 0,
            "predicted_rationale": rationale(number),
            "cluster": f"c{number // 3}",
        }
        for number in range(size)
    ]
    return write_evaluated(folder, lines, **{"data.dataset": "svamp", "objective.name": "dss", **changes})


def judging(url: str | None, workdir: str, against: str | None = None, **changes: Any) -> Judging:
    """The judge's run that the command's flags would give; retries wait 10 ms."""
    options: dict[str, Any] = dict(split="test", limit=None, seed=0, rubric="default", repeats=1, min_readable=0.5)
    options |= dict(model=fake_teacher.MODEL, temperature=0.0, concurrency=4, max_retries=1, samples_per_request=None)
    assert changes.keys() <= options.keys()
    o = options | changes
    service = Service(
        Endpoint(o["model"], url, "COTMI_TEST_KEY", 5.0),
        request_settings(o["temperature"], 64, "{}"),
        Limits(o["concurrency"], o["samples_per_request"], None, None, 64, o["max_retries"], 0.01),
        Prices(None, None),
    )
    rubric = load_rubric(str(o["rubric"]), "pairwise" if against else "absolute")
    run = read_evaluated(workdir, o["split"])
    other = read_evaluated(against, o["split"]) if against else None
    items = read_items(run, other, o["split"], o["limit"], o["seed"])
    output = default_output(run, other, o["split"], service.header(rubric.digest))
    fixed = (rubric, service, o["repeats"], output, output.with_suffix(".journal.jsonl"), o["min_readable"])
    return Judging(run, other, o["split"], items, o["seed"], *fixed)


def results(judged: Judging) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a run has written: the result, and the answers by item."""
    rows = judged.items_file.read_text().splitlines()
    return json.loads(judged.output.read_text()), [json.loads(row) for row in rows]


def shown_explanations(text: str) -> list[str]:
    """The rationales in a request with the default rubric, in their order."""
    return re.findall(r"<explanation\w*>\n(.*?)\n</explanation", text, flags=re.DOTALL)


def number_of(text: str) -> int:
    """The number of the sum that a request is about."""
    return int(re.search(r"What is (\d+) \+ 10", text).group(1))  # type: ignore[union-attr]
