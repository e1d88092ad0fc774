"""The decoding benchmark: what every side is given."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decode
from cotmi_jax.models.hf import load_hf


def test_batches_hold_every_input_once_at_its_place() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 37)
    inputs = [[index + 2] * int(length) for index, length in enumerate(lengths)]
    shapes = []

    def last_tokens(ids_BxS: np.ndarray) -> np.ndarray:
        shapes.append(ids_BxS.shape)
        return np.stack([ids_BxS[:, 0], (ids_BxS != 0).sum(axis=1)], axis=1)

    outputs = decode.batched(last_tokens, inputs, 8)
    assert outputs == [[index + 2, length] for index, length in enumerate(lengths)]
    assert {rows for rows, _ in shapes} == {8} and len({length for _, length in shapes}) > 1
    assert sum(rows * length for rows, length in shapes) < 1.5 * lengths.sum()


@pytest.mark.slow
def test_the_student_of_all_sides_never_ends(tmp_path: Path) -> None:
    arguments = argparse.Namespace(dataset="arithmetic", data_root=None, preset="tiny", examples=5)
    decode.prepare(arguments, tmp_path)
    config, params = load_hf(tmp_path / "hf")
    assert not np.asarray(params["head"])[:, config.eos_id].any()
    arguments.__dict__ |= dict(batch_size=8, max_tokens=3, beams=1, passes=1, side="jax", directory=str(tmp_path))
    found = decode.measure(arguments)
    assert np.shape(found["outputs"]) == (5, 3) and len(found["wall"]) == len(found["cpu"]) == 1  # type: ignore[arg-type]
