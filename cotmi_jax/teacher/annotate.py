"""An annotation run: questions → requests → journal → filtered rationales as the JSON Lines that training reads."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from cotmi_jax.data.sources.row_format import COUNTERFACTUALS
from cotmi_jax.errors import UserError, shown
from cotmi_jax.teacher.answers import read_sample
from cotmi_jax.teacher.asking import MAX_CONSECUTIVE_UNREADABLE, Request
from cotmi_jax.teacher.consistency import Annotated, Policy, agrees, annotate_question
from cotmi_jax.teacher.journal import Choice, Records, digest, read_journal
from cotmi_jax.teacher.prompt import Message, Prompt
from cotmi_jax.teacher.questions import Question
from cotmi_jax.teacher.report import make_report, report_lines, report_row
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


@dataclasses.dataclass(frozen=True)
class Annotation:
    """An annotation as the flags describe it.

    The journal accepts responses to one model, prompt and settings only; policy, prices, limits and the number of
    samples may change from run to run. min_readable is the least share of the samples whose answer can be read; 0
    accepts any answers. counterfactuals: whether the output also has the answers other than the label, with their
    rationales.
    """

    questions: Sequence[Question]
    prompt: Prompt
    service: Service
    samples: int
    rationalize: bool
    policy: Policy
    output: Path
    journal: Path
    min_readable: float = 0.5
    counterfactuals: bool = False

    @property
    def header(self) -> dict[str, object]:
        """The first line of the journal."""
        return self.service.header(self.prompt.digest)

    def run(self) -> int:
        """Requests the samples that the journal lacks, then writes output and report. Returns the exit status.

        Raises:
          UserError: the run cannot continue; or, after output and report have been written, samples are missing, too
            few of their answers can be read, or none has a rationale.
        """
        self._check_paths()
        if self.rationalize:  # a missing hint is reported before any request is paid for
            self.prompt.text(self.questions[0].input, self.questions[0].place, "")
        phases = (Phase("asking", self._requests), Phase("rationalizing", self._hinted_requests))
        with open_journal(self.journal, self.header) as journal:
            is_readable = self._is_readable if self.min_readable > 0 else None
            found = collect(self.service, journal, self._conversation, phases, is_readable)
            if found.interrupted:
                return EXIT_INTERRUPTED
            self._write(journal.records)
            self._check_readable(journal.records, found.unreadable)
            missing = [request.id for phase in phases for request in phase.missing(journal.records)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.questions)} questions are missing samples (first: {missing[0]}: "
                f"{found.failed.get(missing[0], 'not answered')}); the same command requests them again"
            )
        return 0

    def dry_run(self) -> None:
        """Prints the first conversation and an estimate of requests, tokens and cost; sends and writes nothing."""
        first = self.prompt.text(self.questions[0].input, self.questions[0].place)
        for message in self.prompt.conversation(first, hinted=False):
            print(f"[{message['role']}]\n{message['content']}\n")
        requests = self._requests(read_journal(self.journal, self.header))
        count, cost = estimate(requests, self._conversation, self.service)
        print(
            f"{count} requests for {len(requests)} of {len(self.questions)} questions: {cost}; --rationalize sends at "
            "most as many again"
        )

    def _conversation(self, request: Request) -> list[Message]:
        return self.prompt.conversation(request.text, hinted=request.hinted)

    def _is_readable(self, sample: Choice) -> bool:
        return read_sample(sample, self.prompt.rule)[1] is not None

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
        sources = [Path(name) for name in {question.place.rpartition(":")[0] for question in self.questions}]
        check_paths(self.journal, (self.output, self._report), sources)

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
        model, prices = self.service.endpoint.model, self.service.prices
        report = make_report(annotated, used, missing, records, model, self.prompt.rule.kind, prices)
        rows = [_row(question, self.counterfactuals) for question in annotated if question.label is not None]
        write_output(self.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_output(self._report, json.dumps(report_row(report), indent=2) + "\n")
        print("\n".join(report_lines(report)))


def explain_unreadable(unreadable: Sequence[Choice], prompt: Prompt) -> str:
    """One of these samples, shortened, and the remedy, for those that the limit on tokens cut or for the others."""
    cut = [sample for sample in unreadable if sample.finish_reason == "length"]
    if 2 * len(cut) > len(unreadable):
        return (
            f"{len(cut)} were cut by the limit on tokens, one is {describe_sample(cut[-1])}: raise --max_tokens, with "
            "another --journal"
        )
    sample = next(sample for sample in reversed(unreadable) if sample.finish_reason != "length")
    return (
        f"one is {describe_sample(sample)}: set parse in a copy of {prompt.path} to a rule that reads it, which needs "
        "no further request, or correct the prompt, with another --journal"
    )


def _choices(records: Records, question: Question, text: str, *, hinted: bool) -> list[Choice]:
    """A question's samples in the order of their arrival; of hinted ones those whose request stated this answer."""
    matching = [record for record in records.get(question.id, ()) if record.hinted == hinted]
    if matching and not hinted and {record.asked for record in matching} != {digest(text)}:
        raise UserError(
            f"{question.place}: question {question.id!r} differs from the one that the journal has answers to; give it "
            "a new id, restore its text, or choose another --journal"
        )
    return choices_to({question.id: matching}, question.id, text)


def _kept(annotated: Annotated) -> dict[str, object]:
    """Choices and cluster of the question; no choices where the label, a teacher's, is none of them: such rows would be
    refused in training."""
    fields = dict(annotated.question.fields)
    choices = fields.get("choices")
    if isinstance(choices, list) and annotated.label not in choices:
        del fields["choices"]
    return fields


def _row(annotated: Annotated, counterfactuals: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "id": annotated.question.id,
        "input": annotated.question.input,
        "label": annotated.label,
        "rationale": [rationale for rationale, _ in annotated.rationales],
        "weight": [weight for _, weight in annotated.rationales],
        "teacher_label": annotated.teacher_label,
        **_kept(annotated),
    }
    if counterfactuals:
        pairs = annotated.counterfactuals
        row[COUNTERFACTUALS] = [{"label": pair.label, "rationale": pair.rationale} for pair in pairs]
    return row
