"""All estimators on Gaussians whose mutual information increases in steps: a table and a figure.

    python -m benchmarks.mi_staircase --output=docs/mi_staircase.png

Pairs of 20 dimensions have correlation rho in each, so I = −10·log(1 − rho²) is known. A new critic is trained at each
level, with fresh pairs at every step, so that the error is the bias of the estimator, not a lack of data. The levels of
one estimator are trained in one vectorized program. The quadratic critic contains the exact density ratio.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from cotmi_jax.mi.estimate import NONPARAMETRIC
from cotmi_jax.mi.estimators import ESTIMATORS, Estimator, conditional, make_estimator, scored
from cotmi_jax.mi.fitting import make_model
from cotmi_jax.mi.networks import CRITICS, CriticConfig
from cotmi_jax.parallel.accelerators import skip_absent_tpu

DIMENSIONS = 20
LEVELS = (2.0, 4.0, 6.0, 8.0, 10.0)  # nats


class Run(NamedTuple):
    """One estimator at all levels L: its value at every training step S, and on B batches after training, in nats."""

    estimator: Estimator
    training_LxS: np.ndarray
    fresh_LxB: np.ndarray
    seconds: float

    @property
    def name(self) -> str:
        """The estimator with its α or τ, if it has one."""
        shown = {"alpha": "α", "tau": "τ"}
        settings = (f" {shown[name]}={value:g}" for name, value in self.estimator.values.items() if name in shown)
        return self.estimator.name + "".join(settings)


def correlation(nats: float) -> float:
    """rho of every dimension for which the pairs have this mutual information."""
    return math.sqrt(-math.expm1(-2.0 * nats / DIMENSIONS))


def sample(rho: Array | float, num_pairs: int, key: Array) -> tuple[Array, Array]:
    """Fresh pairs z, v [num_pairs, 20]."""
    z_key, noise_key = jax.random.split(key)
    z_KxD = jax.random.normal(z_key, (num_pairs, DIMENSIONS))
    return z_KxD, rho * z_KxD + jnp.sqrt(1 - rho**2) * jax.random.normal(noise_key, z_KxD.shape)


def run(
    estimator: Estimator,
    critic: CriticConfig,
    *,
    levels: Sequence[float] = LEVELS,
    num_pairs: int = 128,
    steps: int = 1000,
    learning_rate: float = 1e-2,
    fresh: int = 200,
    seed: int = 0,
) -> Run:
    """Train a critic at every level with Adam and a cosine schedule, then evaluate it on `fresh` batches."""
    model = make_model(DIMENSIONS, DIMENSIONS, estimator, critic)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    init_key, train_key, fresh_key = jax.random.split(jax.random.key(seed), 3)

    def one(rho: Array) -> tuple[Array, Array]:
        fit = model.start(optimizer, init_key)
        batches = jax.random.split(train_key, steps)
        fit, training_S = model.advance(optimizer, lambda key: sample(rho, num_pairs, key), fit, batches)

        def evaluate(key: Array) -> Array:
            return model.score(fit.params, *sample(rho, num_pairs, key), estimator.start())[0].value

        return training_S, jax.lax.map(evaluate, jax.random.split(fresh_key, fresh))

    started = time.perf_counter()
    rho_L = jnp.array([correlation(nats) for nats in levels])
    training_LxS, fresh_LxB = (np.asarray(x, np.float64) for x in jax.jit(jax.vmap(one))(rho_L))
    return Run(estimator, training_LxS, fresh_LxB, time.perf_counter() - started)


def run_without_fit(name: str, *, pairs: int = 2000, sets: int = 10, seed: int = 0, steps: int = 1000) -> Run:
    """ksg or cca on `sets` sets of pairs at every level. There is no training: its curve is NaN."""
    started = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), sets)
    fresh = [
        [NONPARAMETRIC[name](*map(np.asarray, sample(correlation(nats), pairs, key))) for key in keys]
        for nats in LEVELS
    ]
    no_training = np.full((len(LEVELS), steps), np.nan)
    return Run(
        Estimator(name, NONPARAMETRIC[name], "neither"), no_training, np.array(fresh), time.perf_counter() - started
    )


def table(runs: Sequence[Run], num_pairs: int) -> list[dict[str, object]]:
    """A row for each estimator: by level the mean, its standard error and the deviation of a batch, in nats."""
    rows: list[dict[str, object]] = []
    for result in runs:
        std_L = result.fresh_LxB.std(axis=1, ddof=1)
        cap = result.estimator.cap(num_pairs)
        rows.append(
            {
                "estimator": result.name,
                "direction": result.estimator.direction,
                "cap": cap if math.isfinite(cap) else None,
                "mean": result.fresh_LxB.mean(axis=1).tolist(),
                "standard_error": (std_L / result.fresh_LxB.shape[1] ** 0.5).tolist(),
                "std": std_L.tolist(),
                "seconds": round(result.seconds, 1),
            }
        )
    return rows


def text(rows: Sequence[dict[str, object]]) -> str:
    """The table for a terminal."""
    lines = [f"{'truth, nats':<18}" + "".join(f"{nats:>15g}" for nats in LEVELS) + f"{'cap':>8}"]
    for row in rows:
        mean, error, cap = row["mean"], row["standard_error"], row["cap"]
        assert isinstance(mean, list) and isinstance(error, list)
        cells = "".join(f"{f'{a:.3f} ± {b:.3f}':>15}" for a, b in zip(mean, error, strict=True))
        lines.append(f"{row['estimator']:<18}{cells}" + (f"{cap:>8.2f}" if cap else f"{'–':>8}"))
    return "\n".join(lines)


def draw(runs: Sequence[Run], num_pairs: int, title: str, output: str) -> None:
    """One panel per estimator, with the levels in sequence along the axis of training steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = runs[0].training_LxS.shape[1]
    edges = np.arange(len(LEVELS) + 1) * steps
    columns = 5  # leaves room for the legend after the last panel
    rows = -(-len(runs) // columns)
    size = (2.6 * columns, 2.4 * rows + 0.7)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, layout="constrained")
    top = LEVELS[-1] + 3.0
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < len(runs))
        axis.xaxis.set_tick_params(labelbottom=index + columns >= len(runs))
    for axis, result in zip(axes.flat, runs, strict=False):
        training = np.clip(result.training_LxS.reshape(-1), -1.0, top)
        axis.plot(training, color="0.78", linewidth=0.5, rasterized=True, label="batch trained on, at each step")
        mean_L, std_L = result.fresh_LxB.mean(axis=1), result.fresh_LxB.std(axis=1, ddof=1)
        for level, (left, mean, std) in enumerate(zip(edges, mean_L, std_L, strict=False)):
            label = None if level else "fresh batches after training, mean"
            band = None if level else "± standard deviation of a batch"
            axis.fill_between(
                [left, left + steps], mean - std, mean + std, color="tab:blue", alpha=0.3, lw=0, label=band
            )
            axis.plot([left, left + steps], [mean, mean], color="tab:blue", linewidth=2.2, label=label)
        axis.stairs(LEVELS, edges, baseline=None, color="black", linestyle="--", linewidth=1.0, zorder=4, label="truth")
        cap = result.estimator.cap(num_pairs)
        if math.isfinite(cap):
            axis.axhline(cap, color="tab:red", linewidth=0.9, label="cap")
        arrow = {"lower": "lower bound", "upper": "upper bound", "neither": "no bound"}[result.estimator.direction]
        axis.set_title(f"{result.name} ({arrow})", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(edges)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylim(-0.5, top)
    axes[0, 0].set_xlim(0, edges[-1])
    axes[0, 0].set_yticks([0, *LEVELS, LEVELS[-1] + 2])
    figure.supxlabel(f"training step (a new network every {steps:,})", fontsize=10)
    figure.supylabel("mutual information, nats", fontsize=10)
    figure.suptitle(title, fontsize=11)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    location = {"loc": "lower right", "bbox_to_anchor": (0.95, 0.1)}
    legend = figure.legend(handles, labels, frameon=False, fontsize=10, **location)
    for line in legend.get_lines():
        line.set_linewidth(max(line.get_linewidth(), 1.2))
    figure.savefig(output, dpi=110)


def main() -> None:
    """Parse the command line, run every estimator in turn, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="PNG to write; default: only the table")
    parser.add_argument("--critic", choices=CRITICS, default="quadratic")
    parser.add_argument("--num_pairs", type=int, default=128, help="pairs in a batch")
    parser.add_argument("--steps", type=int, default=1000, help="training steps at each level")
    parser.add_argument("--learning_rate", type=float, default=1e-2, help="initial; use 2e-3 with an MLP")
    parser.add_argument("--fresh", type=int, default=200, help="batches evaluated after training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    arguments = parser.parse_args()
    skip_absent_tpu()
    critic = CriticConfig(arguments.critic)
    settings = {name: getattr(arguments, name) for name in ("num_pairs", "steps", "learning_rate", "fresh", "seed")}
    runs = []
    for estimator in [*(make_estimator(name) for name in scored()), make_estimator("smile", tau=1.0)]:
        runs.append(run(estimator, critic, **settings))
        print(f"{runs[-1].name}: {runs[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    for name in conditional():  # an MLP, whatever the critic: a tenth of the quadratic critic's rate
        runs.append(run(ESTIMATORS[name], critic, **settings | {"learning_rate": 1e-3}))
    for name in NONPARAMETRIC:
        runs.append(run_without_fit(name, seed=arguments.seed, steps=arguments.steps))
    rows = table(runs, arguments.num_pairs)
    report = {"set-up": {"critic": arguments.critic, **settings}, "levels": LEVELS, "estimators": rows}
    print(json.dumps(report, indent=1) if arguments.json else text(rows))
    if arguments.output:
        title = (
            f"{DIMENSIONS}-dimensional Gaussians, {arguments.critic} critic, K = {arguments.num_pairs} pairs per "
            f"batch, {arguments.steps:,} steps per level"
        )
        draw(runs, arguments.num_pairs, title, arguments.output)


if __name__ == "__main__":
    main()
