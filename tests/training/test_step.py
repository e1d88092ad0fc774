"""The training step: exact under micro-batches and meshes, compiled once, state kept sharded; rng; optimizers."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, numpy_params, random_batch, small_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mi_helpers import mi_config
from ml_collections import ConfigDict
from paths import REPOSITORY

from cotmi_jax.aot.programs import programs
from cotmi_jax.config import base
from cotmi_jax.data.packing import PackShape
from cotmi_jax.errors import UserError
from cotmi_jax.models.remat import step_compiler_options
from cotmi_jax.models.rng import step_key, stream_key, train_streams
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.objective import BatchOutputs, Objective
from cotmi_jax.objectives.terms import Term
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import RULES, param_shardings
from cotmi_jax.training.optimizer import make_optimizer, make_schedule
from cotmi_jax.training.state import StateDef, TrainState, optimizer_shardings
from cotmi_jax.training.step import Step, loss_and_grads, make_train_step

STUDENT = StudentDef.of(small_config())
OBJECTIVE = Objective("cotmi", alpha=0.4, beta=0.5, mi_term=mi_config("barber_agakov"))
ROWS = 16


def optimizer_config(**changes: Any) -> ConfigDict:
    config = base().optimizer
    with config.unlocked():
        config.update(changes)
    return config


def make_batch() -> dict[str, Any]:
    """Some rows are not valid, so that micro-batches and devices have different weights."""
    batch = random_batch(3, ROWS)
    batch["valid"][[2, 3, 11]] = False
    return batch


def compute(micro_batches: int = 1) -> dict[str, Any]:
    """Loss, terms and gradient of the batch on one device."""
    run = jax.jit(lambda params, batch: loss_and_grads(STUDENT, OBJECTIVE, params, batch, None, micro_batches))
    return run({"student": numpy_params(STUDENT)}, make_batch())._asdict()


def compute_over(mesh: Mesh) -> tuple[dict[str, Any], set[str]]:
    """The same over a mesh, and the kinds of collectives in the program."""
    params, batch = {"student": numpy_params(STUDENT)}, put_batch(make_batch(), mesh)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, param_shardings(params, {"student": STUDENT.axes}, mesh))
        run = jax.jit(lambda params, batch: loss_and_grads(STUDENT, OBJECTIVE, params, batch, None, 1))
        compiled = run.lower(params, batch).compile()
    gradient = compiled(params, batch)
    kinds = re.findall(r"\b(all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", compiled.as_text())
    return gradient._asdict(), set(kinds)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return compute()


@pytest.mark.slow
def test_micro_batches_give_the_loss_and_gradient_of_the_batch(whole: dict[str, Any]) -> None:
    """Their tokens differ in number: dividing each by its own would be another loss."""
    tokens = [(make_batch()["explain"]["targets"][part::4] != 0).sum() for part in range(4)]
    assert len(set(tokens)) > 1
    assert_trees_close(compute(micro_batches=4), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_eight_devices_give_the_loss_and_gradient_of_one(sizes: tuple[int, int, int], whole: dict[str, Any]) -> None:
    over_mesh, communication = compute_over(make_mesh(*sizes))
    assert_trees_close(over_mesh, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(over_mesh["loss"], whole["loss"], rtol=1e-6)
    if sizes == (8, 1, 1):  # sums alone: no example leaves its device
        assert communication == {"all-reduce"}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_every_step_and_micro_batch_has_its_own_dropout(micro_batches: int) -> None:
    """With an objective whose only term is a number drawn from the key it is given."""

    def draw(key: jax.Array | None) -> jax.Array:
        return jnp.zeros(()) if key is None else jax.random.uniform(key)

    def compute(student: Any, networks: None, batch: Any, key: jax.Array | None, **_: Any) -> BatchOutputs:
        return BatchOutputs({"draw": Term(draw(key) + 0.0 * student, jnp.ones(()))}, None, {})

    objective: Any = SimpleNamespace(
        tasks=("draw",),
        coefficients_at=lambda step: {"draw": 1.0},
        alpha_schedule=None,
        couples_examples=False,
        mi_term=None,
        weights=lambda batch, pad_id: {"draw": jnp.ones(())},
        ramp=lambda step: 1.0,
        compute=compute,
    )

    def run(rate: float) -> list[float]:
        student = SimpleNamespace(config=SimpleNamespace(dropout=rate, pad_id=0), shapes={}, bind=lambda params: params)
        state_def: Any = SimpleNamespace(student=student, networks=None, optimizer=optax.sgd(0.1), shardings=None)
        step = make_train_step(state_def, objective, optax.constant_schedule(0.1), micro_batches=micro_batches)
        params = {"student": jnp.ones(())}
        state, losses = TrainState(jnp.zeros((), jnp.int32), params, state_def.optimizer.init(params)), []
        for _ in range(3):
            state, metrics = step(state, {"valid": np.ones(4, bool)}, train_streams(0))
            losses.append(float(metrics["loss"]))
        return losses

    keys = [step_key(stream_key(0, "dropout"), step) for step in range(3)]
    if micro_batches == 2:
        expected = [sum(float(draw(jax.random.fold_in(key, part))) for part in range(2)) for key in keys]
    else:
        expected = [float(draw(key)) for key in keys]
    np.testing.assert_allclose(run(0.1), expected, rtol=1e-6)
    assert run(0.0) == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_a_large_student_on_a_cpu_holds_few_temporaries() -> None:
    """By `auto`, which recomputes, in the order that holds the fewest."""
    config = base()
    config.model.preset = "small"
    mesh = make_mesh(devices=jax.devices()[:1])
    found = {}
    for remat in ("auto", "none"):
        config.model.remat = remat
        with jax.set_mesh(mesh):
            compiled = programs(config, mesh, PackShape(8, 128, 64, segments=4))["train"].lower().compile()
        found[remat] = compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
    assert found["auto"] < 0.6 * found["none"]
    assert found["auto"] < 600 * 2**20  # 503 MiB; in XLA's default order 701


def test_small_students_keep_the_default_order_of_xla() -> None:
    assert not step_compiler_options(10**6)
    assert step_compiler_options(10**8)


class Run(NamedTuple):
    """A student trained on two batches in turn, over all devices."""

    student: StudentDef
    mesh: Mesh
    state_def: StateDef
    step: Step
    born: TrainState  # shapes and shardings
    final: TrainState
    metrics: list[dict[str, float]]
    compilations: int  # of the step


STEPS, TASKS = 24, ("predict",)
RATES = {"adamw": 1e-2, "adafactor": 1e-2}


@pytest.fixture(scope="module", params=RATES)
def trained(request: pytest.FixtureRequest) -> Run:
    """Matrices are large enough for Adafactor to factor, and no parameter has two dimensions alike."""
    student = StudentDef.of(small_config(d_model=128, d_ff=192, vocab_size=160))
    mesh = make_mesh(2, 2, 2)
    config = optimizer_config(name=request.param, learning_rate=RATES[request.param])
    state_def = StateDef.of(student, make_optimizer(config, STEPS), mesh)
    step = make_train_step(state_def, Objective("standard"), make_schedule(config, STEPS))
    with jax.set_mesh(mesh):
        state = state_def.init(stream_key(0, "init"))
        born = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        batches = [put_batch(random_batch(seed, ROWS, tasks=TASKS, vocab_size=160), mesh) for seed in (0, 1)]
        metrics = []
        for index in range(STEPS):
            state, measured = step(state, batches[index % 2], train_streams(0))
            metrics.append({name: float(value) for name, value in measured.items()})
    return Run(student, mesh, state_def, step, born, state, metrics, step._cache_size())  # type: ignore[attr-defined]


def named(tree: Any, is_leaf: Any = None) -> Iterator[tuple[str, Any]]:
    """Dict keys of each leaf's path below `student`, joined by slashes; and the leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        yield "/".join(name for name in names if name != "student"), leaf


@pytest.mark.slow
def test_state_is_created_and_stays_sharded_as_the_table_specifies(trained: Run) -> None:
    """A moment is sharded as its parameter, without the dimension Adafactor summed over; the rest is replicated."""
    specs = {
        path: tuple(RULES[name] for name in names)
        for path, names in named(trained.student.axes, is_leaf=lambda node: isinstance(node, tuple))
    }
    shapes = {path: leaf.shape for path, leaf in named(trained.student.shapes)}
    for state in (trained.born, trained.final):
        for path, leaf in named(state):
            spec: tuple[str | None, ...] = ()
            if path in shapes and leaf.shape != (1,):
                spec, shape = specs[path], shapes[path]
                if leaf.shape != shape:
                    (summed,) = [i for i in range(len(shape)) if shape[:i] + shape[i + 1 :] == leaf.shape]
                    spec = spec[:summed] + spec[summed + 1 :]
            expected = NamedSharding(trained.mesh, PartitionSpec(*spec))
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (path, leaf.shape, leaf.sharding)


def test_matrices_and_their_moments_are_sharded(trained: Run) -> None:
    """So that the test above cannot pass because all leaves are replicated."""
    split: dict[str, list[tuple[int, ...]]] = {}
    for path, leaf in named(trained.born):
        if not leaf.sharding.is_fully_replicated:
            split.setdefault(path, []).append(leaf.shape)
    matrix, row, column = (1, 128, 192), (1, 128), (1, 192)
    assert split["encoder/blocks/mlp/up"] in ([matrix] * 3, [matrix, row, column])
    assert len(split["encoder/blocks/attention/query"]) in (2, 3)
    assert "encoder/final_norm/scale" not in split


def test_the_step_is_compiled_once(trained: Run) -> None:
    """Also for a state around given parameters."""
    assert trained.compilations == 1
    with jax.set_mesh(trained.mesh):
        state = trained.state_def.from_student(
            jax.tree.map(np.asarray, numpy_params(trained.student)), stream_key(0, "init")
        )
        batch = put_batch(random_batch(5, ROWS, tasks=TASKS, vocab_size=160), trained.mesh)
        state, metrics = trained.step(state, batch, train_streams(0))
    assert trained.step._cache_size() == 1  # type: ignore[attr-defined]
    assert state.step == 1 and np.isfinite(metrics["loss"])
    assert jax.tree.structure(state) == jax.tree.structure(trained.final)


def test_training_lowers_the_loss(trained: Run) -> None:
    losses = [metrics["loss"] for metrics in trained.metrics]
    assert np.mean(losses[-2:]) < 0.3 * np.mean(losses[:2]), losses
    assert trained.final.step == STEPS
    rates = [metrics["learning_rate"] for metrics in trained.metrics]
    np.testing.assert_allclose(rates, rates[0] * (1.0 - np.arange(STEPS) / STEPS), rtol=1e-5)
    assert set(trained.metrics[0]) == {"loss", "grad_norm", "learning_rate", "predict", "predict_token_accuracy"}


def schedule_of(steps: int, *at: int, **changes: Any) -> list[float]:
    schedule = make_schedule(optimizer_config(learning_rate=2.0, **changes), steps)
    return [float(schedule(step)) for step in at]


def test_schedules() -> None:
    assert schedule_of(100, 0, 50, 99, 100, 150) == pytest.approx([2.0, 1.0, 0.02, 0.0, 0.0], abs=1e-6)
    assert schedule_of(100, 0, 50, 100, schedule="cosine") == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)
    assert schedule_of(100, 25, schedule="cosine") == pytest.approx([1.0 + 0.5**0.5], abs=1e-6)
    assert schedule_of(100, 0, 99, 500, schedule="constant") == [2.0, 2.0, 2.0]
    # The first step moves already, the last of the warm-up and the next have the full rate.
    for name, middle in (("linear", 1.0), ("cosine", 1.0), ("constant", 2.0)):
        rates = schedule_of(50, 0, 4, 9, 10, 30, schedule=name, warmup_steps=10)
        assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, middle], abs=1e-6)
    assert schedule_of(5, 0, 1, 3, warmup_steps=1) == pytest.approx([2.0, 2.0, 1.0])


def test_invalid_optimizer_settings_are_refused() -> None:
    for changes, words in (
        (dict(name="sgd"), "'sgd'.*adamw, adafactor"),
        (dict(schedule="step"), "'step'.*linear, cosine, constant"),
        (dict(warmup_steps=10), "warmup_steps 10 .* 10 steps"),
        (dict(clip_norm=-1.0), "clip_norm is -1.0"),
    ):
        with pytest.raises(UserError, match=words):
            make_optimizer(optimizer_config(**changes), 10)


@pytest.mark.parametrize(("clip_norm", "gradient", "seen"), [(1.0, 50.0, 1.0), (1.0, 0.5, 0.5), (0.0, 50.0, 50.0)])
def test_gradients_are_clipped_by_their_global_norm(clip_norm: float, gradient: float, seen: float) -> None:
    """AdamW's first moment is a tenth of the first gradient."""
    params = {"a": np.zeros(2, np.float32), "b": np.zeros((1, 2), np.float32)}
    optimizer = make_optimizer(optimizer_config(clip_norm=clip_norm), 10)
    grads = jax.tree.map(lambda leaf: leaf + gradient / 2.0, params)  # four elements: the norm of all is `gradient`
    _, state = optimizer.update(grads, optimizer.init(params), params)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1 * seen, rtol=1e-5)


@pytest.mark.parametrize("name", RATES)
def test_weight_decay_is_scaled_by_the_learning_rate(name: str) -> None:
    params = {"a": np.full(3, 4.0, np.float32)}
    optimizer = make_optimizer(optimizer_config(name=name, learning_rate=0.1, weight_decay=0.5), 10)
    updates, _ = optimizer.update({"a": np.zeros(3, np.float32)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1 * 0.5 * params["a"], rtol=1e-6)


@pytest.mark.parametrize("name", RATES)
def test_a_first_update_is_minus_the_learning_rate_times_the_sign_of_the_gradient(name: str) -> None:
    """Whatever the gradient's or the parameter's size."""
    params = {"a": np.array([4.0, 1e-3], np.float32)}
    grads = {"a": np.array([3e-4, -3e-4], np.float32)}
    optimizer = make_optimizer(optimizer_config(name=name, learning_rate=0.1), 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.1, 0.1], rtol=1e-3)


def test_optimizer_state_that_is_not_recognized_is_named() -> None:
    """Replicated silently, a moment would take its whole size on every device."""
    shapes, mesh = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}, make_mesh()
    shardings = {"w": NamedSharding(mesh, PartitionSpec("fsdp"))}
    known = jax.eval_shape(optax.chain(optax.adam(1e-3), optax.adafactor(1e-3)).init, shapes)
    found = optimizer_shardings(known, shapes, shardings, mesh)
    assert optax.tree.get(found, "nu") == shardings
    schedule_free = jax.eval_shape(optax.contrib.schedule_free_sgd(1e-3).init, shapes)
    with pytest.raises(UserError, match=r"^optimizer state \.b1 of shape \(\) is no moment"):
        optimizer_shardings(schedule_free, shapes, shardings, mesh)
    lacking = {"mu": {"v": shapes["w"]}}
    with pytest.raises(UserError, match=r"^optimizer state \['mu'\]\['v'\] of shape \(8, 8\) is no moment"):
        optimizer_shardings(lacking, shapes, shardings, mesh)


def test_streams_differ_and_are_reproducible() -> None:
    keys = {}
    for seed in (0, 1):
        for stream in ("init", "dropout", "mi"):
            keys[seed, stream] = stream_key(seed, stream)
            keys |= {(seed, stream, step): step_key(keys[seed, stream], step) for step in (0, 1, 1000)}
    assert len({jax.random.key_data(key).tobytes() for key in keys.values()}) == len(keys) == 24
    np.testing.assert_array_equal(jax.random.key_data(stream_key(0, "init")), jax.random.key_data(keys[0, "init"]))
    traced = jax.jit(step_key)(keys[0, "mi"], 1000)
    np.testing.assert_array_equal(jax.random.key_data(traced), jax.random.key_data(keys[0, "mi", 1000]))


def test_streams_are_the_same_in_another_process() -> None:
    """Python's hash of a string is not."""
    code = "import jax; from cotmi_jax.models.rng import stream_key; print(*jax.random.key_data(stream_key(3, 'mi')))"
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "1", "JAX_PLATFORMS": "cpu"},
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.split() == [str(word) for word in jax.random.key_data(stream_key(3, "mi"))]
