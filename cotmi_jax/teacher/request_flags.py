"""The flags of commands that send requests to a server of language models."""

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from cotmi_jax.teacher.session import Service

flags.disclaim_key_flags()  # they are listed by the help of the command that calls RequestFlags


class RequestFlags:
    """Defines the flags; of the command whose module creates it."""

    def __init__(self, *, role: str, temperature: float, max_tokens: int):
        self._model = flags.DEFINE_string("model", None, f"The {role}: name of a model of the server.")
        self._base_url = flags.DEFINE_string(
            "base_url", None, "URL of the server, usually ending in /v1; default: OpenAI's."
        )
        self._key_variable = flags.DEFINE_string(
            "key_variable", "OPENAI_API_KEY", "Environment variable that holds the key."
        )
        self._samples_per_request = flags.DEFINE_integer(
            "samples_per_request", None, "Maximal number of samples per request; default: all.", lower_bound=1
        )
        self._temperature = flags.DEFINE_float("temperature", temperature, "Sampling temperature.", lower_bound=0.0)
        self._max_tokens = flags.DEFINE_integer(
            "max_tokens", max_tokens, "Maximal number of tokens of a completion.", lower_bound=1
        )
        self._body = flags.DEFINE_string("body", "{}", "JSON object merged into every request; null removes a field.")
        self._concurrency = flags.DEFINE_integer(
            "concurrency", 16, "Maximal number of requests in flight.", lower_bound=1
        )
        self._requests = flags.DEFINE_float("requests_per_minute", None, "Rate limit; default: none.", lower_bound=1e-3)
        self._tokens = flags.DEFINE_float(
            "tokens_per_minute", None, "Rate limit, input plus output; default: none.", lower_bound=1.0
        )
        self._timeout = flags.DEFINE_float("timeout", 120.0, "Time-out of a request in seconds.", lower_bound=1e-3)
        self._retries = flags.DEFINE_integer("max_retries", 6, "Retries of a request.", lower_bound=0)
        self._backoff = flags.DEFINE_float(
            "backoff", 1.0, "Retry k waits up to backoff * 2^k seconds, at most 60.", lower_bound=0.0
        )
        self._price_in = flags.DEFINE_float("price_in", None, "Dollars per million input tokens.", lower_bound=0.0)
        self._price_out = flags.DEFINE_float("price_out", None, "Dollars per million output tokens.", lower_bound=0.0)
        flags.mark_flag_as_required("model")

    def service(self, schema: dict[str, object] | None = None) -> "Service":
        """What the flags say. schema: the response_format of requests. Raises UserError for an invalid --body."""
        from cotmi_jax.teacher.asking import Limits
        from cotmi_jax.teacher.report import Prices
        from cotmi_jax.teacher.session import Endpoint, Service, request_settings

        limits = (self._concurrency, self._samples_per_request, self._requests, self._tokens)
        retries = (self._max_tokens, self._retries, self._backoff)
        return Service(
            Endpoint(self._model.value, self._base_url.value, self._key_variable.value, self._timeout.value),
            request_settings(self._temperature.value, self._max_tokens.value, self._body.value, schema),
            Limits(*(flag.value for flag in (*limits, *retries))),
            Prices(self._price_in.value, self._price_out.value),
        )
