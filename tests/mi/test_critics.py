"""Critics: scores, order of rows and columns, precision, sharding, and configurations that are refused."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, numpy_params

from cotmi_jax.errors import UserError
from cotmi_jax.mi.critics import Critic, check_critic
from cotmi_jax.mi.estimators import ESTIMATORS, scored
from cotmi_jax.mi.networks import CRITICS, CriticConfig
from cotmi_jax.models.module import ModuleDef, Params
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import RULES, param_shardings, replicated

Z, V, K = 6, 8, 8
every_critic = pytest.mark.parametrize("name", CRITICS)


def make_config(name: str, **changes: Any) -> CriticConfig:
    return CriticConfig(name, **(dict(hidden=16, dim=8, normalization="layer") | changes))


@functools.cache
def define(config: CriticConfig, estimator: str = "infonce") -> tuple[ModuleDef[Critic], Params]:
    """A critic without zero parameters; initially some are 0."""
    definition = ModuleDef.trace(lambda rngs: Critic(Z, V, config, ESTIMATORS[estimator], rngs=rngs))
    return definition, numpy_params(definition, seed=1)  # type: ignore[arg-type]


def critic(config: CriticConfig, estimator: str = "infonce") -> Critic:
    definition, params = define(config, estimator)
    return definition.bind(params)


def pairs(size: int = K, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(size, Z)).astype(np.float32), draw.normal(size=(size, V)).astype(np.float32)


def normalized(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)


def by_hand(config: CriticConfig, z: np.ndarray, v: np.ndarray) -> np.ndarray:
    """f(z_i, v_j) in float64, pair by pair."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), define(config)[1])["scorer"]

    def affine(layer: Params, x: np.ndarray) -> np.ndarray:
        return x @ layer["kernel"] + layer["bias"]

    def mlp(layers: list[Params], x: np.ndarray) -> np.ndarray:
        for layer in layers:
            x = np.maximum(affine(layer, x), 0.0)
        return x

    def layers(node: Any) -> list[Params]:
        return [node[key] for key in sorted(node)]

    def coded(node: Params, x: np.ndarray) -> tuple[np.ndarray, float]:
        hidden = mlp(layers(node["mlp"]["hidden"]), x)
        return affine(node["code"], hidden), float(affine(node["offset"], hidden)[0])

    def concat(node: Params, x: np.ndarray, y: np.ndarray) -> float:
        """An MLP of the concatenated vectors: the kernels of the first layer are stacked."""
        kernel = np.concatenate([node["z"]["kernel"], node["v"]["kernel"]])
        first = {"kernel": kernel, "bias": node["z"]["bias"] + node["v"]["bias"]}
        *rest, last = layers(node["rest"])
        return float(affine(last, mlp([first, *rest], np.concatenate([x, y])))[0])

    def score(x: np.ndarray, y: np.ndarray) -> float:
        if config.name == "concat":
            return concat(tree, x, y)
        if config.name in ("bilinear", "quadratic"):
            value = float(x @ tree["weight"] @ y)
            if config.name == "quadratic":
                value += float(affine(tree["z"], np.concatenate([x, x * x]))[0])
                value += float(affine(tree["v"], np.concatenate([y, y * y]))[0])
            return value
        sides = tree["separable"] if config.name == "hybrid" else tree
        (g, a), (h, b) = coded(sides["z"], x), coded(sides["v"], y)
        return float(g @ h) + a + b + (concat(tree["pairwise"], g, h) if config.name == "hybrid" else 0.0)

    return np.array([[score(x, y) for y in normalized(v)] for x in normalized(z)])


@every_critic
def test_rows_are_z_and_columns_v(name: str) -> None:
    """Entry (i, j) is the score of z_i with v_j: by the formula, and as the critic scores that pair separately."""
    z, v = pairs()
    scores = critic(make_config(name))(z, v)
    expected = by_hand(make_config(name), z, v)
    assert scores.score_KxK.shape == (K, K) and scores.positive_K.shape == (K,)
    assert np.abs(expected - expected.T).max() > 0.1
    np.testing.assert_allclose(scores.score_KxK, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores.positive_K, np.diagonal(expected), rtol=1e-4, atol=1e-4)
    for i, j in ((0, 5), (5, 0), (3, 3)):
        alone = critic(make_config(name))(z[i : i + 1], v[j : j + 1])
        np.testing.assert_allclose(alone.score_KxK[0, 0], scores.score_KxK[i, j], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alone.positive_K[0], scores.score_KxK[i, j], rtol=1e-5, atol=1e-5)


@every_critic
def test_positives_are_the_diagonal_also_under_a_clamp(name: str) -> None:
    for clamp in (0.0, 2.0):
        score, positive = critic(make_config(name, clamp=clamp))(*pairs(seed=2))
        np.testing.assert_allclose(positive, jnp.diagonal(score), rtol=1e-5, atol=1e-5)


@every_critic
def test_scores_are_float32_of_bfloat16_features(name: str) -> None:
    """They are computed in float32: only the rounding of the features differs."""
    z, v = (jnp.asarray(x, jnp.bfloat16) for x in pairs())
    scores = critic(make_config(name))(z, v)
    assert scores.score_KxK.dtype == scores.positive_K.dtype == jnp.float32
    exact = critic(make_config(name))(z.astype(jnp.float32), v.astype(jnp.float32))
    assert_trees_close(scores, exact, rtol=1e-6)


@every_critic
def test_the_clamp_bounds_scores_softly(name: str) -> None:
    z, v = pairs()
    free, clamped = (critic(make_config(name, clamp=clamp))(z, v) for clamp in (0.0, 1.0))
    assert np.abs(free.score_KxK).max() > 1.0  # it has something to do
    assert_trees_close(clamped, jax.tree.map(lambda f: np.tanh(np.asarray(f)), free), rtol=1e-4)
    assert all(np.abs(leaf).max() <= 1.0 for leaf in clamped)


@every_critic
def test_layer_normalization_removes_scale_and_offset(name: str) -> None:
    z, v = pairs()
    moved = 30.0 * z + 5.0, 0.5 * v - 2.0
    with_norm, without = (make_config(name, normalization=choice) for choice in ("layer", "none"))
    assert_trees_close(critic(with_norm)(*moved), critic(with_norm)(z, v), rtol=1e-3, atol=1e-3)
    assert np.abs(critic(without)(*moved).score_KxK - critic(without)(z, v).score_KxK).max() > 1.0


@pytest.mark.slow
@every_critic
def test_initial_scores_are_zero_and_have_a_gradient(name: str) -> None:
    definition, _ = define(make_config(name))
    params, (z, v) = definition.init(jax.random.key(0)), pairs()
    assert not np.asarray(definition.bind(params)(z, v).score_KxK).any()
    grads = jax.grad(lambda params: (definition.bind(params)(z, v).positive_K * np.arange(K)).sum())(params)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", [name for name in CRITICS if name not in ("bilinear", "quadratic")])
def test_dropout_is_on_only_with_a_key(name: str) -> None:
    z, v = pairs()
    plain, dropping = critic(make_config(name)), critic(make_config(name, dropout=0.5))
    expected = plain(z, v).score_KxK
    for same in (dropping(z, v), plain(z, v, jax.random.key(0))):
        np.testing.assert_array_equal(same.score_KxK, expected)
    one, again, other = (dropping(z, v, jax.random.key(seed)) for seed in (0, 0, 1))
    assert_trees_close(one, again, rtol=0, atol=0)
    for different in (expected, other.score_KxK):
        assert np.abs(one.score_KxK - different).max() > 1e-2


def test_an_estimator_with_a_baseline_has_one() -> None:
    """A function of v alone."""
    _, v = pairs()
    assert critic(make_config("separable"))(*pairs()) is not None
    assert critic(make_config("separable")).baseline(v) is None
    baseline = critic(make_config("separable"), "tuba").baseline(v)
    assert baseline is not None and baseline.shape == (K,) and baseline.dtype == jnp.float32
    order = np.random.default_rng(0).permutation(K)
    np.testing.assert_allclose(critic(make_config("separable"), "tuba").baseline(v[order]), baseline[order], rtol=1e-5)
    assert np.std(baseline) > 0.01


# Over devices


def evaluate(definition: ModuleDef[Critic]) -> Callable:
    """(params, z, v) → scores, and gradients of a scalar of all of them."""

    def scalar(params: Params, z: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        scores = definition.bind(params)(z, v)
        return jax.nn.logsumexp(scores.score_KxK, axis=1).sum() - scores.positive_K.sum(), scores

    return jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.slow
@every_critic
def test_a_critic_on_eight_devices_is_that_on_one(name: str) -> None:
    """Sharded by its own axes, or by the rows of the pairs."""
    definition, params = define(make_config(name))
    z, v = pairs(16)
    expected = evaluate(definition)(params, z, v)
    for sizes in ((1, 8, 1), (8, 1, 1)):
        mesh = make_mesh(*sizes)
        where = param_shardings(definition.shapes, definition.axes, mesh)
        rows = batch_sharding(mesh) if sizes == (8, 1, 1) else replicated(mesh)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, where), jax.device_put(z, rows), jax.device_put(v, rows)
            actual = evaluate(definition)(*placed)
        assert_trees_close(actual, expected, rtol=1e-4, atol=1e-4)


@every_critic
@pytest.mark.parametrize("estimator", ["infonce", "tuba"])
def test_parameters_have_axes_of_the_table_and_kernels_are_sharded(name: str, estimator: str) -> None:
    definition, _ = define(make_config(name), estimator)
    axes = jax.tree.leaves(definition.axes, is_leaf=lambda node: isinstance(node, tuple))
    assert len(axes) == len(jax.tree.leaves(definition.shapes))
    assert all(axis in RULES for names in axes for axis in names)
    mesh = make_mesh(1, 8, 1)
    where = jax.tree_util.tree_leaves_with_path(param_shardings(definition.shapes, definition.axes, mesh))
    split = {jax.tree_util.keystr(path) for path, sharding in where if not sharding.is_fully_replicated}
    assert any(path.endswith(("['kernel']", "['weight']")) and "scorer" in path for path in split)
    assert any("baseline" in path for path in split) == (estimator == "tuba")


# Errors


@pytest.mark.parametrize(
    ("config", "estimator", "num_pairs", "parts"),
    [
        (CriticConfig(), "infonce", 1, ("infonce", "1 pairs", "at least 2")),
        (CriticConfig("bilinear"), "infonce", 64, ("bilinear", "normalization to layer")),
        (CriticConfig("quadratic"), "js", 64, ("quadratic", "normalization to layer")),
        *[
            (CriticConfig(), name, 64, (name, "clamp (say 20)", "normalization to layer"))
            for name in ("nwj", "tuba", "dv", "mine")
        ],
        (CriticConfig("concat"), "infonce", 4096, ("concat", "4096 pairs", "32.0 GiB", "separable", "fewer pairs")),
        (CriticConfig("concat"), "infonce", 725, ("concat", "separable")),
        (CriticConfig("hybrid"), "infonce", 4096, ("hybrid", "4096 pairs", "4.0 GiB", "smaller width")),
    ],
    ids=str,
)
def test_critics_that_an_estimator_cannot_use_are_refused(
    config: CriticConfig, estimator: str, num_pairs: int, parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        check_critic(config, ESTIMATORS[estimator], num_pairs)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_other_critics_are_accepted() -> None:
    for estimator in scored():
        for name in CRITICS:
            check_critic(CriticConfig(name, normalization="layer"), ESTIMATORS[estimator], 128)
            check_critic(CriticConfig(name), ESTIMATORS[estimator], 2, standardized=True)
        check_critic(CriticConfig(clamp=20.0), ESTIMATORS[estimator], 4096)
    for estimator in ("infonce", "interpolated", "js", "smile"):
        check_critic(CriticConfig(), ESTIMATORS[estimator], 64)
    check_critic(CriticConfig("concat"), ESTIMATORS["infonce"], 724)  # just below 1 GiB
    check_critic(CriticConfig("concat", hidden=16, layers=1), ESTIMATORS["infonce"], 4096)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (dict(name="cosine"), ("'cosine'", *CRITICS)),
        (dict(normalization="batch"), ("'batch'", "layer or none")),
        (dict(hidden=0), ("hidden 0", "at least 1")),
        (dict(layers=0), ("layers 0", "at least 1")),
        (dict(dim=0), ("dim 0", "at least 1")),
        (dict(dropout=1.0), ("dropout is 1.0", "below 1")),
        (dict(clamp=-1.0), ("clamp is -1.0", "0 for none")),
    ],
    ids=str,
)
def test_impossible_critics_are_refused(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        CriticConfig(**changes)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_unpaired_features_are_an_error() -> None:
    z, v = pairs()
    with pytest.raises(ValueError, match="8 z and 7 v"):
        critic(make_config("separable"))(z, v[:7])
