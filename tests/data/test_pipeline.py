"""tf.data gives exactly the batches of the pure function, from any step and in any number of processes."""

from typing import Any

import jax
import numpy as np
import pytest

from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.pipeline import train_batches
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import TokenizedSplit, gather
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ProcessRows

ORDER = TrainOrder.of(size=10, batch_size=4, seed=1)


@pytest.fixture(scope="module", params=["standard", "dss"])
def split(request: pytest.FixtureRequest) -> TokenizedSplit:
    examples = make_arithmetic(seed=3, num_train=10, num_valid=0, num_test=0).splits["train"]
    return tokenize_split(
        examples,
        Vocabulary(VOCABULARY_PATH),
        objective=request.param,
        label_type="gt",
        limits=TokenLimits(64, 64),
    )


def assert_same_batch(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected)


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (7, 12), (10**9, 10**9 + 2)])
def test_batches_are_those_of_the_pure_function(split: TokenizedSplit, start: int, stop: int) -> None:
    batches = list(train_batches(split, ORDER, start, stop))
    assert len(batches) == stop - start
    for step, batch in enumerate(batches, start):
        assert_same_batch(batch, gather(split, *ORDER.picks(step)))


def test_an_empty_range_of_steps_gives_no_batches(split: TokenizedSplit) -> None:
    assert list(train_batches(split, ORDER, 5, 5)) == []


def test_processes_supply_one_batch_together(split: TokenizedSplit) -> None:
    groups = ProcessRows(0, 2, (0, 3)), ProcessRows(1, 2, (1, 2))
    streams = [train_batches(split, ORDER, 2, 8, process_rows=process_rows) for process_rows in groups]
    place = np.argsort(np.concatenate([process_rows.indices(ORDER.batch_size) for process_rows in groups]))
    for step, batches in enumerate(zip(*streams, strict=True), 2):
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays)[place], *batches)
        assert_same_batch(joined, gather(split, *ORDER.picks(step)))


def test_an_uneven_division_is_a_user_error(split: TokenizedSplit) -> None:
    with pytest.raises(UserError, match="does not divide into 3 shards on 3 hosts"):
        next(train_batches(split, ORDER, 0, 2, process_rows=ProcessRows(0, 3)))
