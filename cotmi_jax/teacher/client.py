"""One request to an OpenAI-compatible chat endpoint: what comes back, what may be tried again, what is final."""

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.prompt import Message
from cotmi_jax.teacher.rate_limit import retry_after

# Statuses of requests that may succeed later: time-out, conflict, too early, too many; and every 5xx.
_TRY_AGAIN = (408, 409, 425, 429)
# A quota that is used up comes as 429 too, and no waiting helps.
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached")
_PLACEHOLDER_KEY = "none"
# Shorter ones are no secrets but fillers such as EMPTY, which may well occur in an answer.
_SECRET_FROM = 8


class TransientError(Exception):
    """A request failed in a way that another try may not."""

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Reply(NamedTuple):
    """A response; tokens as the server counted them, or None."""

    model: str
    choices: tuple[Choice, ...]
    tokens_in: int | None
    tokens_out: int | None


def read_key(variable: str, base_url: str | None) -> str:
    """The key in an environment variable; a server of one's own (base_url) may go without.

    Raises:
      UserError: no key, or one that no header can carry; the message never shows it.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("--key_variable takes the name of an environment variable, never the key itself")
    key = os.environ.get(variable, "").strip()
    if not key and base_url is None:
        raise UserError(f"no key: set {variable} in the environment, or --base_url for a server that needs none")
    if not re.fullmatch(r"[!-~]*", key):
        raise UserError(f"{variable} holds characters that no key has; copy the key again")
    return key


class Teacher:
    """An endpoint and the settings of every request. The key goes into the client and nowhere else."""

    def __init__(self, model: str, settings: Mapping[str, object], *, base_url: str | None, key: str, timeout_s: float):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "the client of the teacher is not installed: pip install -e '.[teacher]' (in the repository)"
            ) from error
        self._errors = openai
        # Retries are made by the caller: the client's own know no jitter down to 0, no truncated JSON, no rate limit.
        self._client = openai.AsyncOpenAI(
            api_key=key or _PLACEHOLDER_KEY, base_url=base_url, max_retries=0, timeout=timeout_s
        )
        self._key = key
        self._model = model
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._timeout_s = timeout_s

    async def ask(self, messages: Sequence[Message], samples: int) -> Reply:
        """One attempt at one request.

        Raises:
          TransientError: worth another try.
          UserError: no other try can succeed: bad key, unknown model, refused settings, used-up quota.
        """
        # The body is merged over the arguments; as an argument, the client walks the types of every worked example.
        body = {**self._settings, "messages": messages, **({"n": samples} if samples > 1 else {})}
        try:
            async with asyncio.timeout(self._timeout_s):  # the client's own runs anew with every byte that trickles in
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._model, messages=[], extra_body=body
                )
                text = raw.text
            reply = _reply(json.loads(text))
        except (TimeoutError, self._errors.APITimeoutError):
            raise TransientError(f"no answer within {self._timeout_s:g} s") from None
        except self._errors.APIStatusError as error:
            raise self._judged(error) from None
        except self._errors.APIConnectionError as error:
            raise TransientError(self._clean(f"connection failed: {error.__cause__ or error}")) from None
        except (ValueError, TypeError, KeyError) as error:  # truncated or foreign JSON, also inside the client
            raise TransientError(self._clean(f"unreadable response: {type(error).__name__} {error}")) from None
        choices = tuple(Choice(self._scrub(text), reason and self._clean(reason)) for text, reason in reply.choices)
        return reply._replace(model=self._clean(reply.model), choices=choices)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _judged(self, error) -> Exception:  # type: ignore[no-untyped-def]  # openai.APIStatusError, not always installed
        said = self._clean(f"{error.status_code} {error.message.removeprefix(f'Error code: {error.status_code} - ')}")
        if error.code not in _USED_UP and (error.status_code in _TRY_AGAIN or error.status_code >= 500):
            return TransientError(said, retry_after(error.response.headers))
        cures = {
            401: "check the key in the environment variable named by --key_variable",
            403: "check that the key may use this model",
            404: f"check --model={self._model} and --base_url, which mostly ends in /v1",
            429: "the quota is used up: raise it",
        }
        cure = cures.get(error.status_code, "change the request (--body, --max_tokens, --samples_per_request=1)")
        return UserError(f"the server refused the request: {said}; {cure}, then the same command goes on")

    def _scrub(self, text: str) -> str:
        """The text without the key, which some servers repeat; half characters, which no file takes, become "?"."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self._key, "[key]") if len(self._key) >= _SECRET_FROM else text

    def _clean(self, text: str) -> str:
        return " ".join(self._scrub(text).split())[:300]


def _reply(body: object) -> Reply:
    """What a chat completion says. ValueError, TypeError or KeyError where it is none."""
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list) or not body["choices"]:
        raise ValueError(f"no choices in {body!r}")
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (count if isinstance(count, int) else None for count in counts)
    return Reply(str(body.get("model")), tuple(_choice(choice) for choice in body["choices"]), tokens_in, tokens_out)


def _choice(choice: Mapping[str, object]) -> Choice:
    message, reason = choice["message"], choice.get("finish_reason")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise TypeError("a message without text")
    return Choice(message["content"] or "", None if reason is None else str(reason))
