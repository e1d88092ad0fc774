"""One request to an OpenAI-compatible chat endpoint, and whether a failed one may be retried."""

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

# Statuses of requests that may succeed later (time-out, conflict, too early, too many), in addition to every 5xx.
_RETRYABLE = (408, 409, 425, 429)
# An exhausted quota has status 429 too, but retries cannot succeed.
_QUOTA_EXHAUSTED = ("insufficient_quota", "billing_hard_limit_reached")
_PLACEHOLDER_KEY = "none"
# A shorter key is a placeholder such as EMPTY, which may occur in an answer, and is not redacted.
_MIN_SECRET_LENGTH = 8


class TransientError(Exception):
    """A request failed and may succeed when it is retried, after retry_after_s if the server set that."""

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Reply(NamedTuple):
    """A response. Tokens are as the server counted them, None if it did not."""

    model: str
    choices: tuple[Choice, ...]
    tokens_in: int | None
    tokens_out: int | None


def read_key(variable: str, base_url: str | None) -> str:
    """The key in an environment variable; with a base_url it may be empty, as local servers need none.

    Raises:
      UserError: no key, or one with characters that no header may hold; the message never contains the key.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("--key_variable takes the name of an environment variable, never the key itself")
    key = os.environ.get(variable, "").strip()
    if not key and base_url is None:
        raise UserError(f"no key: set {variable} in the environment, or --base_url for a server that needs none")
    if not re.fullmatch(r"[!-~]*", key):
        raise UserError(f"{variable} has characters that no key has; copy the key again")
    return key


class Teacher:
    """A client of the endpoint with the settings of every request. The key is passed to the HTTP client only."""

    def __init__(self, model: str, settings: Mapping[str, object], *, base_url: str | None, key: str, timeout_s: float):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "the package openai is not installed: pip install -e '.[teacher]' (in the repository)"
            ) from error
        self._errors = openai
        # The caller retries: the client's own retries have no full jitter, no retry of truncated JSON, no rate limit.
        self._client = openai.AsyncOpenAI(
            api_key=key or _PLACEHOLDER_KEY, base_url=base_url, max_retries=0, timeout=timeout_s
        )
        self._key = key
        self._model = model
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._timeout_s = timeout_s

    async def ask(self, messages: Sequence[Message], samples: int) -> Reply:
        """Sends one request once.

        Raises:
          TransientError: a retry may succeed.
          UserError: a retry cannot succeed: bad key, unknown model, refused settings, exhausted quota.
        """
        # As extra_body, the messages are merged into the request without the type traversal that arguments undergo.
        body = {**self._settings, "messages": messages, **({"n": samples} if samples > 1 else {})}
        try:
            async with asyncio.timeout(self._timeout_s):  # the client's own restarts with every received byte
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._model, messages=[], extra_body=body
                )
                text = raw.text
            reply = _reply(json.loads(text))
        except (TimeoutError, self._errors.APITimeoutError):
            raise TransientError(f"no answer within {self._timeout_s:g} s") from None
        except self._errors.APIStatusError as error:
            raise self._classify(error) from None
        except self._errors.APIConnectionError as error:
            raise TransientError(self._clean(f"connection failed: {error.__cause__ or error}")) from None
        except (ValueError, TypeError, KeyError) as error:  # truncated or unexpected JSON, also inside the client
            raise TransientError(self._clean(f"unreadable response: {type(error).__name__} {error}")) from None
        choices = tuple(Choice(self._redact(text), reason and self._clean(reason)) for text, reason in reply.choices)
        return reply._replace(model=self._clean(reply.model), choices=choices)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _classify(self, error) -> Exception:  # type: ignore[no-untyped-def]  # openai.APIStatusError, not always installed
        message = self._clean(
            f"{error.status_code} {error.message.removeprefix(f'Error code: {error.status_code} - ')}"
        )
        if error.code not in _QUOTA_EXHAUSTED and (error.status_code in _RETRYABLE or error.status_code >= 500):
            return TransientError(message, retry_after(error.response.headers))
        remedies = {
            401: "check the key in the environment variable named by --key_variable",
            403: "check that the key may use this model",
            404: f"check --model={self._model} and --base_url, which usually ends in /v1",
            429: "the quota is exhausted: raise it",
        }
        remedy = remedies.get(error.status_code, "change the request (--body, --max_tokens, --samples_per_request=1)")
        return UserError(f"the server refused the request: {message}; {remedy}, then the same command resumes")

    def _redact(self, text: str) -> str:
        """Removes the key, which some servers repeat. Lone surrogates, which UTF-8 cannot encode, become "?"."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self._key, "[key]") if len(self._key) >= _MIN_SECRET_LENGTH else text

    def _clean(self, text: str) -> str:
        """A single line without the key, for messages."""
        return " ".join(self._redact(text).split())[:300]


def _reply(body: object) -> Reply:
    """Parses a chat completion. Raises ValueError, TypeError or KeyError where the body is not one."""
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
