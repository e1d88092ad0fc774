"""Throughput and time by phase of a run, with a clock that the test controls."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import runs

from cotmi_jax.data.vocabulary import PAD_ID
from cotmi_jax.experiment import Experiment
from cotmi_jax.models.config import preset
from cotmi_jax.models.flops import step_flops
from cotmi_jax.training import throughput
from cotmi_jax.training.throughput import Throughput, Work

WORK = Work(examples=8, tokens=300, flops=6e9)


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
            speed.step(WORK)
    clock.now = max(clock.now, done)
    speed.step(WORK)
    return speed.read()


def seconds(found: Mapping[str, float]) -> float:
    return sum(value for name, value in found.items() if "seconds_" in name and not name.endswith("per_step"))


def test_waiting_of_an_idle_device_counts_as_input(clock: Clock) -> None:
    found = run(clock, fetch=3.0, compute=1.0)
    assert found["seconds_per_step"] == pytest.approx(2.5, abs=0.6)
    assert found["input_wait"] == pytest.approx(0.9)
    assert found["seconds_input"] == pytest.approx(9.0)
    assert found["examples_per_second"] == pytest.approx(8 / found["seconds_per_step"])


def test_waiting_while_the_device_computes_does_not_count_as_input(clock: Clock) -> None:
    found = run(clock, fetch=0.5, compute=2.0)
    assert (found["input_wait"], found["seconds_input"]) == (0.0, 0.0)


def test_phases_sum_to_the_elapsed_time_and_each_read_starts_at_zero(clock: Clock) -> None:
    speed = Throughput(peak=1e10)
    clock.now += 7.0
    speed.step(WORK)  # the first, which compiles
    first = speed.read()
    assert first == {
        "seconds_first_step": 7.0,
        **{f"seconds_{phase}": 0.0 for phase in ("input", "step", "evaluation", "checkpoint")},
    }
    clock.now += 2.0
    speed.step(WORK)
    with speed.during("evaluation"):
        clock.now += 50.0
        with speed.during("checkpoint"):
            clock.now += 5.0
        clock.now += 1.0
    clock.now += 4.0
    speed.step(WORK)
    found = speed.read()
    assert found == {
        **{"seconds_input": 0.0, "seconds_step": 6.0, "seconds_evaluation": 51.0, "seconds_checkpoint": 5.0},
        **{"seconds_per_step": 3.0, "examples_per_second": 16 / 6.0, "tokens_per_second": 100.0, "input_wait": 0.0},
        **{"mfu": pytest.approx(0.2)},
    }
    assert seconds(first) + seconds(found) == clock.now - 100.0
    with pytest.raises(ArithmeticError), speed.during("checkpoint"):
        clock.now += 1.0
        raise ArithmeticError
    clock.now += 3.0
    assert speed.summary() == "73.0 s: evaluation 69.9%, step 12.3%, first step 9.6%, checkpoint 8.2%, input 0.0%"
    assert seconds(speed.read()) == 0.0


def test_without_a_known_peak_there_is_no_utilization(clock: Clock) -> None:
    assert "mfu" not in run(clock, fetch=0.5, compute=2.0)


@pytest.mark.parametrize("packing", [True, False])
def test_work_counts_the_real_tokens_of_the_global_batch(packing: bool) -> None:
    experiment = Experiment.of(runs.tiny_config({"data.packing": packing}), None)
    data, student = experiment.data, preset("tiny", vocab_size=512)
    batches = data.batches(0, data.shape(1))
    for step, batch in zip(range(1, 5), batches, strict=False):
        if packing:
            arrays = [batch["rows"]["input_segments"], batch["rows"]["target_segments"]]
        else:
            arrays = [batch[task][side] for task in ("predict", "explain") for side in ("inputs", "targets")]
        lengths = data.lengths(step)
        work = Work.of(student, 8, lengths)
        assert len(lengths) == 16 and work.tokens == sum(int((array != PAD_ID).sum()) for array in arrays)
        if not packing:
            expected = [
                step_flops(student, rows=1, input_length=(row != PAD_ID).sum(), target_length=(out != PAD_ID).sum())
                for task in ("predict", "explain")
                for row, out in zip(batch[task]["inputs"], batch[task]["targets"], strict=True)
            ]
            assert work.flops == pytest.approx(sum(expected))
