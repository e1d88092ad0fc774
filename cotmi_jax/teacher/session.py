"""What annotating and judging share: a server with its settings, and a run that requests what the journal lacks."""

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cotmi_jax.errors import UserError, shown
from cotmi_jax.files import parse_json, replace_file
from cotmi_jax.teacher.asking import (
    Asker,
    Conversation,
    IsReadable,
    Limits,
    Request,
    UnreadableAnswers,
    estimate_tokens,
)
from cotmi_jax.teacher.client import Teacher, read_key
from cotmi_jax.teacher.journal import Choice, Journal, Records, digest
from cotmi_jax.teacher.report import Prices, journal_totals

EXIT_INTERRUPTED = 130  # the status that shells report for a command that SIGINT ended


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """The model's server. base_url None: the client's default, $OPENAI_BASE_URL or api.openai.com."""

    model: str
    base_url: str | None
    key_variable: str
    timeout_s: float


@dataclasses.dataclass(frozen=True)
class Service:
    """A server and how it is asked. settings: the fields of a request other than model, messages and n."""

    endpoint: Endpoint
    settings: Mapping[str, object]
    limits: Limits
    prices: Prices

    def header(self, prompt: str) -> dict[str, object]:
        """The first line of a journal: all that determines the distribution of responses. prompt: its digest."""
        settings = {f"body.{name}": value for name, value in self.settings.items()}
        return {"model": self.endpoint.model, "prompt": prompt, **settings}


class Phase(NamedTuple):
    """Requests that are sent before those of the next phase; missing: those to which the journal has no response."""

    description: str
    missing: Callable[[Records], list[Request]]


class Collected(NamedTuple):
    """How a run ended: by a signal, by unreadable answers, and the reason for each id without response."""

    interrupted: bool = False
    unreadable: bool = False
    failed: Mapping[str, str] = {}


@contextlib.contextmanager
def open_journal(path: Path, header: Mapping[str, object]) -> Iterator[Journal]:
    """The journal, after one line where an incomplete last line was removed. Raises as `Journal` does."""
    with Journal(path, header) as journal:
        if journal.truncated_bytes:
            print(f"{path}: removed an incomplete last line of {journal.truncated_bytes} bytes", file=sys.stderr)
        yield journal


def collect(
    service: Service,
    journal: Journal,
    conversation: Conversation,
    phases: Sequence[Phase],
    is_readable: IsReadable | None,
) -> Collected:
    """Sends the requests of all phases and journals the responses. is_readable None: any answers are accepted.

    Raises:
      UserError: no key, or the server's answers ended the run.
    """
    if not any(phase.missing(journal.records) for phase in phases):
        return Collected()
    asker = asyncio.run(_ask(service, journal, conversation, phases, is_readable))
    if asker.fatal:
        raise asker.fatal
    if asker.interrupted:
        print(
            f"interrupted: {journal.path} has the responses received so far; the same command resumes", file=sys.stderr
        )
    else:
        print(f"sent {asker.requests} requests, {asker.retries} of them retries", file=sys.stderr)
    return Collected(asker.interrupted, asker.unreadable, asker.failed)


async def _ask(
    service: Service,
    journal: Journal,
    conversation: Conversation,
    phases: Sequence[Phase],
    is_readable: IsReadable | None,
) -> Asker:
    endpoint = service.endpoint
    key = read_key(endpoint.key_variable, endpoint.base_url or os.environ.get("OPENAI_BASE_URL"))
    teacher = Teacher(
        endpoint.model,
        service.settings,
        base_url=endpoint.base_url,
        key=key,
        timeout_s=endpoint.timeout_s,
        notify=lambda line: tqdm.write(line, file=sys.stderr),
    )
    totals = journal_totals(journal.records, service.prices)
    answers = None if is_readable is None else UnreadableAnswers(is_readable, journal.records)
    asker = Asker(teacher, conversation, journal, service.limits, totals, answers)
    try:
        for phase in phases:
            if not await asker.ask(phase.missing(journal.records), phase.description):
                break
    finally:
        await teacher.close()
    return asker


def estimate(requests: Sequence[Request], conversation: Conversation, service: Service) -> tuple[int, str]:
    """The number of HTTP requests, and their tokens and cost as text."""
    limit = service.limits.samples_per_request
    counts = [-(-request.samples // (limit or request.samples)) for request in requests]
    sizes = [estimate_tokens(conversation(request)) for request in requests]
    tokens_in = sum(n * size for n, size in zip(counts, sizes, strict=True))
    tokens_out = sum(request.samples for request in requests) * service.limits.max_tokens
    dollars = service.prices.dollars(tokens_in, tokens_out)
    cost = "" if dollars is None else f", at most about ${dollars:.2f}"
    return sum(counts), f"about {tokens_in} tokens in, at most {tokens_out} out{cost}"


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


def choices_to(records: Records, name: str, text: str) -> list[Choice]:
    """The completions of the requests with this id and user message, in the order of their arrival."""
    matching = records.get(name, ())
    asked = digest(text) if matching else ""
    return [choice for record in matching if record.asked == asked for choice in record.choices]


def local_file(text: str, flag: str) -> Path:
    """The file that a flag names. Raises UserError for a URL: only local files are locked and appended to."""
    if "://" in text:
        raise UserError(f"--{flag}={text}: give a local path")
    return Path(text).expanduser()


def check_paths(journal: Path, outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises UserError where the journal would overwrite an input, or an output an input or the journal."""
    sources = {path.resolve() for path in inputs}
    protected = sources | {journal.resolve()}
    for path, kept in ((journal, sources), *((output, protected) for output in outputs)):
        if path.resolve() in kept:
            raise UserError(f"{path} would be overwritten; choose another --output or --journal")


def write_output(path: Path, content: str) -> None:
    """Replaces a file of results. Raises UserError where it cannot be written; the journal has all responses then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the journal is complete, choose another --output") from error


def describe_sample(sample: Choice) -> str:
    """A completion for a message, shortened."""
    return shown(sample.text) if sample.text else "empty, after its thinking" if sample.thinking else "empty"
