"""When the next request may go out: rate limits and the waits between retries."""

import email.utils
import random
import time
from collections.abc import Callable, Mapping

LONGEST_BACKOFF_S = 60.0


class RateLimit:
    """At most so much a minute, spread evenly: an amount a makes the next one wait 60 a / per_minute seconds."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self._seconds_each = 60.0 / per_minute
        self._clock = clock
        self._free_at = 0.0

    def reserve(self, amount: float = 1.0) -> float:
        """Books an amount and gives the seconds to wait before it may be used."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + amount * self._seconds_each
        return start - now

    def settle(self, more: float) -> None:
        """Corrects a booking by the amount that it turned out to be more (or, negative, less)."""
        self._free_at += more * self._seconds_each


def backoff(attempt: int, base_s: float, retry_after_s: float | None) -> float:
    """Seconds before retry `attempt` (from 0): uniform in [0, min(60, base · 2^attempt)], known as full jitter.

    What the server asks for comes first: then it is that long plus up to one base, so that not all come back at once.
    """
    if retry_after_s is not None:
        return retry_after_s + random.uniform(0.0, base_s)
    return random.uniform(0.0, min(LONGEST_BACKOFF_S, base_s * 2.0**attempt))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After, a number or an HTTP date (RFC 9110, 10.2.3), or of retry-after-ms; None without them."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0.0 <= seconds < float("inf"):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
