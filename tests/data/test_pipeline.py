"""tf.data gives exactly the batches of the pure function, from any step and in any number of processes."""

import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from paths import REPOSITORY

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


_BUSY = """
import numpy as np
from splits import random_split
from cotmi_jax.data import pipeline
from cotmi_jax.data.order import TrainOrder
from cotmi_jax.errors import UserError
make_batch, split = pipeline.make_batch, random_split(8)
def busy(split, order, step, *rest):
    if step > 2:
        sum(range(10**6))  # needs the lock of the interpreter all the time
    if step == 20:
        raise UserError("a batch that fails")
    return make_batch(split, order, step, *rest)
pipeline.make_batch = busy
try:
    for _ in pipeline.train_batches(split, TrainOrder.of(8, 4, 0), 0, 10**6):
        pass
except UserError as error:
    print(error)
    np.kept = error  # with the frames of its traceback, until the interpreter ends
"""


def test_the_interpreter_ends_after_an_error_while_further_batches_are_made() -> None:
    """The destructor of tf.data's iterator waits for them, and threads do not run when the interpreter ends."""
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests" / "support")))
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", _BUSY], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "step 21: a batch that fails\n"), done.stderr


def test_an_uneven_division_is_a_user_error(split: TokenizedSplit) -> None:
    with pytest.raises(UserError, match="does not divide into 3 shards on 3 hosts"):
        next(train_batches(split, ORDER, 0, 2, process_rows=ProcessRows(0, 3)))
