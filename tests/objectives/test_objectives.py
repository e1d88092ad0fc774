"""The objectives on a student whose parameters are its logits. Oracles: the release's formula in torch, and numpy."""

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close
from mi_helpers import mi_config

from cotmi_jax.errors import UserError
from cotmi_jax.mi.barber_agakov import vocabulary_loss
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.objectives.terms import Term, Terms, token_mask
from cotmi_jax.training.step import loss_and_grads

V = 11
WIDTHS = {"predict": 5, "explain": 8}
# Of the targets of four examples. Every row has padding, also beyond the longest example.
LENGTHS = {"predict": (3, 1, 2, 4), "explain": (6, 2, 7, 3)}
PEAK_V = 20.0 * np.eye(V)[4]  # a token sure enough to show in any maximum
ESTIMATORS = ("released", "barber_agakov")

Logits = dict[str, Any]


def cotmi(estimator: str, **options: Any) -> Objective:
    return Objective("cotmi", mi_term=mi_config(estimator), **options)


class LogitsAreParameters:
    """In place of a student definition: bound to {task: logits [B, T, V]}, which are distinguished by their width T."""

    config = SimpleNamespace(pad_id=0)

    def bind(self, logits: Logits) -> Any:
        by_width = {leaf.shape[1]: leaf for leaf in logits.values()}
        return SimpleNamespace(
            config=self.config,
            encode=lambda inputs, key: inputs[..., None],
            decode=lambda encoded, inputs, targets, key: by_width[targets.shape[1]],
            make_logits=lambda: lambda states: states,
        )


STUDENT: Any = LogitsAreParameters()


def make_batch() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    batch: dict[str, Any] = {"valid": np.ones(4, bool), "weight": np.ones(4, np.float32)}
    for task, width in WIDTHS.items():
        targets = draw.integers(1, V, (4, width))
        targets[np.arange(width) >= np.array(LENGTHS[task])[:, None]] = 0
        batch[task] = {"inputs": draw.integers(1, V, (4, 3)), "targets": targets}
    return batch


def make_logits(scale: float = 3.0) -> Logits:
    draw = np.random.default_rng(1)
    return {task: scale * draw.normal(size=(4, width, V)).astype(np.float32) for task, width in WIDTHS.items()}


class Result(NamedTuple):
    terms: Terms
    term_grads: dict[str, Logits]  # of the mean of each term that has a coefficient
    loss: jax.Array
    loss_grads: Logits


@functools.cache
def compiled(objective: Objective) -> Callable[[Logits, dict[str, Any]], Result]:
    def run(logits: Logits, batch: dict[str, Any]) -> Result:
        def means(logits: Logits) -> tuple[dict[str, jax.Array], Terms]:
            # The gradient of the features carries beta, which is a coefficient and not part of the term.
            terms = dataclasses.replace(objective, beta=1.0).evaluate(STUDENT.bind(logits), batch).terms
            return {name: terms[name].mean for name in objective.coefficients}, terms

        term_grads, terms = jax.jacrev(means, has_aux=True)(logits)
        gradient = loss_and_grads(STUDENT, objective, {"student": logits}, batch, None, 1)
        return Result(terms, term_grads, gradient.loss, gradient.grads["student"])

    return jax.jit(run)


def terms_of(objective: Objective, logits: Logits, batch: dict[str, Any]) -> Terms:
    return compiled(objective)(logits, batch).terms


def mean_and_grad(objective: Objective, term: str, logits: Logits, batch: dict[str, Any]) -> tuple[jax.Array, Logits]:
    """The mean of one term and its gradient with respect to the logits."""
    result = compiled(objective)(logits, batch)
    return result.terms[term].mean, result.term_grads[term]


def full_loss(objective: Objective, logits: Logits, batch: dict[str, Any]) -> tuple[jax.Array, Logits]:
    result = compiled(objective)(logits, batch)
    return result.loss, result.loss_grads


def pad(batch: dict[str, Any], logits: Logits, extra: int, fill: np.ndarray) -> tuple[dict[str, Any], Logits]:
    """The same with more padding columns in every target, where the student's logits are `fill`."""
    wider = {task: batch[task] | {"targets": np.pad(batch[task]["targets"], ((0, 0), (0, extra)))} for task in WIDTHS}
    columns = np.broadcast_to(fill.astype(np.float32), (4, extra, V))
    more = {task: np.concatenate([leaf, columns], axis=1) for task, leaf in logits.items()}
    return batch | wider, more


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def numpy_barber_agakov(logits: Logits, batch: dict[str, Any], *, z_from: Logits | None = None) -> float:
    """In float64, example by example; z_from: the logits of z, if not the same logits."""
    total = 0.0
    for row in np.flatnonzero(batch["valid"]):
        features = {}
        for task, source in (("predict", z_from or logits), ("explain", logits)):
            real = batch[task]["targets"][row] != 0
            feature = softmax(source[task][row][real]).max(axis=0)
            features[task] = feature / feature.sum()
        total -= (features["predict"] * np.log(features["explain"])).sum()
    return total / batch["valid"].sum()


@pytest.mark.slow
def test_released_is_the_loss_of_the_paper_s_code() -> None:
    """The released formula in torch, on logits cut at the longest target of each task, as its batches are."""
    torch = pytest.importorskip("torch")
    batch, logits = make_batch(), make_logits()
    tensors = {task: torch.tensor(leaf, requires_grad=True) for task, leaf in logits.items()}
    label, rationale = (tensors[task][:, : max(LENGTHS[task])] for task in WIDTHS)
    z = torch.softmax(label, dim=-1).detach().max(dim=1).values
    v = torch.softmax(rationale, dim=-1).max(dim=1).values
    loss = (-(z * torch.log_softmax(v, dim=-1)).sum(dim=-1)).mean()
    loss.backward()

    value, grads = mean_and_grad(cotmi("released"), "mi", logits, batch)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(grads["explain"], tensors["explain"].grad.numpy(), rtol=0, atol=1e-6)
    assert np.abs(grads["explain"]).max() > 1e-3  # 1e-6 means something
    assert not np.asarray(grads["predict"]).any() and tensors["predict"].grad is None


@pytest.mark.slow
def test_padding_affects_released_up_to_the_longest_example_only() -> None:
    objective, batch, logits = cotmi("released"), make_batch(), make_logits()
    value, grads = mean_and_grad(objective, "mi", logits, batch)
    wider_value, wider_grads = mean_and_grad(objective, "mi", *reversed(pad(batch, logits, 3, PEAK_V)))
    np.testing.assert_allclose(wider_value, value, rtol=1e-6)
    assert_trees_close({task: wider_grads[task][:, : WIDTHS[task]] for task in WIDTHS}, grads)
    for task, column in (("predict", 3), ("explain", 6)):  # the longest row's last column, padding in the others
        changed = {name: leaf.copy() for name, leaf in logits.items()}
        changed[task][1, column] = PEAK_V
        assert abs(mean_and_grad(objective, "mi", changed, batch)[0] - value) > 1e-3
        changed[task][1, column], changed[task][1, column + 1] = logits[task][1, column], PEAK_V
        assert mean_and_grad(objective, "mi", changed, batch)[0] == value


@pytest.mark.slow
def test_barber_agakov_value_and_gradient() -> None:
    """Against float64 numpy; the gradient along random directions, with z constant."""
    objective, batch, logits = cotmi("barber_agakov"), make_batch(), make_logits()
    value, grads = mean_and_grad(objective, "mi", logits, batch)
    np.testing.assert_allclose(value, numpy_barber_agakov(logits, batch), rtol=1e-5)
    draw = np.random.default_rng(2)
    for _ in range(5):
        direction = {task: draw.normal(size=leaf.shape) for task, leaf in logits.items()}
        ends = [
            numpy_barber_agakov(
                {task: leaf + h * direction[task] for task, leaf in logits.items()}, batch, z_from=logits
            )
            for h in (-1e-5, 1e-5)
        ]
        slope = sum((direction[task] * grads[task]).sum() for task in WIDTHS)
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-5, rtol=1e-3, atol=1e-6)


def test_barber_agakov_is_cross_entropy_of_distributions() -> None:
    """Its minimum is at v = z, where it is the entropy of z; it is invariant under scale."""
    z, v = (np.random.default_rng(seed).dirichlet(np.ones(V), 3).astype(np.float32) for seed in (0, 1))
    entropy = -(z * np.log(z)).sum(axis=-1)
    log_z, log_v = np.log(z), np.log(v)
    np.testing.assert_allclose(vocabulary_loss(log_z, log_z), entropy, rtol=1e-5)
    assert (np.asarray(vocabulary_loss(log_z, log_v)) > entropy).all()
    np.testing.assert_allclose(vocabulary_loss(log_z + 3.0, log_v - 0.2), vocabulary_loss(log_z, log_v), rtol=1e-5)


@pytest.mark.parametrize("name", ["barber_agakov", "predict", "explain"])
def test_padding_changes_no_loss(name: str) -> None:
    objective, term = cotmi("barber_agakov"), "mi" if name == "barber_agakov" else name
    batch, logits = make_batch(), make_logits()
    value, grads = mean_and_grad(objective, term, logits, batch)
    draw = np.random.default_rng(3)
    wider_batch, wider_logits = pad(batch, logits, 4, PEAK_V)
    for task, leaf in wider_logits.items():
        leaf[wider_batch[task]["targets"] == 0] = 30.0 * draw.normal(size=V)
    wider_value, wider_grads = mean_and_grad(objective, term, wider_logits, wider_batch)
    np.testing.assert_allclose(wider_value, value, rtol=1e-6)
    for task, grad in wider_grads.items():
        np.testing.assert_allclose(grad[:, : WIDTHS[task]], grads[task], rtol=1e-5, atol=1e-8)
        assert not np.asarray(grad)[wider_batch[task]["targets"] == 0].any()
    for leaf, task in zip(wider_logits.values(), WIDTHS, strict=True):
        leaf[wider_batch[task]["targets"] == 0] = np.nan
    np.testing.assert_allclose(terms_of(objective, wider_logits, wider_batch)[term].mean, value, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_label_side_is_detached(estimator: Any) -> None:
    """Its value affects the loss, but only the rationale side has a gradient."""
    objective, batch, logits = cotmi(estimator), make_batch(), make_logits()
    value, grads = mean_and_grad(objective, "mi", logits, batch)
    assert not np.asarray(grads["predict"]).any() and np.asarray(grads["explain"]).any()
    other = logits | {"predict": np.roll(logits["predict"], 1, axis=-1)}
    assert abs(mean_and_grad(objective, "mi", other, batch)[0] - value) > 1e-3


def test_cross_entropy_is_the_mean_over_all_real_tokens() -> None:
    objective, batch, logits = Objective("dss"), make_batch(), make_logits()
    terms = terms_of(objective, logits, batch)
    for task in WIDTHS:
        targets = batch[task]["targets"]
        losses = [
            -np.log(softmax(logits[task][row, t])[targets[row, t]])
            for row in range(4)
            for t in range(LENGTHS[task][row])
        ]
        hits = [
            np.argmax(logits[task][row, t]) == targets[row, t] for row in range(4) for t in range(LENGTHS[task][row])
        ]
        np.testing.assert_allclose(terms[task].mean, np.mean(losses), rtol=1e-5)
        assert terms[task].weight == terms[f"{task}_token_accuracy"].weight == len(losses)
        np.testing.assert_allclose(terms[f"{task}_token_accuracy"].mean, np.mean(hits), rtol=1e-6)


def test_rationale_weights_affect_the_rationale_loss_only() -> None:
    """A weighted mean over the rationales' tokens; an example of weight 0 trains its label only and is not a pair."""
    batch, logits = make_batch() | {"weight": np.array([1.0, 0.0, 0.5, 3.0], np.float32)}, make_logits()
    objective = Objective("dss")
    plain, weighted = (terms_of(objective, logits, each) for each in (make_batch(), batch))
    assert float(weighted["predict"].sum) == float(plain["predict"].sum)
    losses = []
    for row in range(4):
        alone = {"valid": np.arange(4) == row, "weight": np.ones(4, np.float32)}
        losses.append(terms_of(objective, logits, make_batch() | alone)["explain"])
    for name in ("sum", "weight"):
        expected = sum(weight * getattr(term, name) for weight, term in zip(batch["weight"], losses, strict=True))
        np.testing.assert_allclose(getattr(weighted["explain"], name), expected, rtol=1e-6)
    information = cotmi("barber_agakov")
    assert information.pairs(batch, 0).tolist() == [True, False, True, True]
    assert Objective("standard").weights(batch, 0)["predict"] == sum(LENGTHS["predict"])


@pytest.mark.slow
@pytest.mark.parametrize("objective", [cotmi(name) for name in ESTIMATORS], ids=ESTIMATORS)
def test_invalid_rows_change_nothing(objective: Objective) -> None:
    """Neither values nor gradients, for any content; weights count the tokens of valid rows."""
    batch, logits = make_batch(), make_logits()
    draw = np.random.default_rng(4)
    filled: dict[str, Any] = {"valid": np.array([True, False, True, True, True, False]), "weight": np.ones(6, "f4")}
    more = {}
    for task, leaf in logits.items():
        full = draw.integers(1, V, (2, WIDTHS[task]))  # longer than every real row
        inputs, targets = batch[task]["inputs"], batch[task]["targets"]
        filled[task] = {
            "inputs": np.insert(inputs, (1, 4), 3, axis=0),
            "targets": np.insert(targets, (1, 4), full, axis=0),
        }
        more[task] = np.insert(leaf, (1, 4), 9.0 * draw.normal(size=(2, *leaf.shape[1:])), axis=0).astype(np.float32)
    assert_trees_close(terms_of(objective, more, filled), terms_of(objective, logits, batch))
    loss, grads = full_loss(objective, logits, batch)
    filled_loss, filled_grads = full_loss(objective, more, filled)
    np.testing.assert_allclose(filled_loss, loss, rtol=1e-6)
    assert_trees_close(jax.tree.map(lambda leaf: leaf[filled["valid"]], filled_grads), grads)
    assert not any(np.asarray(leaf)[~filled["valid"]].any() for leaf in filled_grads.values())
    for name, weight in objective.weights(batch, 0).items():
        assert weight == objective.weights(filled, 0)[name] == terms_of(objective, more, filled)[name].weight


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_extreme_logits_and_empty_targets_stay_finite(estimator: Any, scale: float) -> None:
    """Probabilities that underflow, a row without a target, and a batch without targets."""
    objective, batch, logits = cotmi(estimator), make_batch(), make_logits(scale)
    batch["explain"]["targets"][0] = batch["predict"]["targets"][1] = 0
    empty = make_batch()
    for task in WIDTHS:
        empty[task]["targets"][:] = 0
    for each in (batch, empty, empty | {"valid": np.zeros(4, bool)}):
        loss, grads = full_loss(objective, logits, each)
        assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in grads.values())
    assert loss == 0


def test_an_example_without_targets_is_not_a_pair() -> None:
    batch, logits = make_batch(), make_logits()
    for task in WIDTHS:
        batch[task]["targets"][2] = 0
    without = numpy_barber_agakov(logits, batch | {"valid": np.array([True, True, False, True])})
    np.testing.assert_allclose(terms_of(cotmi("barber_agakov"), logits, batch)["mi"].mean, without, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "coefficients"),
    [
        (Objective("standard"), {"predict": 1.0}),
        (Objective("single_task", alpha=0.3), {"predict": 1.0}),
        (Objective("dss", alpha=0.3), {"predict": 0.3, "explain": 0.7}),
        (Objective("dss", alpha=1.0), {"predict": 1.0, "explain": 0.0}),
        (cotmi("barber_agakov"), {"predict": 0.5, "explain": 0.5, "mi": 0.1}),
        (cotmi("barber_agakov", alpha=0.2, beta=3.0), {"predict": 0.2, "explain": 0.8, "mi": 3.0}),
    ],
    ids=str,
)
def test_the_loss_weighs_the_terms(objective: Objective, coefficients: dict[str, float]) -> None:
    tasks = ("predict",) if objective.name in ("standard", "single_task") else ("predict", "explain")
    assert objective.tasks == tasks
    assert objective.coefficients == pytest.approx(coefficients)
    batch, logits = make_batch(), make_logits()
    batch = {name: value for name, value in batch.items() if name in (*tasks, "valid", "weight")}
    logits = {task: logits[task] for task in tasks}
    terms = terms_of(objective, logits, batch)
    assert set(terms) == {*coefficients, *(f"{task}_token_accuracy" for task in tasks)}
    assert set(objective.weights(batch, 0)) == set(coefficients)
    expected = sum(factor * terms[name].mean for name, factor in coefficients.items())
    np.testing.assert_allclose(full_loss(objective, logits, batch)[0], expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cotmi_without_beta_is_dss(estimator: Any) -> None:
    batch, logits = make_batch(), make_logits()
    dss = full_loss(Objective("dss", alpha=0.3), logits, batch)
    off, on = (full_loss(cotmi(estimator, alpha=0.3, beta=beta), logits, batch) for beta in (0.0, 0.5))
    assert_trees_close(off, dss, atol=0)
    mi_value, mi_grads = mean_and_grad(cotmi(estimator), "mi", logits, batch)
    assert_trees_close(on[1], jax.tree.map(lambda a, b: a + 0.5 * b, dss[1], mi_grads))
    np.testing.assert_allclose(on[0], dss[0] + 0.5 * mi_value, rtol=1e-6)


def test_terms_are_divided_once_and_weight_zero_gives_zero() -> None:
    assert Term(jnp.array(6.0), jnp.array(4.0)).mean == 1.5
    assert Term(jnp.array(0.0), jnp.array(0.0)).mean == 0.0
    mask = token_mask(jnp.array([[5, 1, 0], [5, 1, 0]]), jnp.array([True, False]), 0)
    np.testing.assert_array_equal(mask, [[True, True, False], [False, False, False]])


def test_impossible_objectives_are_refused() -> None:
    for options, words in (
        (dict(name="mi"), "'mi'.*standard, predict, single_task, dss, cotmi"),
        (dict(name="dss", alpha=1.5), "alpha is 1.5"),
        (dict(name="dss", alpha=-0.1), "alpha is -0.1"),
        (dict(name="cotmi", beta=-1.0, mi_term=mi_config()), "beta is -1.0"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            Objective(**options)
        assert "\n" not in str(caught.value)
    for options, words in ((dict(name="cotmi"), "lacks its"), (dict(name="dss", mi_term=mi_config()), "has no")):
        with pytest.raises(ValueError, match=f"{words} mutual-information term"):
            Objective(**options)
