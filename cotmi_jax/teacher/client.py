"""One request to an OpenAI-compatible chat endpoint, and whether a failed one may be retried."""

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence

from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import parse_json
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.prompt import Message
from cotmi_jax.teacher.rate_limit import retry_after
from cotmi_jax.teacher.response import MAX_BYTES, Reply, parse_reply

# Statuses of requests that may succeed later (time-out, conflict, too early, too many), in addition to every 5xx.
_RETRYABLE = (408, 409, 425, 429)
# An exhausted quota has status 429 too, but retries cannot succeed.
_QUOTA_EXHAUSTED = ("insufficient_quota", "billing_hard_limit_reached")
# Parameters that reasoning models refuse, and what is sent instead; None: nothing, so that the model's default applies.
_REPLACEMENTS = {"temperature": None, "max_tokens": "max_completion_tokens"}
_REFUSED_CODES = ("unsupported_parameter", "unsupported_value")
_REFUSED_MESSAGE = re.compile(r"Unsupported (?:parameter|value): '(\w{1,64})'")
_PLACEHOLDER_KEY = "none"
# A shorter key is a placeholder such as EMPTY, which may occur in an answer, and is not redacted.
_MIN_SECRET_LENGTH = 8


class TransientError(Exception):
    """A request failed and may succeed when it is retried, after retry_after_s if the server set that."""

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ParameterRefused(Exception):
    """The server refused a parameter that later requests leave out; the same request may be sent again at once."""


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
    """A client of the endpoint with the settings of every request. The key is passed to the HTTP client only.

    notify is called with one line when the server has refused a parameter of the settings.
    """

    def __init__(
        self,
        model: str,
        settings: Mapping[str, object],
        *,
        base_url: str | None,
        key: str,
        timeout_s: float,
        notify: Callable[[str], None],
    ):
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "the package openai is not installed: pip install -e '.[teacher]' (in the repository)"
            ) from error
        self._errors = openai
        # Redirects are not followed: they would send the questions to a host that the user has not named. The caller
        # retries: the client's own retries have no full jitter, no retry of truncated JSON, no rate limit.
        self._client = openai.AsyncOpenAI(
            api_key=key or _PLACEHOLDER_KEY,
            base_url=base_url,
            max_retries=0,
            timeout=timeout_s,
            # Uncompressed, so that the limit on the bytes of a response bounds the memory that it takes.
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, event_hooks={"response": [_limit_response]}
            ),
        )
        self._key = key
        self._model = model
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._timeout_s = timeout_s
        self._notify = notify

    async def ask(self, messages: Sequence[Message], samples: int) -> Reply:
        """Sends one request once.

        Raises:
          TransientError: a retry may succeed.
          ParameterRefused: a parameter was refused; the next request leaves it out.
          UserError: a retry cannot succeed: bad key, unknown model, refused settings, exhausted quota, wrong address.
        """
        # As extra_body, the messages are merged into the request without the type traversal that arguments undergo.
        settings = self._settings
        body = {**settings, "messages": messages, **({"n": samples} if samples > 1 else {})}
        try:
            async with asyncio.timeout(self._timeout_s):  # the client's own restarts with every received byte
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._model, messages=[], extra_body=body
                )
                text = raw.text
            reply = parse_reply(parse_json(text))
        except (TimeoutError, self._errors.APITimeoutError):
            raise TransientError(f"no answer within {self._timeout_s:g} s") from None
        except self._errors.APIStatusError as error:
            if self._leave_out(error, settings):
                raise ParameterRefused from None
            raise self._classify(error) from None
        except self._errors.APIConnectionError as error:
            raise self._classify_connection(error) from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:  # no JSON or unexpected JSON
            raise TransientError(self._clean(f"unreadable response: {type(error).__name__} {error}")) from None
        choices = tuple(
            Choice(
                self._redact(text), reason and self._clean(reason), None if thinking is None else self._redact(thinking)
            )
            for text, reason, thinking in reply.choices
        )
        return reply._replace(model=self._clean(reply.model), choices=choices)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _leave_out(self, error, sent: Mapping[str, object]) -> bool:  # type: ignore[no-untyped-def]  # APIStatusError
        """Whether the error refuses a parameter that was sent and has a replacement, which is then in the settings."""
        found = _REFUSED_MESSAGE.search(error.message)
        refused = error.param if error.code in _REFUSED_CODES else found and found[1]
        if error.status_code != 400 or refused not in _REPLACEMENTS or refused not in sent:
            return False
        if refused in self._settings:  # else another request in flight was refused before
            replacement = _REPLACEMENTS[refused]
            rest = {name: value for name, value in self._settings.items() if name != refused}
            self._settings = {replacement: sent[refused], **rest} if replacement else rest
            instead = f"{replacement} = {sent[refused]} instead" if replacement else "the model's default instead"
            self._notify(f"{self._model} refuses the parameter {refused}: requests have {instead}")
        return True

    def _classify(self, error) -> Exception:  # type: ignore[no-untyped-def]  # openai.APIStatusError, not always installed
        message = self._clean(
            f"{error.status_code} {error.message.removeprefix(f'Error code: {error.status_code} - ')}"
        )
        if error.code not in _QUOTA_EXHAUSTED and (error.status_code in _RETRYABLE or error.status_code >= 500):
            return TransientError(message, retry_after(error.response.headers))
        if 300 <= error.status_code < 400:
            target = self._clean(error.response.headers.get("location", "another address"))
            return UserError(
                f"the server redirects requests to {target:.100}, which are not sent there; if you trust that server, "
                "set --base_url to it, then the same command resumes"
            )
        remedies = {
            401: "check the key in the environment variable named by --key_variable",
            403: "check that the key may use this model",
            404: f"check --model={self._model} and --base_url, which usually ends in /v1",
            429: "the quota is exhausted: raise it",
        }
        remedy = remedies.get(error.status_code, "change the request (--body, --max_tokens, --samples_per_request=1)")
        return UserError(f"the server refused the request: {message}; {remedy}, then the same command resumes")

    def _classify_connection(self, error: Exception) -> Exception:
        """The cause of a failed connection; a certificate or a protocol that is wrong stays so, and is not retried."""
        cause: BaseException = error
        while not isinstance(cause, ssl.SSLError) and (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        url = self._client.base_url
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UserError(
                f"the certificate of {url} is not valid: {self._clean(cause.verify_message)}; correct --base_url, or "
                "set SSL_CERT_FILE to the certificate of the authority that signed it, then the same command resumes"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return UserError(f"{url} does not speak TLS: set --base_url to http://…, then the same command resumes")
        return TransientError(self._clean(f"connection failed: {error.__cause__ or error}"))

    def _redact(self, text: str) -> str:
        """Removes the key, which some servers repeat. Lone surrogates, which UTF-8 cannot encode, become "?"."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self._key, "[key]") if len(self._key) >= _MIN_SECRET_LENGTH else text

    def _clean(self, text: str) -> str:
        """A single line without the key, for messages."""
        return one_line(" ".join(self._redact(text).split()), 300)


async def _limit_response(response) -> None:  # type: ignore[no-untyped-def]  # httpx2.Response, not always installed
    """Reads a response. Raises ValueError where it has more than MAX_BYTES or is compressed though this was refused."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError(f"the content encoding {response.headers['content-encoding']!r:.50}, which was not accepted")
    received = bytearray()
    async for block in response.aiter_raw():
        received += block
        if len(received) > MAX_BYTES:
            await response.aclose()
            raise ValueError(f"more than {MAX_BYTES} bytes")
    response._content = bytes(received)
