"""Concurrent requests to the teacher: bounded, rate limited, retried, journaled, and stopped cleanly by a signal."""

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence

from tqdm import tqdm

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.client import ParameterRefused, Teacher, TransientError
from cotmi_jax.teacher.journal import Choice, Journal, Record, Records, digest
from cotmi_jax.teacher.prompt import Message
from cotmi_jax.teacher.rate_limit import RateLimit, backoff
from cotmi_jax.teacher.report import Totals
from cotmi_jax.teacher.response import Reply

# After so many consecutive questions without a response the server counts as down, and the run ends.
MAX_CONSECUTIVE_FAILURES = 20
# After so many consecutive questions without an answer that can be read, the run ends, as all answers seem to be
# unusable. Questions are counted, not samples, since all samples of an odd question may be unreadable.
MAX_CONSECUTIVE_UNREADABLE = 20
CHARACTERS_PER_TOKEN = 4  # approximately, of English text


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on the requests, retries among them. None: no limit; samples_per_request None: all in one request."""

    concurrency: int
    samples_per_request: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_tokens: int
    max_retries: int
    backoff_s: float


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for `samples` more completions of a question; text is the user message that asks it."""

    id: str
    text: str
    samples: int
    hinted: bool = False


Conversation = Callable[[Request], list[Message]]  # the messages of a request
IsReadable = Callable[[Choice], bool]  # whether a completion has an answer that can be read


class UnreadableAnswers:
    """The consecutive questions, in the order of their responses, without an answer that can be read.

    Those of earlier runs count, but one further response decides: the server may have been corrected since then.
    """

    def __init__(self, is_readable: IsReadable, records: Records):
        self._is_readable = is_readable
        self._consecutive: set[str] = set()
        for responses in records.values():
            for record in responses:
                self.add(record.id, record.choices)
        while len(self._consecutive) >= MAX_CONSECUTIVE_UNREADABLE:
            self._consecutive.pop()

    def add(self, question: str, choices: Iterable[Choice]) -> bool:
        """Adds the samples of a response. True if the last questions have no readable answer, enough to end the run."""
        if any(map(self._is_readable, choices)):
            self._consecutive.clear()
        else:
            self._consecutive.add(question)
        return len(self._consecutive) >= MAX_CONSECUTIVE_UNREADABLE


def estimate_tokens(messages: Sequence[Message]) -> int:
    """An estimate of the tokens of a conversation, for use before the server has counted them."""
    return sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN


class Asker:
    """Sends requests and journals the responses.

    answers None: any answers are accepted. After `ask`, `failed` maps the id of each question without response to the
    reason, `fatal` is the error that ended the run, and `unreadable` whether unreadable answers ended it. On the first
    SIGINT or SIGTERM the run waits for the requests in flight, which are paid for; the second cancels them.
    """

    def __init__(
        self,
        teacher: Teacher,
        conversation: Conversation,
        journal: Journal,
        limits: Limits,
        totals: Totals,
        answers: UnreadableAnswers | None,
    ):
        self._teacher = teacher
        self._conversation = conversation
        self._journal = journal
        self._limits = limits
        self._totals = totals
        self._answers = answers
        self._request_rate = RateLimit(limits.requests_per_minute) if limits.requests_per_minute else None
        self._token_rate = RateLimit(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._stop = asyncio.Event()
        self._consecutive_failures = 0
        self.interrupted = False
        self.unreadable = False
        self.fatal: UserError | None = None
        self.failed: dict[str, str] = {}
        self.requests = 0
        self.retries = 0

    async def ask(self, requests: Sequence[Request], description: str) -> bool:
        """Sends all requests; False if the run ended before that."""
        loop = asyncio.get_running_loop()
        total = sum(request.samples for request in requests)
        # disable=None: no progress bar unless standard error is a terminal.
        with tqdm(total=total, desc=description, unit="sample", dynamic_ncols=True, disable=None) as self._bar:
            queue = iter(requests)
            workers = [asyncio.create_task(self._work(queue)) for _ in range(self._limits.concurrency)]
            for name in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(name, self._on_signal, workers)
            try:
                results = await asyncio.gather(*workers, return_exceptions=True)
            finally:
                for name in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(name)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        return not self._stop.is_set()

    def _on_signal(self, workers: Iterable[asyncio.Task[None]]) -> None:
        if self.interrupted:
            for worker in workers:
                worker.cancel()
        self.interrupted = True
        self._stop.set()
        self._bar.set_description("waiting for requests in flight (interrupt again to cancel them)")

    async def _work(self, requests: Iterator[Request]) -> None:
        """Sends one request after the other from an iterator that all workers share."""
        try:
            for request in requests:
                if self._stop.is_set():
                    return
                await self._send(request)
        except UserError as error:
            self.fatal = self.fatal or error
            self._stop.set()
        except BaseException:
            self._stop.set()
            raise

    async def _send(self, request: Request) -> None:
        missing = request.samples
        while missing > 0:
            try:
                reply = await self._reply(request, min(missing, self._limits.samples_per_request or missing))
            except TransientError as error:
                self.failed[request.id] = str(error)
                self._consecutive_failures += 1
                if self._consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                    raise UserError(
                        f"{MAX_CONSECUTIVE_FAILURES} questions in a row failed, last: {error}; is the server up?"
                    ) from None
                return
            if reply is None:
                return
            self._consecutive_failures = 0
            self._journal.append(Record(request.id, digest(request.text), request.hinted, *reply))
            missing -= len(reply.choices)
            if self._answers and self._answers.add(request.id, reply.choices):
                self.unreadable = True
                self._stop.set()
            self._totals.add(reply.tokens_in, reply.tokens_out)
            self._bar.update(len(reply.choices))
            self._bar.set_postfix_str(f"{self._totals}, {len(self.failed)} failed")

    async def _reply(self, request: Request, samples: int) -> Reply | None:
        """A response, after retries; None if the run is ending. Raises TransientError after the last retry."""
        messages = self._conversation(request)
        estimate = estimate_tokens(messages) + samples * self._limits.max_tokens
        attempt = 0
        while True:
            await self._sleep(self._request_rate.reserve() if self._request_rate else 0.0)
            await self._sleep(self._token_rate.reserve(estimate) if self._token_rate else 0.0)
            if self._stop.is_set():
                return None
            self.requests += 1
            try:
                reply = await self._teacher.ask(messages, samples)
            except ParameterRefused:  # at once, since each parameter can be refused only once
                continue
            except TransientError as error:
                if attempt == self._limits.max_retries:
                    raise
                await self._sleep(backoff(attempt, self._limits.backoff_s, error.retry_after_s))
                attempt += 1
                self.retries += 1
                continue
            if self._token_rate and reply.tokens_in is not None and reply.tokens_out is not None:
                self._token_rate.correct(reply.tokens_in + reply.tokens_out - estimate)
            return reply

    async def _sleep(self, seconds: float) -> None:
        """Sleeps until the time has passed or the run is ending."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stop.wait(), seconds)
            except TimeoutError:
                return
