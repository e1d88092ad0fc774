"""A judge's run: rationales of evaluated workdirs → requests → journal → scores or preferences with intervals."""

import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.judgments import SCALE, Value, consistent, summarize_preferences, summarize_scores
from cotmi_jax.evaluation.methods import EvaluatedRun
from cotmi_jax.files import is_remote
from cotmi_jax.teacher.asking import MAX_CONSECUTIVE_UNREADABLE, Request
from cotmi_jax.teacher.journal import Choice, Records, read_journal
from cotmi_jax.teacher.judge_answers import read_choice, read_score
from cotmi_jax.teacher.judge_items import Item, is_same_model, teacher_models
from cotmi_jax.teacher.judge_report import judge_lines
from cotmi_jax.teacher.prompt import Message
from cotmi_jax.teacher.report import journal_totals
from cotmi_jax.teacher.rubric import Rubric
from cotmi_jax.teacher.session import (
    EXIT_INTERRUPTED,
    Phase,
    Service,
    check_paths,
    choices_to,
    collect,
    describe_sample,
    estimate,
    open_journal,
    write_output,
)

_POSITIONS = {"1": 1.0, "tie": 0.0, "2": -1.0}
_NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Judging:
    """A judge's run as the flags describe it.

    run: whose rationales are scored or, with `other`, compared. items: what `read_items` has drawn, of `examples` in
    the split. repeats: answers to each request. The journal accepts responses to one model, rubric and settings only.
    min_readable: the least share of answers that can be read; 0 accepts any.
    """

    run: EvaluatedRun
    other: EvaluatedRun | None
    split: str
    items: Sequence[Item]
    seed: int
    rubric: Rubric
    service: Service
    repeats: int
    output: Path
    journal: Path
    min_readable: float = 0.5

    @property
    def header(self) -> dict[str, object]:
        """The first line of the journal."""
        return self.service.header(self.rubric.digest)

    @property
    def items_file(self) -> Path:
        """The file with the answers by item."""
        return self.output.with_suffix(".items.jsonl")

    def judge(self) -> int:
        """Requests the answers that the journal lacks, then writes and prints the results. Returns the exit status.

        Raises:
          UserError: the run cannot continue; or, after the results have been written, answers are missing or too few
            of them can be read.
        """
        self._check()
        with open_journal(self.journal, self.header) as journal:
            print(self._estimate(journal.records), file=sys.stderr)
            is_readable = self._is_readable if self.min_readable > 0 else None
            phases = [Phase("judging", self._requests)]
            found = collect(self.service, journal, self._conversation, phases, is_readable)
            if found.interrupted:
                return EXIT_INTERRUPTED
            records = journal.records
        answers = [answer for item in self.items for group in self._answers(records, item) for answer in group]
        unreadable = [answer for answer in answers if not self._is_readable(answer)]
        missing = [request.id for request in self._requests(records)]
        if len(unreadable) < len(answers):
            self._write(records, answers, len(unreadable), set(missing))
        self._check_readable(answers, unreadable, found.unreadable)
        if missing:
            raise UserError(
                f"{len(set(missing))} of {len(self.items)} items are missing answers (first: {missing[0]}: "
                f"{found.failed.get(missing[0], 'not answered')}); the same command requests them again"
            )
        return 0

    def dry_run(self) -> None:
        """Prints the first conversation and an estimate of requests, tokens and cost; sends and writes nothing."""
        self._check()
        first = next(item for item in self.items if item.status == "judged")
        for message in self.rubric.conversation(first.texts(self.rubric)[0]):
            print(f"[{message['role']}]\n{message['content']}\n")
        print(self._estimate(read_journal(self.journal, self.header)))

    def _check(self) -> None:
        results = [
            Path(run.workdir) / "evaluation" / self.split / name
            for run in (self.run, self.other)
            if run is not None and not is_remote(run.workdir)
            for name in ("metrics.json", "predictions.jsonl")
        ]
        check_paths(self.journal, (self.output, self.items_file), results)
        if not any(item.status == "judged" for item in self.items):
            counts = Counter(item.status for item in self.items)
            raise UserError(
                f"nothing to judge: of {len(self.items)} items {counts['empty']} have an empty rationale and "
                f"{counts['identical']} the same rationale twice; raise --limit, or judge another run"
            )

    def _estimate(self, records: Records) -> str:
        requests = self._requests(records)
        count, cost = estimate(requests, self._conversation, self.service)
        return f"{count} requests about {len({request.id for request in requests})} of {len(self.items)} items: {cost}"

    def _conversation(self, request: Request) -> list[Message]:
        return self.rubric.conversation(request.text)

    def _is_readable(self, answer: Choice) -> bool:
        return (read_score(answer) if self.other is None else read_choice(answer)) is not None

    def _requests(self, records: Records) -> list[Request]:
        """A request for each message that has fewer answers than wanted; of a pair one for each order."""
        return [
            Request(item.id, text, missing)
            for item in self.items
            if item.status == "judged"
            for text in item.texts(self.rubric)
            if (missing := self.repeats - len(choices_to(records, item.id, text))) > 0
        ]

    def _answers(self, records: Records, item: Item) -> list[list[Choice]]:
        """The answers that are used, by message."""
        if item.status != "judged":
            return []
        return [choices_to(records, item.id, text)[: self.repeats] for text in item.texts(self.rubric)]

    def _ratings(self, records: Records, item: Item) -> np.ndarray:
        """Scores by repeat or, of a pair, preferences by repeat and order (1: that of `run`); nan: none can be read."""
        groups = self._answers(records, item)
        if self.other is None:
            read = [float(read_score(answer) or _NAN) for answer in groups[0]]
            return np.array(read + [_NAN] * (self.repeats - len(read)))
        rating_Rx2 = np.full((self.repeats, 2), _NAN)
        for order, (sign, answers) in enumerate(zip((1, -1), groups, strict=True)):
            for repeat, answer in enumerate(answers):
                rating_Rx2[repeat, order] = sign * _POSITIONS.get(read_choice(answer) or "", _NAN)
        return rating_Rx2

    def _write(self, records: Records, answers: Sequence[Choice], unreadable: int, missing: Set[str]) -> None:
        """Write items and summary, and print it. missing: ids of items that lack an answer."""
        judged = [item for item in self.items if item.status == "judged"]
        rating_NxRxO = np.stack([self._ratings(records, item) for item in judged])
        rated_N = np.isfinite(rating_NxRxO if self.other is None else consistent(rating_NxRxO)).any(axis=1)
        counts = Counter(item.status for item in self.items)
        items: dict[str, Any] = {"of": len(self.run.predictions), "drawn": len(self.items)}
        items |= {"judged": int(rated_N.sum()), "empty": counts["empty"], "identical": counts["identical"]}
        empty = [
            sum(not rationale for rationale in rationales)
            for rationales in zip(*(item.rationales for item in self.items), strict=True)
        ]
        items["empty_by_run"] = empty
        unreadable_N = [not rated and item.id not in missing for item, rated in zip(judged, rated_N, strict=True)]
        items |= {"missing": len(missing), "unreadable": sum(unreadable_N)}
        result = self._describe(records) | {
            "items": items,
            "answers": {"n": len(answers), "unreadable": unreadable, "cut_by_length": _count_cut(answers)},
        }
        if rated_N.any():
            result |= self._summarize(
                rating_NxRxO[rated_N], [item for item, kept in zip(judged, rated_N, strict=True) if kept]
            )
        write_output(self.items_file, "".join(json.dumps(row) + "\n" for row in self._rows(records)))
        write_output(self.output, json.dumps(result, indent=1) + "\n")
        print("\n".join([*judge_lines(result), f"\nwritten: {self.output}, {self.items_file.name}"]))

    def _summarize(self, rating_NxRxO: np.ndarray, items: Sequence[Item]) -> dict[str, Any]:
        words_Nx2 = np.array([item.words for item in items])
        clusters = np.array([item.cluster for item in items])
        values: dict[str, Value]
        if self.other is None:
            values = summarize_scores(rating_NxRxO, words_Nx2[:, 0], clusters)
            counts = {"score_counts": {str(score): int((rating_NxRxO == score).sum()) for score in SCALE}}
        else:
            values, counts = summarize_preferences(rating_NxRxO, words_Nx2, clusters), {}
        return counts | {
            "words": words_Nx2.mean(axis=0).tolist(),
            "clusters": len(set(clusters)),
            "values": {name: value for name, value in values.items() if "not_available" not in value},
            "not_available": {
                name: value["not_available"] for name, value in values.items() if "not_available" in value
            },
        }

    def _describe(self, records: Records) -> dict[str, Any]:
        """The fields of the result that say what was judged, by whom and how."""
        totals = journal_totals(records, self.service.prices)
        runs = [self.run] if self.other is None else [self.run, self.other]
        model = self.service.endpoint.model
        models = Counter(record.model for responses in records.values() for record in responses)
        found = [teacher_models(run.config) for run in runs]
        teachers = list(dict.fromkeys(name for names, _ in found for name in names))
        return {
            "mode": self.rubric.mode,
            "workdirs": [str(run.workdir) for run in runs],
            "checkpoints": [run.metrics.get("checkpoint") for run in runs],
            "data": self.run.config["data.dataset"],
            "split": self.split,
            "seed": self.seed,
            "model": model,
            "models": dict(models),
            "rubric": str(self.rubric.path),
            "prompt": self.rubric.digest,
            "settings": dict(self.service.settings),
            "repeats": self.repeats,
            "teachers": teachers,
            "all_teachers_known": all(known for _, known in found),
            "judge_is_teacher": any(is_same_model(name, each) for name in (model, *models) for each in teachers),
            "responses": totals.responses,
            "responses_without_count": totals.uncounted,
            "tokens_in": totals.tokens_in,
            "tokens_out": totals.tokens_out,
            "cost": totals.cost,
        }

    def _rows(self, records: Records) -> list[dict[str, Any]]:
        """The answers by item; a score or preference is None where it is missing or cannot be read."""
        name, rows = ("scores" if self.other is None else "preferences"), []
        for item in self.items:
            row: dict[str, Any] = {"id": item.id, "cluster": item.cluster, "status": item.status}
            row["words"] = list(item.words)
            if item.status == "judged":
                rating = self._ratings(records, item)
                present: Any = np.where(np.isnan(rating), 0, rating).astype(int).astype(object)
                present[np.isnan(rating)] = None
                row[name] = present.tolist()
            rows.append(row)
        return rows

    def _check_readable(self, answers: Sequence[Choice], unreadable: Sequence[Choice], stopped: bool) -> None:
        """Raises UserError for a run that its answers ended, and where too few can be read."""
        readable = len(answers) - len(unreadable)
        if not stopped and readable >= self.min_readable * len(answers) and (readable or not answers):
            return
        if stopped:
            limit = f"the run ended after {MAX_CONSECUTIVE_UNREADABLE} items in a row without a readable answer"
        elif readable:
            limit = f"fewer than --min_readable={self.min_readable:g} of them"
        else:
            limit = "and without one there is no result"
        if 2 * _count_cut(unreadable) > len(unreadable):
            remedy = "they were cut by the limit on tokens: raise --max_tokens"
        else:
            remedy = f"correct a copy of {self.rubric.path} so that the model answers in its form (--rubric=)"
        raise UserError(
            f"of {len(answers)} answers {readable} state what the rubric asks for, {limit}; one is "
            f"{describe_sample(unreadable[-1])}: {remedy}"
        )


def _count_cut(answers: Sequence[Choice]) -> int:
    return sum(answer.finish_reason == "length" for answer in answers)


def default_output(run: EvaluatedRun, other: EvaluatedRun | None, split: str, header: dict[str, object]) -> Path:
    """The file of results: in the evaluation of `run`, with a name for each judge, rubric, settings and other run."""
    if is_remote(run.workdir):
        raise UserError(f"{run.workdir} is in a bucket, where no journal can be written: give --output, a local file")
    against = "" if other is None else f"-against-{_slug(other.workdir.name)}"
    identity = json.dumps([header, None if other is None else str(other.workdir)], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return Path(run.workdir) / "evaluation" / split / f"judge-{_slug(str(header['model']))}{against}-{digest}.json"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-.")[:60]
