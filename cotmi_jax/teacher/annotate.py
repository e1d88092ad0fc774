"""An annotation run: questions → requests → journal → filtered rationales as the JSON Lines that training reads."""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from cotmi_jax.data.sources.row_format import COUNTERFACTUALS
from cotmi_jax.errors import UserError, shown
from cotmi_jax.files import parse_json, replace_file
from cotmi_jax.teacher.answers import read_sample
from cotmi_jax.teacher.asking import (
    MAX_CONSECUTIVE_UNREADABLE,
    Asker,
    Limits,
    Request,
    UnreadableAnswers,
    estimate_tokens,
)
from cotmi_jax.teacher.client import Teacher, read_key
from cotmi_jax.teacher.consistency import Annotated, Policy, agrees, annotate_question
from cotmi_jax.teacher.journal import Choice, Journal, Records, digest, read_journal
from cotmi_jax.teacher.prompt import Prompt
from cotmi_jax.teacher.questions import Question
from cotmi_jax.teacher.report import Prices, journal_totals, make_report, report_lines, report_row

EXIT_INTERRUPTED = 130  # the status that shells report for a command that SIGINT ended


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """The teacher's server. base_url None: the client's default, $OPENAI_BASE_URL or api.openai.com."""

    model: str
    base_url: str | None
    key_variable: str
    timeout_s: float


@dataclasses.dataclass(frozen=True)
class Annotation:
    """An annotation as the flags describe it.

    settings are the fields of a request other than model, messages and n. The journal accepts responses to one model,
    prompt and settings only; policy, prices, limits and the number of samples may change from run to run. min_readable
    is the least share of the samples whose answer can be read; 0 accepts any answers. counterfactuals: whether the
    output also has the answers other than the label, with their rationales.
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
    min_readable: float = 0.5
    counterfactuals: bool = False

    @property
    def header(self) -> dict[str, object]:
        """The first line of the journal: all that determines the distribution of responses."""
        settings = {f"body.{name}": value for name, value in self.settings.items()}
        return {"model": self.endpoint.model, "prompt": self.prompt.digest, **settings}

    def run(self) -> int:
        """Requests the samples that the journal lacks, then writes output and report. Returns the exit status.

        Raises:
          UserError: the run cannot continue; or, after output and report have been written, samples are missing, too
            few of their answers can be read, or none has a rationale.
        """
        self._check_paths()
        if self.rationalize:  # a missing hint is reported before any request is paid for
            self.prompt.text(self.questions[0].input, self.questions[0].place, "")
        with Journal(self.journal, self.header) as journal:
            if journal.truncated_bytes:
                print(
                    f"{self.journal}: removed an incomplete last line of {journal.truncated_bytes} bytes",
                    file=sys.stderr,
                )
            reasons: dict[str, str] = {}
            stopped = False
            if self._requests(journal.records) or self._hinted_requests(journal.records):
                asker = asyncio.run(self._ask(journal))
                if asker.fatal:
                    raise asker.fatal
                if asker.interrupted:
                    print(
                        f"interrupted: {self.journal} has the responses received so far; the same command resumes",
                        file=sys.stderr,
                    )
                    return EXIT_INTERRUPTED
                print(f"sent {asker.requests} requests, {asker.retries} of them retries", file=sys.stderr)
                reasons, stopped = asker.failed, asker.unreadable
            self._write(journal.records)
            self._check_readable(journal.records, stopped)
            missing = [r.id for r in (*self._requests(journal.records), *self._hinted_requests(journal.records))]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.questions)} questions are missing samples (first: {missing[0]}: "
                f"{reasons.get(missing[0], 'not answered')}); the same command requests them again"
            )
        return 0

    def dry_run(self) -> None:
        """Prints the first conversation and an estimate of requests, tokens and cost; sends and writes nothing."""
        first = self.prompt.text(self.questions[0].input, self.questions[0].place)
        for message in self.prompt.conversation(first, hinted=False):
            print(f"[{message['role']}]\n{message['content']}\n")
        requests = self._requests(read_journal(self.journal, self.header))
        per_request = self.limits.samples_per_request or self.samples
        counts = [-(-request.samples // per_request) for request in requests]
        sizes = [estimate_tokens(self.prompt.conversation(request.text, hinted=False)) for request in requests]
        tokens_in = sum(n * size for n, size in zip(counts, sizes, strict=True))
        tokens_out = sum(request.samples for request in requests) * self.limits.max_tokens
        dollars = self.prices.dollars(tokens_in, tokens_out)
        cost = "" if dollars is None else f", at most about ${dollars:.2f}"
        print(
            f"{sum(counts)} requests for {len(requests)} of {len(self.questions)} questions: about {tokens_in} tokens "
            f"in, at most {tokens_out} out{cost}; --rationalize sends at most as many again"
        )

    async def _ask(self, journal: Journal) -> Asker:
        endpoint = self.endpoint
        key = read_key(endpoint.key_variable, endpoint.base_url or os.environ.get("OPENAI_BASE_URL"))
        teacher = Teacher(
            endpoint.model,
            self.settings,
            base_url=endpoint.base_url,
            key=key,
            timeout_s=endpoint.timeout_s,
            notify=lambda line: tqdm.write(line, file=sys.stderr),
        )
        totals = journal_totals(journal.records, self.prices)
        answers = UnreadableAnswers(self.prompt.rule, journal.records) if self.min_readable > 0 else None
        asker = Asker(teacher, self.prompt, journal, self.limits, totals, answers)
        try:
            if await asker.ask(self._requests(journal.records), "asking"):
                await asker.ask(self._hinted_requests(journal.records), "rationalizing")
        finally:
            await teacher.close()
        return asker

    def _requests(self, records: Records) -> list[Request]:
        """A request for each question that has fewer samples than wanted."""
        requests = []
        for question in self.questions:
            text = self.prompt.text(question.input, question.place)
            missing = self.samples - len(_choices(records, question, text, hinted=False))
            if missing > 0:
                requests.append(Request(question.id, text, missing))
        return requests

    def _hinted_requests(self, records: Records) -> list[Request]:
        """Requests that state the answer: for questions with all their samples, none of which gives the gold label."""
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
        """The samples of a question that are used, without and with hint."""
        text = self.prompt.text(question.input, question.place)
        samples = _choices(records, question, text, hinted=False)[: self.samples]
        if not self.rationalize or question.label is None:
            return samples, []
        text = self.prompt.text(question.input, question.place, question.label)
        return samples, _choices(records, question, text, hinted=True)[: self.samples]

    def _check_readable(self, records: Records, stopped: bool) -> None:
        """Raises UserError for a run that its answers ended, and where too few can be read or none has a rationale."""
        samples = [s for question in self.questions for group in self._samples(records, question) for s in group]
        readings = [read_sample(sample, self.prompt.rule) for sample in samples]
        unreadable = [sample for sample, (_, answer) in zip(samples, readings, strict=True) if answer is None]
        readable = len(samples) - len(unreadable)
        if stopped or readable < self.min_readable * len(samples):
            limit = (
                f"the run ended after {MAX_CONSECUTIVE_UNREADABLE} questions in a row without a readable answer"
                if stopped
                else f"fewer than --min_readable={self.min_readable:g} of them"
            )
            raise UserError(
                f"of {len(samples)} samples {readable} have an answer that the prompt's rule can read, {limit}: "
                f"{explain_unreadable(unreadable, self.prompt)}; {self.output} has what could be read"
            )
        if readable and self.min_readable > 0 and not any(rationale for rationale, _ in readings):
            remedy = "correct the prompt" if self.prompt.rule.source == "thinking" else "pass --rationale=thinking"
            raise UserError(
                f"none of {len(samples)} samples has a rationale, the first is {shown(samples[0].text)}: {remedy}, or "
                "accept any answers (--min_readable=0)"
            )

    def _check_paths(self) -> None:
        """Raises UserError where the output would overwrite the questions or the journal."""
        sources = {Path(name).resolve() for name in {question.place.rpartition(":")[0] for question in self.questions}}
        inputs = sources | {self.journal.resolve()}
        for path, protected in ((self.journal, sources), (self.output, inputs), (self._report, inputs)):
            if path.resolve() in protected:
                raise UserError(f"{path} would be overwritten; choose another --output or --journal")

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
        rows = [_row(question, self.counterfactuals) for question in annotated if question.label is not None]
        _replace(self.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        _replace(self._report, json.dumps(report_row(report), indent=2) + "\n")
        print("\n".join(report_lines(report)))


def request_settings(
    temperature: float, max_tokens: int, body: str, schema: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The fields of every request, overridden by those of `body`; schema is the response_format, None for none.

    Raises:
      UserError: `body` is not a JSON object, or has fields that the other flags set.
    """
    try:
        overrides = parse_json(body)
    except ValueError as error:
        raise UserError(f"--body={shown(body)}: not JSON ({error}); give a JSON object") from error
    if not isinstance(overrides, dict) or overrides.keys() & {"model", "messages", "n", "stream"}:
        raise UserError(f"--body={shown(body)}: give a JSON object without model, messages, n and stream")
    response_format = {} if schema is None else {"response_format": schema}
    return {"temperature": temperature, "max_tokens": max_tokens, **response_format, **overrides}


def explain_unreadable(unreadable: Sequence[Choice], prompt: Prompt) -> str:
    """One of these samples, shortened, and the remedy, for those that the limit on tokens cut or for the others."""
    cut = [sample for sample in unreadable if sample.finish_reason == "length"]
    if 2 * len(cut) > len(unreadable):
        return (
            f"{len(cut)} were cut by the limit on tokens, one is {_describe(cut[-1])}: raise --max_tokens, with "
            "another --journal"
        )
    sample = next(sample for sample in reversed(unreadable) if sample.finish_reason != "length")
    return (
        f"one is {_describe(sample)}: set parse in a copy of {prompt.path} to a rule that reads it, which needs no "
        "further request, or correct the prompt, with another --journal"
    )


def _describe(sample: Choice) -> str:
    return shown(sample.text) if sample.text else "empty, after its thinking" if sample.thinking else "empty"


def _choices(records: Records, question: Question, text: str, *, hinted: bool) -> list[Choice]:
    """A question's samples in the order of their arrival; of hinted ones those whose request stated this answer."""
    matching = [record for record in records.get(question.id, ()) if record.hinted == hinted]
    if not matching:
        return []
    asked = digest(text)
    if not hinted and any(record.asked != asked for record in matching):
        raise UserError(
            f"{question.place}: question {question.id!r} differs from the one that the journal has answers to; give it "
            "a new id, restore its text, or choose another --journal"
        )
    return [choice for record in matching if record.asked == asked for choice in record.choices]


def _row(annotated: Annotated, counterfactuals: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "id": annotated.question.id,
        "input": annotated.question.input,
        "label": annotated.label,
        "rationale": [rationale for rationale, _ in annotated.rationales],
        "weight": [weight for _, weight in annotated.rationales],
        "teacher_label": annotated.teacher_label,
    }
    if counterfactuals:
        pairs = annotated.counterfactuals
        row[COUNTERFACTUALS] = [{"label": pair.label, "rationale": pair.rationale} for pair in pairs]
    return row


def _replace(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the journal is complete, choose another --output") from error
