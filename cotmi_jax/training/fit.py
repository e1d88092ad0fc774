"""Trains students in memory on a part of some examples and scores the others, for measures that need their own student.

No workdir, no checkpoint: the loop is that of a run without its files. Imports no tensorflow.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.data.example import Example
from cotmi_jax.data.run_data import tokenize
from cotmi_jax.data.tasks import PREDICT
from cotmi_jax.data.tokens import Batch, gather, round_up
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.evaluation.probe import CrossFitted
from cotmi_jax.experiment import initial_params, make_objective, make_student
from cotmi_jax.models.rng import stream_key, train_streams
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.forward import Heads, forward
from cotmi_jax.parallel.batch import make_process_rows, put_batch
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import replicated
from cotmi_jax.training.optimizer import make_optimizers, make_schedule
from cotmi_jax.training.state import StateDef
from cotmi_jax.training.step import make_train_step

_FOLDS = 2
_VALIDATION = 5  # of the groups that are trained on, every fifth decides when training stops
_CHECKS = 8  # how often the validation part is scored


def label_config(config: ConfigDict, steps: int) -> ConfigDict:
    """The config of a run, for a student of its size that learns labels alone, in `steps` steps."""
    config = config.copy_and_resolve_references()
    config.objective.name, config.objective.token_loss = "standard", "cross_entropy"
    config.objective.alpha_schedule = ""
    config.data.label_type, config.data.rationale_answer = "gt", "cut"
    config.steps = steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 10)
    return config


def cross_fit(
    config: ConfigDict,
    vocabulary: Vocabulary,
    mesh: Mesh,
    examples: Sequence[Example],
    group_N: np.ndarray,
    steps: int,
    batch_size: int,
) -> CrossFitted:
    """Scores the label of each example by a student that was trained on the other half of the groups.

    group_N: number of each example's group, whose examples stay together. The students have the size and the initial
    weights of the config's, and learn to predict labels from inputs. Every fifth group of the half that they are
    trained on is left out, and decides which of their states is used. Call it in jax.set_mesh(mesh).

    Raises:
      UserError: the initial weights cannot be read any more.
    """
    fitter = _Fitter(label_config(config, steps), vocabulary, mesh, examples, batch_size)
    order_G = np.random.default_rng(config.seed).permutation(int(group_N.max()) + 1)
    place_N = np.argsort(order_G)[group_N]
    log_p_N, exact_N = np.zeros(len(examples)), np.zeros(len(examples), bool)
    for fold in range(_FOLDS):
        held_N = place_N % _FOLDS == fold
        stops_N = ~held_N & (place_N // _FOLDS % _VALIDATION == 0)
        train, validation, test = (np.flatnonzero(each) for each in (~held_N & ~stops_N, stops_N, held_N))
        found = fitter.scores(fitter.fit(train, validation, fold), test)
        log_p_N[test], exact_N[test] = found
    return CrossFitted(log_p_N, exact_N)


class _Fitter:
    """Students of one shape on rows of one split; every function compiles once."""

    def __init__(
        self, config: ConfigDict, vocabulary: Vocabulary, mesh: Mesh, examples: Sequence[Example], batch_size: int
    ):
        self._config, self._mesh = config, mesh
        self._batch_size = round_up(batch_size, batch_shards(mesh))
        self._split = tokenize(config, vocabulary, examples, train=False)
        student, objective = StudentDef.of(make_student(config, vocabulary)[0]), make_objective(config)
        self._initial = initial_params(config, student, vocabulary, mesh)
        self._state_def = StateDef.of(student, make_optimizers(config), mesh, objective)
        # A step consumes its state. The copies stay on the devices: no host has all of a sharded student.
        self._copy: Callable[[Params], Params] = jax.jit(
            lambda params: jax.tree.map(jnp.copy, params), out_shardings=self._state_def.shardings.params["student"]
        )
        self._step = make_train_step(self._state_def, objective, make_schedule(config.optimizer, config.steps))

        def score(params: Params, batch: Batch) -> tuple[Array, Array]:
            output = forward(student.bind(params), batch, None, (PREDICT,), Heads())[PREDICT]
            of_target_BxT = output.states.target_RxNxT[:, 0]
            log_p_B = -jnp.where(of_target_BxT, output.loss_RxT, 0.0).sum(axis=1)
            exact_BxT = output.hit_RxT == 1.0  # of a tie each token has a share
            return log_p_B, (exact_BxT | ~of_target_BxT).all(axis=1)

        self._score: Callable[[Params, Batch], tuple[Array, Array]] = jax.jit(score, out_shardings=replicated(mesh))

    def fit(self, train: np.ndarray, validation: np.ndarray, fold: int) -> Params:
        """The student at the check with the best mean log-probability on the validation rows."""
        config = self._config
        state = self._state_def.from_student(self._copy(self._initial), stream_key(config.seed, "init"))
        streams, best, kept = train_streams(config.seed), -math.inf, self._initial
        batches = _passes(train, self._batch_size, np.random.default_rng([config.seed, fold]))
        for step in range(1, config.steps + 1):
            state, _ = self._step(state, self._batch(next(batches)), streams)
            if step % max(config.steps // _CHECKS, 1) == 0 or step == config.steps:
                reached = float(self.scores(state.params["student"], validation).log_p_N.mean())
                if reached > best:
                    best, kept = reached, self._copy(state.params["student"])
        return kept

    def scores(self, params: Params, rows: np.ndarray) -> CrossFitted:
        """Log-probability of each row's label with its eos, nats, and whether greedy decoding gives just that label."""
        log_p_N, exact_N = np.zeros(len(rows)), np.zeros(len(rows), bool)
        for start in range(0, len(rows), self._batch_size):
            chosen = rows[start : start + self._batch_size]
            padded = np.concatenate([chosen, np.full(self._batch_size - len(chosen), -1, chosen.dtype)])
            log_p_B, exact_B = jax.device_get(self._score(params, self._batch(padded)))
            stop = start + len(chosen)
            log_p_N[start:stop], exact_N[start:stop] = log_p_B[: len(chosen)], exact_B[: len(chosen)]
        return CrossFitted(log_p_N, exact_N)

    def _batch(self, rows: np.ndarray) -> Batch:
        return put_batch(gather(self._split, rows[make_process_rows(self._mesh).indices(len(rows))]), self._mesh)


def _passes(rows: np.ndarray, size: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of `size` rows without end; every row once in each pass."""
    waiting = rows[:0]
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, draw.permutation(rows)])
        yield waiting[:size]
        waiting = waiting[size:]
