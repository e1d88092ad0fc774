"""Cost of the mutual-information term: time and temporary memory of a training step relative to one of `dss`.

    python -m benchmarks.mi_term --preset=small --batch_size=64
    python -m benchmarks.mi_term --recipe=quickstart --preset=tiny --variants consistency

Batches are random tokens without padding, by default of the padded lengths of CommonsenseQA; with --recipe, a packed
batch of its data, whose rationales state their answers in all variants. The variants alternate
within one process, so that a change in the machine's load affects all of them, and ratios are computed per round.
Temporaries are what XLA reports as allocated for the step, without arguments and results. Does not import tensorflow.
The result is printed as JSON.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.table import Options, Row, run_json, shown_command
from benchmarks.train_step import load
from cotmi_jax.config import base
from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import make_batch, make_shape
from cotmi_jax.experiment import make_objective
from cotmi_jax.models.config import StudentConfig, preset
from cotmi_jax.models.rng import stream_key, train_streams
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.accelerators import skip_absent_tpu
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.recipes import load_recipe
from cotmi_jax.training.optimizer import with_networks
from cotmi_jax.training.state import StateDef
from cotmi_jax.training.step import make_train_step

SEED = 0
BASELINE = "dss"
DEFAULT = "cotmi (infonce, decoder_mean)"


def _cotmi(**mi: str | int) -> Objective:
    """cotmi with these keys of config.mi."""
    config = base()
    config.objective.name, config.data.packing, config.data.rationale_answer = "cotmi", False, "append"
    config.mi.update(mi)
    return make_objective(config)


VARIANTS: dict[str, Objective] = {
    BASELINE: Objective("dss"),
    DEFAULT: _cotmi(estimator="infonce"),
    "barber_agakov, vocab_max": _cotmi(estimator="barber_agakov"),
    "barber_agakov, vocab_mean": _cotmi(estimator="barber_agakov", feature="vocab_mean"),
    "released": _cotmi(estimator="released"),
    "consistency": _cotmi(estimator="consistency"),
    "conditional, 2 pairs": _cotmi(estimator="conditional"),
    "conditional, 4 pairs": _cotmi(estimator="conditional", counterfactuals=3),
}


class Variant(NamedTuple):
    """A function that executes the next step and returns its seconds, and the temporaries of a step in bytes."""

    advance: Callable[[], float]
    temporaries: int


def random_batch(arguments: argparse.Namespace, vocab_size: int, counterfactuals: int = 0) -> dict[str, Any]:
    """Full rows of random tokens: {task: {inputs, targets}, valid, weight}, and the targets of counterfactuals.

    Every rationale begins with an answer of --answer_tokens.
    """
    draw = np.random.default_rng(SEED)
    lengths = {"predict": arguments.label_tokens, "explain": arguments.rationale_tokens}
    tokens = {
        task: {
            "inputs": draw.integers(2, vocab_size, (arguments.batch_size, arguments.input_tokens), dtype=np.int32),
            "targets": draw.integers(2, vocab_size, (arguments.batch_size, length), dtype=np.int32),
        }
        for task, length in lengths.items()
    }
    size = arguments.batch_size
    batch = tokens | {"valid": np.ones(size, bool), "weight": np.ones(size, np.float32)}
    batch["answer_length"] = np.full(size, arguments.answer_tokens, np.int32)
    column_L = np.arange(arguments.label_tokens - 1, dtype=np.int32)
    for task in lengths:
        answers = np.where(column_L < arguments.answer_tokens, column_L, -1)
        batch[task]["answers"] = np.broadcast_to(answers, (size, len(column_L)))
    if counterfactuals:
        batch["counterfactuals"] = {
            task: draw.integers(2, vocab_size, (size, counterfactuals, length), dtype=np.int32)
            for task, length in lengths.items()
        }
    return batch


def packed_batch(arguments: argparse.Namespace, counterfactuals: int) -> tuple[dict[str, Any], StudentConfig]:
    """The first packed batch of a recipe's data, whose rationales state their answers; and the recipe's student.

    With counterfactuals the shape of the rows is another.
    """
    config = load_recipe(arguments.recipe)
    config.data.update(root=arguments.data_root, rationale_answer="append", empty_rationale="drop")
    config.model.update(init="random", preset=arguments.preset)
    config.objective.name = "cotmi" if counterfactuals else "dss"
    if counterfactuals:
        config.mi.update(estimator="conditional", counterfactuals=counterfactuals)
    split, student = load(config)
    order = TrainOrder.of(split.size, arguments.batch_size, SEED, split)
    return make_batch(split, order, 0, make_shape(split, order, multiple=1)), student


def make_variant(arguments: argparse.Namespace, objective: Objective) -> Variant:
    """Compile the step of an objective."""
    mesh, schedule = make_mesh(), optax.constant_schedule(5e-5)
    config: StudentConfig = preset(arguments.preset)
    if arguments.recipe:
        batch, config = packed_batch(arguments, objective.counterfactuals)
    else:
        batch = random_batch(arguments, config.vocab_size, objective.counterfactuals)
    student = StudentDef.of(config)
    optimizer = with_networks(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)), optax.adam(1e-3))
    with jax.set_mesh(mesh):
        state_def = StateDef.of(student, optimizer, mesh, objective)
        on_mesh, streams = put_batch(batch, mesh), train_streams(SEED)
        step = make_train_step(state_def, objective, schedule)
        compiled = step.lower(state_def.abstract, on_mesh, streams).compile()  # type: ignore[attr-defined]
        state = None if arguments.memory_only else state_def.init(stream_key(SEED, "init"))

    def advance() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = compiled(state, on_mesh, streams)
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            raise FloatingPointError(f"loss {loss}")
        return time.perf_counter() - start

    return Variant(advance, compiled.memory_analysis().temp_size_in_bytes)


def rows(options: Options) -> list[Row]:
    """Time of a step with the mutual-information term beside one of dss."""
    given, names = [f"--rounds={options.rounds}"], [DEFAULT]
    if options.quick:
        given += ["--preset=tiny", "--batch_size=8", "--input_tokens=16", "--rationale_tokens=16"]
    else:
        names.append("barber_agakov, vocab_max")
    given += ["--variants", *names]
    report = run_json("benchmarks.mi_term", *given)
    setup = report["set-up"]
    return [
        Row.of(
            f"step with the mutual-information term, {name}, {setup['preset']}, batch {setup['batch_size']}",
            "s",
            report[name]["seconds"],
            report[BASELINE]["seconds"],
            command=shown_command("benchmarks.mi_term", *given),
            peer_name="the same step of dss",
            note=f"{report[name]['extra_temporaries_gb']:.4f} GB more temporaries",
        )
        for name in names
    ]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--input_tokens", type=int, default=112)
    parser.add_argument("--label_tokens", type=int, default=8)
    parser.add_argument("--rationale_tokens", type=int, default=72)
    parser.add_argument("--answer_tokens", type=int, default=2, help="of those of the label; consistency")
    parser.add_argument("--recipe", default="", help="data, packed, and student of this recipe, not random tokens")
    parser.add_argument("--data_root", default="", help="default: $COTMI_DATA_ROOT")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--memory_only", action="store_true", help="compile only")
    arguments = parser.parse_args()
    skip_absent_tpu()
    names = [BASELINE, *(name for name in arguments.variants if name != BASELINE)]
    variants = {name: make_variant(arguments, VARIANTS[name]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(0 if arguments.memory_only else arguments.rounds + 1):
        for name, variant in variants.items():
            spent = variant.advance()
            print(f"round {round_}: {name} {spent:.2f} s", file=sys.stderr, flush=True)
            if round_:  # the first allocates
                seconds[name].append(spent)
    report: dict[str, Any] = {
        "set-up": {key: value for key, value in vars(arguments).items() if key != "variants"},
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}, {platform.processor() or platform.machine()}",
    }
    for name, variant in variants.items():
        extra = variant.temporaries - variants[BASELINE].temporaries
        report[name] = {"temporaries_gb": variant.temporaries / 1e9, "extra_temporaries_gb": extra / 1e9}
        if seconds[name]:
            ratios = [own / base for own, base in zip(seconds[name], seconds[BASELINE], strict=True)]
            report[name] |= {
                "seconds_per_step": statistics.median(seconds[name]),
                "time_ratio": statistics.median(ratios),
                "time_ratios": ratios,
                "seconds": seconds[name],
            }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
