"""mi_grad_share: the norm of the term's gradient relative to that of the cross-entropies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from answers import answer_split, consistency
from helpers import numpy_params, toy_student
from mi_helpers import mi_config, objective_of

from cotmi_jax.data.order import Picks
from cotmi_jax.data.packing import PackShape, pack
from cotmi_jax.data.tokens import gather
from cotmi_jax.models.module import Params
from cotmi_jax.models.rng import stream_key, train_streams
from cotmi_jax.objectives.mi_term import MITermConfig
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training.optimizer import with_networks
from cotmi_jax.training.state import StateDef
from cotmi_jax.training.step import MITermInputs, loss_and_grads, make_gradient_share

STUDENT = toy_student()
PICKS = Picks(np.arange(8), np.zeros(8, np.int64))
TERMS = {"infonce": mi_config(detach="none", warmup_steps=0, ramp_steps=1), "consistency": consistency(detach="none")}


def apart(config: MITermConfig, state_def: StateDef, params: Params) -> float:
    """From the gradient of the loss and that of dss, whose difference is that of the term."""
    batch, objective = gather(answer_split(8), *PICKS), objective_of(config)
    beside = MITermInputs(state_def.networks, None, None, objective.ramp(jnp.int32(0)))

    @jax.jit
    def ratio(params: Params) -> jax.Array:
        whole = loss_and_grads(STUDENT, objective, params, batch, None, 1, beside).grads["student"]
        student = {"student": params["student"]}
        dss = loss_and_grads(STUDENT, Objective("dss", alpha=0.4), student, batch, None, 1).grads["student"]
        return optax.tree.norm(jax.tree.map(jnp.subtract, whole, dss)) / optax.tree.norm(dss)

    return float(ratio(params))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "micro_batches", "sizes"), [("infonce", 2, (4, 2)), ("consistency", 1, (8, 1))])
def test_it_is_the_ratio_of_two_gradients_computed_apart(name: str, micro_batches: int, sizes: tuple[int, int]) -> None:
    """With packed rows; of infonce at half of beta, in the middle of its ramp."""
    mesh, optimizer = make_mesh(*sizes, 1), with_networks(optax.sgd(1.0), optax.sgd(1.0))
    with jax.set_mesh(mesh):
        objective = objective_of(TERMS[name])
        state_def = StateDef.of(STUDENT, optimizer, mesh, objective)
        state = state_def.from_student(numpy_params(STUDENT), stream_key(0, "init"))
        if state_def.networks is not None:  # a critic starts at scores of 0, without gradient
            networks = jax.device_put(numpy_params(state_def.networks), state_def.shardings.params["mi"])  # type: ignore[arg-type]
            state = dataclasses.replace(state, params=state.params | {"mi": networks})
        batch = put_batch(pack(answer_split(8), PICKS, PackShape(16, 32, 32, 3)), mesh)
        found = make_gradient_share(state_def, objective, micro_batches=micro_batches)(state, batch, train_streams(0))
    assert 0.01 < float(found)
    np.testing.assert_allclose(found, apart(TERMS[name], state_def, jax.device_get(state.params)), rtol=1e-4)
