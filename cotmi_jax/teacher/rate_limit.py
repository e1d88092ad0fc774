"""Waiting times before requests: rate limits and the backoff between retries."""

import email.utils
import random
import time
from collections.abc import Callable, Mapping

MAX_BACKOFF_S = 60.0


class RateLimit:
    """A limit of `per_minute` units, spread evenly: n units delay the next reservation by 60 n / per_minute seconds.

    Unused time is not saved up.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self._seconds_per_unit = 60.0 / per_minute
        self._clock = clock
        self._free_at = 0.0

    def reserve(self, amount: float = 1.0) -> float:
        """Reserves an amount and returns the seconds to wait before it may be used."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + amount * self._seconds_per_unit
        return start - now

    def correct(self, difference: float) -> None:
        """Adds the difference between the amount that was used and the amount that was reserved."""
        self._free_at += difference * self._seconds_per_unit


def backoff(attempt: int, base_s: float, retry_after_s: float | None) -> float:
    """Seconds before retry `attempt` (from 0): uniform in [0, min(60, base · 2^attempt)], known as full jitter.

    If the server sets a time, it is that time plus a uniform part of one base, which spreads simultaneous retries.
    """
    if retry_after_s is not None:
        return retry_after_s + random.uniform(0.0, base_s)
    return random.uniform(0.0, min(MAX_BACKOFF_S, base_s * 2.0**attempt))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of retry-after-ms or Retry-After, a number or an HTTP date (RFC 9110, 10.2.3); None without them."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0.0 <= seconds < float("inf"):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
