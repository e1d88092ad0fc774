"""The whole way: questions → requests → journal → filtered rationales as the JSON Lines that training reads."""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cotmi_jax.errors import UserError
from cotmi_jax.files import replace_file
from cotmi_jax.teacher.asking import Asker, Limits, Request, estimate_tokens
from cotmi_jax.teacher.client import Teacher, read_key
from cotmi_jax.teacher.consistency import Annotated, Policy, agrees, annotate_question
from cotmi_jax.teacher.journal import Choice, Journal, Records, digest, read_journal
from cotmi_jax.teacher.prompt import Prompt
from cotmi_jax.teacher.questions import Question
from cotmi_jax.teacher.report import Prices, journal_totals, make_report, report_lines, report_row

INTERRUPTED = 130  # exit status, as of a shell's command that SIGINT ended


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where the teacher is. base_url None: the client's default, api.openai.com or $OPENAI_BASE_URL."""

    model: str
    base_url: str | None
    key_variable: str
    timeout_s: float


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One annotation as the flags describe it.

    settings are the fields of a request beside model, messages and n; with model and prompt they are what a journal is
    bound to. Policy, prices, limits and number of samples can change from run to run at no cost.
    """

    questions: Sequence[Question]
    prompt: Prompt
    endpoint: Endpoint
    settings: Mapping[str, object]
    samples: int
    rationalize: bool
    limits: Limits
    policy: Policy
    prices: Prices
    output: Path
    journal: Path

    @property
    def header(self) -> dict[str, object]:
        """First line of the journal."""
        settings = {f"body.{name}": value for name, value in self.settings.items()}
        return {"model": self.endpoint.model, "prompt": self.prompt.digest, **settings}

    def run(self) -> int:
        """Asks what the journal lacks, then writes output and report. Returns the exit status.

        Raises:
          UserError: what ended the run; or, once output and report are written, that questions are missing.
        """
        self._check_paths()
        if self.rationalize:  # what the second round asks with is checked before the first is paid for
            self.prompt.text(self.questions[0].input, self.questions[0].place, "")
        with Journal(self.journal, self.header) as journal:
            if journal.cut:
                print(f"{self.journal}: cut off a torn last line of {journal.cut} bytes", file=sys.stderr)
            why = {}
            if self._requests(journal.records) or self._hinted_requests(journal.records):
                asker = asyncio.run(self._ask(journal))
                if asker.fatal:
                    raise asker.fatal
                if asker.interrupted:
                    print(f"interrupted: {self.journal} keeps what came; the same command goes on", file=sys.stderr)
                    return INTERRUPTED
                print(f"sent {asker.requests} requests, {asker.retries} of them were tried again", file=sys.stderr)
                why = asker.failed
            self._write(journal.records)
            missing = [r.id for r in (*self._requests(journal.records), *self._hinted_requests(journal.records))]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.questions)} questions are missing samples (first: {missing[0]}: "
                f"{why.get(missing[0], 'not answered')}); the same command asks for them again"
            )
        return 0

    def dry_run(self) -> None:
        """Prints the first question as it would be asked and what the run would come to; sends and writes nothing."""
        first = self.prompt.text(self.questions[0].input, self.questions[0].place)
        for message in self.prompt.conversation(first, hinted=False):
            print(f"[{message['role']}]\n{message['content']}\n")
        requests = self._requests(read_journal(self.journal, self.header))
        per_request = self.limits.samples_per_request or self.samples
        rounds = [-(-request.samples // per_request) for request in requests]
        sizes = [estimate_tokens(self.prompt.conversation(request.text, hinted=False)) for request in requests]
        tokens_in = sum(n * size for n, size in zip(rounds, sizes, strict=True))
        tokens_out = sum(request.samples for request in requests) * self.limits.max_tokens
        dollars = self.prices.dollars(tokens_in, tokens_out)
        cost = "" if dollars is None else f", at most about ${dollars:.2f}"
        print(
            f"{sum(rounds)} requests for {len(requests)} of {len(self.questions)} questions: about {tokens_in} tokens "
            f"in, at most {tokens_out} out{cost}; --rationalize asks at most as much again"
        )

    async def _ask(self, journal: Journal) -> Asker:
        endpoint = self.endpoint
        key = read_key(endpoint.key_variable, endpoint.base_url or os.environ.get("OPENAI_BASE_URL"))
        teacher = Teacher(
            endpoint.model, self.settings, base_url=endpoint.base_url, key=key, timeout_s=endpoint.timeout_s
        )
        asker = Asker(teacher, self.prompt, journal, self.limits, journal_totals(journal.records, self.prices))
        try:
            if await asker.ask(self._requests(journal.records), "asking"):
                await asker.ask(self._hinted_requests(journal.records), "rationalizing")
        finally:
            await teacher.close()
        return asker

    def _requests(self, records: Records) -> list[Request]:
        """What is still to be asked."""
        requests = []
        for question in self.questions:
            text = self.prompt.text(question.input, question.place)
            missing = self.samples - len(_choices(records, question, text, hinted=False))
            if missing > 0:
                requests.append(Request(question.id, text, missing))
        return requests

    def _hinted_requests(self, records: Records) -> list[Request]:
        """Fully answered questions, no answer of which is gold, to be asked again with the answer given."""
        requests = []
        for question in self.questions:
            if not self.rationalize or question.label is None:
                continue
            text = self.prompt.text(question.input, question.place, question.label)
            samples, hinted = self._samples(records, question)
            missing = self.samples - len(hinted)
            if len(samples) == self.samples and missing and not agrees(samples, question.label, self.prompt.rule):
                requests.append(Request(question.id, text, missing, hinted=True))
        return requests

    def _samples(self, records: Records, question: Question) -> tuple[list[Choice], list[Choice]]:
        """The samples to use, without and with hint."""
        text = self.prompt.text(question.input, question.place)
        samples = _choices(records, question, text, hinted=False)[: self.samples]
        if not self.rationalize or question.label is None:
            return samples, []
        text = self.prompt.text(question.input, question.place, question.label)
        return samples, _choices(records, question, text, hinted=True)[: self.samples]

    def _check_paths(self) -> None:
        """Questions and journal are not to be written over."""
        sources = {Path(name).resolve() for name in {one.place.rpartition(":")[0] for one in self.questions}}
        kept = sources | {self.journal.resolve()}
        for path, others in ((self.journal, sources), (self.output, kept), (self._report, kept)):
            if path.resolve() in others:
                raise UserError(f"{path} would be written over; choose another --output or --journal")

    @property
    def _report(self) -> Path:
        return self.output.with_suffix(".report.json")

    def _write(self, records: Records) -> None:
        samples = [self._samples(records, question) for question in self.questions]
        annotated = [
            annotate_question(question, plain, hinted, self.prompt.rule, self.policy)
            for question, (plain, hinted) in zip(self.questions, samples, strict=True)
        ]
        missing = sum(len(plain) < self.samples for plain, _ in samples)
        used = [choice for pair in samples for choices in pair for choice in choices]
        report = make_report(annotated, used, missing, records, self.endpoint.model, self.prompt.rule.kind, self.prices)
        rows = [_row(one) for one in annotated if one.label is not None]
        _replace(self.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        _replace(self._report, json.dumps(report_row(report), indent=2) + "\n")
        print("\n".join(report_lines(report)))


def request_settings(temperature: float, max_tokens: int, body: str) -> dict[str, object]:
    """The fields of every request; those of `body`, a JSON object, come on top. UserError where it is none."""
    try:
        more = json.loads(body)
    except json.JSONDecodeError as error:
        raise UserError(f"--body={body!r:.60}: broken JSON ({error.msg})") from error
    if not isinstance(more, dict) or more.keys() & {"model", "messages", "n", "stream"}:
        raise UserError(f"--body={body!r:.60}: give a JSON object without model, messages, n and stream")
    return {"temperature": temperature, "max_tokens": max_tokens, **more}


def _choices(records: Records, question: Question, text: str, *, hinted: bool) -> list[Choice]:
    """The samples of a question in the order in which they came; hinted ones only where they were given this answer."""
    found = [record for record in records.get(question.id, ()) if record.hinted == hinted]
    if not found:
        return []
    asked = digest(text)
    if not hinted and any(record.asked != asked for record in found):
        raise UserError(
            f"{question.place}: question {question.id!r} is not the one the journal has answers to; give it a new id, "
            "restore its text, or choose another --journal"
        )
    return [choice for record in found if record.asked == asked for choice in record.choices]


def _row(one: Annotated) -> dict[str, object]:
    return {
        "id": one.question.id,
        "input": one.question.input,
        "label": one.label,
        "rationale": [rationale for rationale, _ in one.rationales],
        "weight": [weight for _, weight in one.rationales],
        "teacher_label": one.teacher_label,
    }


def _replace(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the journal is complete, choose another --output") from error
