"""Evaluated runs and a study with all that a page shows, written without a student; and a reader of its tables."""

import itertools
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from evaluated import write_evaluated

from cotmi_jax.evaluation.calibration_report import calibrate
from cotmi_jax.study.journal import Journal

CHOICES = ("entailment", "neutral", "contradiction")
# Ends of elements and comments, scripts, templates, line and paragraph separators, right-to-left text and its override,
# joined emoji, half of a surrogate pair, a null character; the browser marks what it executes as window.hacked.
HOSTILE = (
    "</script></style></textarea><script>window.hacked = 1</script><img src=http://example.com/x onerror='hacked = 1'>"
    '"><svg onload=hacked=1>--><!-- ]]> \u2028\u2029 \u202e مرحبا بالعالم \u202c 👩‍👩‍👧‍👦 \ud83d \x00 '
    "&lt;b&gt; &amp; {{ 7919 * 7927 }} {% raw %} "
)


def predictions(seed: int, size: int, accuracy: float, text: str = "", rationales: bool = True) -> list[dict[str, Any]]:
    """Answers of a run, three examples a cluster. text: is added to every field that holds any."""
    draw, lines = np.random.default_rng(seed), []
    for number in range(size):
        gold = CHOICES[number % 3]
        confidence = float(draw.uniform(0.4, 0.99))
        answer = gold if draw.random() < accuracy else CHOICES[(number + 1) % 3]
        others = [label for label in CHOICES if label != answer]
        scores = [confidence, *((1 - confidence) * share for share in (0.6, 0.4))]
        candidates = [
            {"label": label + text, "log_p": float(np.log(score))}
            for label, score in zip([answer, *others], scores, strict=True)
        ]
        line = {"id": f"set/test/{number}{text}", "input": f"Premise {number}: a dog runs.{text}", "label": gold + text}
        line |= {"predicted_label": answer + text, "correct": answer == gold, "cluster": f"c{number // 3}{text}"}
        line |= {"teacher_label": gold + text, "teacher_rationale": f"It follows.{text}"}
        line["predicted_rationale"] = f"A dog is an animal, so {answer}.{text}" if rationales else None
        line |= {"choices": [label + text for label in CHOICES], "confidence": confidence, "candidates": candidates}
        lines.append(line)
    return lines


def write_run(
    folder: Path, seed: int, accuracy: float, *, size: int = 45, text: str = "", logs: bool = True, **changes: Any
) -> str:
    """The workdir of an evaluated run with calibration, metrics and, if asked, the logs of its training."""
    rationales = changes.get("objective__name") != "standard"
    lines = predictions(seed, size, accuracy, text, rationales)
    workdir = write_evaluated(folder, lines, seed=seed, **changes)
    path = folder / "evaluation" / "test" / "metrics.json"
    metrics = json.loads(path.read_text()) | {"calibration": calibrate(lines, "no valid split", draws=20)}
    metrics["metrics"] = {"rouge_l": {"value": 0.4 + seed / 100, "interval": None, "n": size}} if rationales else {}
    metrics["metrics"][f"own_metric{text}"] = {"value": float(seed), "interval": None, "n": size}
    metrics["not_available"] = {"bleu": f"no package{text}"}
    path.write_text(json.dumps(metrics))
    if logs:
        write_logs(folder, seed, text)
    return workdir


def write_logs(folder: Path, seed: int, text: str = "") -> None:
    """metrics.jsonl and starts.jsonl of 30 steps."""
    lines: list[dict[str, float]] = []
    for step in (10, 20, 30):
        timings = {"train/seconds_step": 6.0, "train/seconds_input": 1.0, "train/seconds_per_step": 0.5}
        valid = {"valid/accuracy": 0.4 + step / 100 + seed / 50, "valid/predict": 2.0 - step / 30, "valid/explain": 1.0}
        changes = {f"mi/{name}_change": step / 30 for name in ("infonce", "x_z", "z_y")}
        lines += [{"step": step} | each for each in (timings, valid, changes | {"mi/within": 0.1})]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "starts.jsonl").write_text(json.dumps({"step": 0, "machine": f"Toy processor, 2 cores{text}"}) + "\n")


def write_arms(folder: Path, seeds: int = 2, **options: Any) -> list[str]:
    """Workdirs of the methods dss, cotmi and standard."""
    arms = {"dss": 0.6, "cotmi": 0.9, "standard": 0.6}
    return [
        write_run(folder / f"{name}{seed}", seed, accuracy, objective__name=name, **options)
        for name, accuracy in arms.items()
        for seed in range(seeds)
    ]


def write_study(
    folder: Path,
    text: str = "",
    *,
    datasets: Sequence[str] = ("esnli", "cqa"),
    fractions: Sequence[float] = (1.0,),
    size: int = 45,
) -> Path:
    """A study that is half done: of each data set the arms are finished with two seeds but the last, which has none.

    fractions: of the train split, with which data sets are combined.
    """
    journal = Journal(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"version": 1, "name": f"toy{text}", "claim": f"Does the term help?{text}", "evaluation": {"split": "test"}}
    journal.append({"event": "study", **facts})
    planned = []
    for number, (dataset, fraction) in enumerate(itertools.product(datasets, fractions)):
        for arm, accuracy in {"dss": 0.6, "cotmi": 0.9, "standard": 0.6}.items():
            for seed in (0, 1):
                name = f"{number}-{arm}-{seed}"
                planned.append(name)
                settings = {"objective.name": arm, "data.dataset": dataset, "data.subsample": fraction}
                event = {"event": "run", "name": name, "arm": arm + text, "seed": seed, "settings": settings}
                journal.append(event)
                if arm != "standard":
                    changes = {"objective__name": arm, "data__dataset": dataset, "data__subsample": fraction}
                    write_run(folder / "runs" / name, seed, accuracy, size=size, text=text, **changes)
                    journal.append({"event": "done", "name": name, "seconds": 21.0})
    journal.append({"event": "running", "name": "0-standard-0", "host": f"here{text}", "pid": 1})
    journal.append({"event": "failed", "name": "0-standard-1", "seconds": 3.0, "reason": f"out of memory{text}"})
    journal.append({"event": "plan", "runs": planned})
    return folder


class Page(HTMLParser):
    """What a page holds: counts of elements, texts of the cells of its tables, and the contents of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" not in self._open:
            self.text += data
            if {"td", "th"} & set(self._open):
                self.tables[-1][-1][-1] += data

    def rows(self, header: str) -> dict[str, dict[str, str]]:
        """The first table that has a column with this name: by the first cell of each row its cells by column."""
        table = next(each for each in self.tables if header in [cell.strip() for cell in each[0]])
        names = [" ".join(cell.split()) for cell in table[0]]
        rows = [[" ".join(cell.split()) for cell in row] for row in table[1:]]
        return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def block(page: Page) -> Mapping[str, Any]:
    """The examples of a page, as its script reads them."""
    found: Mapping[str, Any] = json.loads(page.scripts[0])
    return found
