"""What a run says of its speed, by a clock that the test sets."""

from collections.abc import Iterator
from typing import Any

import pytest

from cotmi_jax.training import throughput
from cotmi_jax.training.throughput import Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Result:
    """A device array that is ready from some time on."""

    def __init__(self, clock: Clock, at: float):
        self.clock, self.at = clock, at

    def is_ready(self) -> bool:
        return self.clock.now >= self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def run(clock: Clock, *, fetch: float, compute: float, steps: int = 5) -> dict[str, float]:
    """A loop that fetches a batch in `fetch` seconds, while the device computes the step before in `compute`."""
    speed = Throughput()

    def slow() -> Iterator[dict[str, Any]]:
        for _ in range(steps):
            clock.now += fetch
            yield {}

    done = 0.0
    for _ in speed.feed(slow()):
        started = max(clock.now, done)
        before, done = done, started + compute
        speed.running = {"loss": Result(clock, done)}  # type: ignore[dict-item]
        if before:  # the loop reads a step when the next one runs
            clock.now = max(clock.now, before)
            speed.step()
    clock.now = max(clock.now, done)
    speed.step()
    return speed.read(batch_size=8)


def test_a_device_that_outruns_its_input_is_seen_to_wait(clock: Clock) -> None:
    found = run(clock, fetch=3.0, compute=1.0)
    assert found["seconds_per_step"] == pytest.approx(2.5, abs=0.6)
    assert found["input_wait"] == pytest.approx(0.9)
    assert found["examples_per_second"] == pytest.approx(8 / found["seconds_per_step"])


def test_input_that_comes_while_the_device_works_is_no_wait(clock: Clock) -> None:
    assert run(clock, fetch=0.5, compute=2.0)["input_wait"] == 0.0


def test_readings_start_afresh_and_pauses_do_not_count(clock: Clock) -> None:
    speed = Throughput()
    assert speed.read(8) == {}
    speed.step()  # the first, which compiles
    clock.now += 2.0
    speed.step()
    speed.stop()
    clock.now += 50.0  # an evaluation
    speed.start()
    clock.now += 2.0
    speed.step()
    assert speed.read(8)["seconds_per_step"] == 2.0
    clock.now += 1.0
    speed.step()
    assert speed.read(8) == {"seconds_per_step": 1.0, "examples_per_second": 8.0, "input_wait": 0.0}
