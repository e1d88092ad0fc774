"""Packed rows hold the sequences of the padded batch, and losses and gradients are the same."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import assert_trees_close, numpy_params, small_config, toy_student
from mi_helpers import mi_config
from splits import TASKS, random_split, sequence

from cotmi_jax.config import base
from cotmi_jax.data import packing
from cotmi_jax.data.order import Picks, TrainOrder
from cotmi_jax.data.packing import PADDING, PackShape, group_picks, make_shape, pack
from cotmi_jax.data.run_data import load_data, tokenize
from cotmi_jax.data.tokens import Batch, TokenizedSplit, gather
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import find_vocabulary
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.process_rows import ProcessRows
from cotmi_jax.training.state import StateDef
from cotmi_jax.training.step import Gradient, MITermInputs, loss_and_grads, make_train_step

STUDENTS = {"t5": StudentDef.of(small_config(relative_max_distance=8)), "toy": toy_student()}
BATCH = 8


def make_order(split: TokenizedSplit, batch_size: int = BATCH) -> TrainOrder:
    return TrainOrder.of(split.size, batch_size, seed=1, tokens=split)


@functools.cache
def made(tasks: tuple[str, ...] = TASKS, rationales: int = 3) -> tuple[TokenizedSplit, PackShape]:
    split = random_split(40, tasks=tasks, rationales=rationales)
    return split, make_shape(split, make_order(split), multiple=2)


def picks_of(split: TokenizedSplit, step: int = 7) -> Picks:
    """The examples of a step in a pass that uses second rationales."""
    return make_order(split).picks(step)


# Contents of the rows.


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("tasks", [("predict",), TASKS])
def test_rows_hold_every_sequence_pair_once(tasks: tuple[str, ...], processes: int) -> None:
    split = random_split(200, tasks=tasks, rationales=3)
    order = make_order(split, 16)
    shape = make_shape(split, order, multiple=2 * processes, groups=processes)
    for step in range(30):
        picks, found = order.picks(step), []
        for process in range(processes):
            # Two of the 2 · processes shards, which are not adjacent.
            process_rows = ProcessRows(process, processes, (process, process + processes))
            batch = pack(split, picks, shape, process_rows)
            rows, examples = batch["rows"], batch["examples"]
            assert rows["inputs"].shape == (shape.rows // processes, shape.input_length)
            assert rows["targets"].shape == (shape.rows // processes, shape.target_length)
            supplied = picks.take(group_picks(split, picks, process_rows))
            for example, (row, number) in enumerate(zip(*supplied, strict=True)):
                for index, task in enumerate(tasks):
                    row_of_batch, segment = (
                        int(n) for n in np.divmod(examples["slots"][task][example], shape.segments)
                    )
                    at, segment = process_rows.indices(shape.rows).tolist().index(row_of_batch), segment + 1
                    tokens, target = split.tasks[task], split.target_rows(task, np.array([row]), number)[0]
                    for kind, expected in (
                        ("input", sequence(tokens.inputs, row)),
                        ("target", sequence(tokens.targets, target)),
                    ):
                        places = np.flatnonzero(rows[f"{kind}_segments"][at] == segment)
                        assert rows[f"{kind}s"][at, places].tolist() == expected
                        np.testing.assert_array_equal(np.diff(places), 1)  # contiguous
                    weight = split.weights[split.rationale_rows(np.array([row]), number)[0]]
                    assert rows["task"][at, segment - 1] == index
                    assert rows["weight"][at, segment - 1] == (weight if task == tasks[-1] else 1.0)
                    assert examples["weight"][example] == weight
                    found.append((int(row), task))
            # And nothing else.
            for kind in ("input", "target"):
                segments = rows[f"{kind}_segments"]
                assert ((rows[f"{kind}s"] != 0) == (segments > 0)).all()
                assert [len(set(row[row > 0])) for row in segments] == (rows["task"] >= 0).sum(axis=1).tolist()
        assert sorted(found) == sorted((int(row), task) for row in picks.rows for task in tasks)


def test_the_batch_does_not_depend_on_the_number_of_hosts() -> None:
    split = random_split(300, inputs=(2, 40))
    picks = make_order(split, 32).picks(5)
    for processes in (1, 2, 4):
        groups = [group_picks(split, picks, ProcessRows(process, processes)) for process in range(processes)]
        assert [len(group) for group in groups] == [32 // processes] * processes
        assert sorted(np.concatenate(groups).tolist()) == list(range(32))
        tokens = np.stack([split.token_counts(picks.take(group)).sum(axis=0) for group in groups])
        assert (tokens.max(axis=0) <= 1.1 * tokens.mean(axis=0)).all()
    with pytest.raises(UserError, match="batch of 32 does not divide into 3 shards on 3 hosts"):
        group_picks(split, picks, ProcessRows(0, 3))


def test_accelerators_get_other_rows_of_the_same_batches() -> None:
    split = random_split(150, inputs=(2, 70), explanations=(2, 40))
    order = make_order(split, 64)
    cpu, gpu = (make_shape(split, order, multiple=1, platform=name) for name in ("cpu", "gpu"))
    assert cpu == make_shape(split, order, multiple=1)
    assert gpu.rows > cpu.rows and gpu.input_length < cpu.input_length
    for step in range(3):
        tokens = [np.sort(pack(split, order.picks(step), shape)["rows"]["targets"], axis=None) for shape in (cpu, gpu)]
        np.testing.assert_array_equal(*(each[each > 0] for each in tokens))


def test_rows_shorter_than_a_tile_save_no_bytes_on_tpu() -> None:
    long, short = PackShape(26, 256, 96, segments=8), PackShape(33, 208, 80, segments=7)  # of CommonsenseQA
    cheaper = {name: packing._cost(short, name) < packing._cost(long, name) for name in ("cpu", "gpu", "tpu")}
    assert cheaper == {"cpu": False, "gpu": True, "tpu": False}


def test_one_shape_holds_every_batch_of_many_epochs() -> None:
    split = random_split(150, inputs=(2, 70), explanations=(2, 40))
    order = make_order(split, 16)
    shape = make_shape(split, order, multiple=4)
    assert shape.rows % 4 == 0
    for step in range(400):
        pack(split, order.picks(step), shape)


def test_a_batch_that_does_not_fit_gets_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its examples are in them; the shape itself stays that of the other batches."""
    monkeypatch.setattr(packing, "_ATTEMPTS", 3)
    split, shape = made()
    assert shape.increment == 2
    batch = pack(split, picks_of(split), dataclasses.replace(shape, rows=2, input_length=24))
    assert len(batch["rows"]["inputs"]) > 2
    whole = pack(split, picks_of(split), shape)
    assert np.sort(batch["rows"]["inputs"][batch["rows"]["inputs"] != 0]).tolist() == (
        np.sort(whole["rows"]["inputs"][whole["rows"]["inputs"] != 0]).tolist()
    )


def test_a_batch_that_does_not_fit_the_rows_of_a_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_ATTEMPTS", 3)
    split, shape = made()
    assert make_shape(split, make_order(split), multiple=2, groups=2).increment == 0
    tight = dataclasses.replace(shape, rows=2, input_length=24, increment=0)
    with pytest.raises(
        UserError, match=r"does not fit into 2 rows of 24 and \d+: set config.data.packing to False, in another"
    ):
        pack(split, picks_of(split), tight)


def test_batches_that_fit_no_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_place", lambda *arguments, **named: None)
    with pytest.raises(UserError, match="no packed rows hold every batch of 8 examples on 1 hosts"):
        make_shape(made()[0], make_order(made()[0]), multiple=1)


@pytest.mark.parametrize("name", ["cqa", "svamp", "esnli"])
def test_padding_of_real_data_stays_within_its_limits(data_root: Path, name: str) -> None:
    config = base()
    config.data.dataset, config.data.root, config.data.empty_rationale = name, str(data_root), "drop"
    config.model.init = "random"
    examples = load_data(config).corpus.splits["train"]
    split = tokenize(config, Vocabulary(find_vocabulary(config)), examples, train=True)
    order = make_order(split, 64)
    shape = make_shape(split, order, multiple=1)
    filled = np.zeros(2)
    for step in range(60):
        rows = pack(split, order.picks(step), shape)["rows"]
        assert (rows["task"] >= 0).sum() == 128
        filled += [np.mean(rows["input_segments"] > 0) / 60, np.mean(rows["target_segments"] > 0) / 60]
    assert (1.0 - filled <= PADDING).all()


# Losses and gradients.

_CRITIC = CriticConfig("separable", hidden=8, layers=1, dim=4, normalization="layer")
MI_TERMS = {
    "decoder_mean": mi_config(critic=_CRITIC),
    "decoder_attention": mi_config(feature="decoder_attention", critic=_CRITIC),
    "decoder_max": mi_config(feature="decoder_max", detach="none", critic=_CRITIC),
    "encoder_mean": mi_config(feature="encoder_mean", detach="v", critic=_CRITIC),
    "vocab_mean": mi_config(feature="vocab_mean", critic=_CRITIC),
    "mine": mi_config("mine", critic=_CRITIC),
    "club": mi_config(compression="club", compression_weight=0.3, critic=_CRITIC),
    "variational": mi_config(compression="variational", compression_weight=0.3, critic=_CRITIC),
    "barber_agakov": mi_config("barber_agakov"),
    "barber_agakov_head": mi_config("barber_agakov_head", critic=_CRITIC),
    "barber_agakov_gaussian": mi_config("barber_agakov_gaussian", critic=_CRITIC),
}
OBJECTIVES = {name: Objective(name) for name in ("standard", "single_task", "dss")}
OBJECTIVES |= {name: Objective("cotmi", beta=0.7, mi_term=config) for name, config in MI_TERMS.items()}


@functools.cache
def compiled(objective: Objective, micro_batches: int, student: str) -> Callable[[Params, Batch], Gradient]:
    networks = objective.networks(STUDENTS[student].config)
    scored = objective.mi_term is not None and objective.mi_term.scored
    mi_inputs = MITermInputs(networks, None, objective.mi_term.score_estimator().start() if scored else None, 0.5)
    return jax.jit(
        lambda params, batch: loss_and_grads(
            STUDENTS[student], objective, params, batch, None, micro_batches, mi_inputs
        )
    )


def compute(objective: Objective, batch: Batch, micro_batches: int = 1, student: str = "toy") -> dict[str, Any]:
    """Loss, terms and gradient without dropout."""
    networks = objective.networks(STUDENTS[student].config)
    params = {"student": numpy_params(STUDENTS[student])}
    if networks is not None:
        params["mi"] = numpy_params(networks, seed=1)  # type: ignore[arg-type]
    found = compiled(objective, micro_batches, student)(params, batch)._asdict()
    return jax.device_get(found | {"terms": {name: term._asdict() for name, term in found["terms"].items()}})


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["terms"].keys() == expected["terms"].keys()
    assert_trees_close(actual, expected, rtol=3e-5, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "student"), [*((name, "toy") for name in OBJECTIVES), ("decoder_mean", "t5")])
def test_loss_gradient_terms_and_metrics_are_those_of_the_padded_batch(name: str, student: str) -> None:
    objective = OBJECTIVES[name]
    split, shape = made(objective.tasks, 1 if name == "standard" else 3)
    expected = compute(objective, gather(split, *picks_of(split)), student=student)
    assert float(expected["loss"]) != 0.0
    packed = pack(split, picks_of(split), shape)
    assert_same(compute(objective, packed, student=student), expected)
    if student == "toy" and name in ("dss", "decoder_mean", "variational", "barber_agakov"):
        assert_same(compute(objective, packed, micro_batches=2), expected)


def emptied(batch: Batch) -> Batch:
    """A batch of the same shape that holds padding alone."""
    empty = jax.tree.map(np.zeros_like, batch)
    if "rows" in empty:
        empty["rows"]["task"] -= 1
        empty["examples"]["slots"] = batch["examples"]["slots"]
    return empty


@pytest.mark.slow
@pytest.mark.parametrize(("name", "student"), [*((name, "toy") for name in OBJECTIVES), ("decoder_mean", "t5")])
def test_a_batch_of_padding_has_no_loss_and_no_gradient(name: str, student: str) -> None:
    """Padded and packed, though no term has an example to divide by."""
    objective = OBJECTIVES[name]
    split, shape = made(objective.tasks, 1 if name == "standard" else 3)
    for batch in (gather(split, *picks_of(split)), pack(split, picks_of(split), shape)):
        found = compute(objective, emptied(batch), student=student)
        assert found["loss"] == 0.0
        assert all(term["weight"] == 0.0 and np.isfinite(term["sum"]) for term in found["terms"].values())
        for leaf in jax.tree.leaves(found["grads"]):
            np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 2}])
@pytest.mark.parametrize("name", ["decoder_mean", "barber_agakov"])
def test_a_mesh_changes_nothing(name: str, sizes: dict[str, int]) -> None:
    objective, mesh = OBJECTIVES[name], make_mesh(**sizes)
    split, _ = made()
    shape = make_shape(split, make_order(split), multiple=2 * 4)
    expected = compute(objective, gather(split, *picks_of(split)))
    with jax.set_mesh(mesh):
        batch = put_batch(pack(split, picks_of(split), shape), mesh)
        for micro_batches in (1, 2):
            assert_same(compute(objective, batch, micro_batches), expected)


@pytest.mark.slow
def test_rows_of_several_processes_form_the_batch_of_one() -> None:
    objective = OBJECTIVES["decoder_mean"]
    split, _ = made()
    shape = make_shape(split, make_order(split), multiple=4, groups=2)
    groups = ProcessRows(0, 2, (0, 2)), ProcessRows(1, 2, (1, 3))
    batches = [pack(split, picks_of(split), shape, process_rows) for process_rows in groups]

    def join(*arrays: np.ndarray) -> np.ndarray:
        rows = np.concatenate([process_rows.indices(2 * len(arrays[0])) for process_rows in groups])
        return np.concatenate(arrays)[np.argsort(rows)]

    joined = jax.tree.map(join, *batches)
    assert_same(compute(objective, joined), compute(objective, gather(split, *picks_of(split))))


@pytest.mark.slow
def test_sequence_pairs_of_a_row_do_not_interact() -> None:
    """The states of a pair are bit for bit the same, whatever the other pairs of its row hold."""
    split, shape = made()
    rows = pack(split, picks_of(split), shape)["rows"]
    params = numpy_params(STUDENTS["t5"])
    others = rows["target_segments"] != 1, rows["input_segments"] != 1

    @jax.jit
    def states(rows: dict[str, jax.Array]) -> jax.Array:
        student, segments = STUDENTS["t5"].bind(params), (rows["input_segments"], rows["target_segments"])
        encoded = student.encode(rows["inputs"], None, segments[0])
        return student.decode(encoded, rows["inputs"], rows["targets"], None, segments)

    changed = rows | {
        "targets": np.where(others[0] & (rows["targets"] > 1), 5, rows["targets"]),
        "inputs": np.where(others[1] & (rows["inputs"] > 1), 7, rows["inputs"]),
    }
    before, after = np.asarray(states(rows)), np.asarray(states(changed))
    np.testing.assert_array_equal(before[~others[0]], after[~others[0]])
    assert np.abs(before - after)[others[0] & (rows["target_segments"] > 0)].max() > 0.01


@pytest.mark.slow
def test_batches_of_one_shape_compile_once() -> None:
    import optax

    objective = OBJECTIVES["decoder_mean"]
    split, shape = made()
    mesh = make_mesh()
    shape = make_shape(split, make_order(split), multiple=8)
    with jax.set_mesh(mesh):
        state_def = StateDef.of(STUDENTS["toy"], optax.sgd(0.1), mesh, objective)
        step = make_train_step(state_def, objective, optax.constant_schedule(0.1))
        state = state_def.init(jax.random.key(0))
        streams: Any = {"dropout": jax.random.key(1), "mi": jax.random.key(2)}
        for number in range(3):
            batch = put_batch(pack(split, make_order(split).picks(number), shape), mesh)
            state, metrics = step(state, batch, streams)
            assert np.isfinite(float(metrics["loss"]))
    assert step._cache_size() == 1  # type: ignore[attr-defined]


def test_the_released_loss_reads_padding_and_is_refused() -> None:
    objective = Objective("cotmi", mi_term=mi_config("released"))
    split, shape = made()
    with pytest.raises(UserError, match="mi.estimator released reads the padding"):
        objective.forward(
            STUDENTS["toy"].bind(numpy_params(STUDENTS["toy"])), pack(split, picks_of(split), shape), None, trains=True
        )
