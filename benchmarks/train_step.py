"""Training speed and peak memory of the cotmi step and of the reference set-up in torch, on the same rows.

    python -m benchmarks.train_step --dataset=cqa --preset=small --batch_size=64

The torch side does what the released code does: transformers' T5, one forward pass per task, batches padded to their
longest row, AdamW, and the released mutual-information loss over the whole vocabulary. The jax side packs its rows and
uses the same loss without its defects (barber_agakov); with --padded, rows are padded to the longest of the split, and
the loss is the released one. Both train in float32 from random parameters with dropout. Each runs in a process of its
own, and the processes alternate, so that a change in the machine's load affects both. The first step (compilation,
allocation) is reported separately. The result is printed as JSON. The root of the data is --data_root or
$COTMI_DATA_ROOT.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import make_batch, make_shape
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.parallel.accelerators import skip_absent_tpu

SEED = 0
LEARNING_RATE = 5e-5
BETA = 0.1


def load(arguments: argparse.Namespace) -> tuple[TokenizedSplit, int]:
    """The tokenized train split and the vocabulary size of the model."""
    from cotmi_jax.config import base
    from cotmi_jax.data.run_data import load_data, tokenize
    from cotmi_jax.data.vocabulary import Vocabulary
    from cotmi_jax.experiment import find_vocabulary, make_student

    config = base()
    config.data.dataset, config.data.root = arguments.dataset, arguments.data_root or ""
    config.data.empty_rationale = "drop"
    config.model.preset = arguments.preset
    vocabulary = Vocabulary(find_vocabulary(config))
    student, _ = make_student(config, vocabulary)
    split = tokenize(config, vocabulary, load_data(config).corpus.splits["train"], train=True)
    return split, student.vocab_size


def jax_steps(arguments: argparse.Namespace, split: TokenizedSplit, vocab_size: int) -> Callable[[Batch], float]:
    """A function that trains on a batch with the step of cotmi_jax and returns the loss."""
    import dataclasses

    import jax
    import optax

    from cotmi_jax.config import base
    from cotmi_jax.experiment import make_objective
    from cotmi_jax.models.config import preset
    from cotmi_jax.models.student import StudentDef
    from cotmi_jax.parallel.batch import put_batch
    from cotmi_jax.parallel.mesh import make_mesh
    from cotmi_jax.training.rng import stream_key, train_streams
    from cotmi_jax.training.state import StateDef
    from cotmi_jax.training.step import make_train_step

    mesh = make_mesh()
    jax.set_mesh(mesh)
    student = dataclasses.replace(
        preset(arguments.preset, vocab_size=vocab_size),
        scan_layers=arguments.scan_layers,
        remat=arguments.remat,
        dtype=arguments.dtype,
    )
    schedule = optax.constant_schedule(LEARNING_RATE)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    state_def = StateDef.of(StudentDef.of(student), optimizer, mesh)
    config = base()
    config.objective.update(name=arguments.objective, beta=BETA)
    config.mi.estimator, config.data.packing = ("released", False) if arguments.padded else ("barber_agakov", True)
    objective = make_objective(config)
    step = make_train_step(state_def, objective, schedule)
    state, streams = state_def.init(stream_key(SEED, "init")), train_streams(SEED)

    def run(batch: Batch) -> float:
        nonlocal state
        state, metrics = step(state, put_batch(batch, mesh), streams)
        return float(metrics["loss"])

    return run


def torch_steps(arguments: argparse.Namespace, split: TokenizedSplit, vocab_size: int) -> Callable[[Batch], float]:
    """A function that trains on a batch with torch and transformers and returns the loss."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from cotmi_jax.models.config import preset
    from cotmi_jax.models.hf_config import config_to_hf

    torch.manual_seed(SEED)
    model = T5ForConditionalGeneration(T5Config(**config_to_hf(preset(arguments.preset, vocab_size=vocab_size))))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def trimmed(ids: np.ndarray) -> torch.Tensor:
        longest = int((ids != 0).sum(axis=1).max())
        return torch.from_numpy(ids[:, :longest].astype(np.int64))

    def forward(task: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = trimmed(task["inputs"]), trimmed(task["targets"])
        labels[labels == 0] = -100
        output = model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels)
        return output.loss, output.logits

    def run(batch: Batch) -> float:
        optimizer.zero_grad()
        label_loss, label_logits = forward(batch["predict"])
        rationale_loss, rationale_logits = forward(batch["explain"])
        loss = 0.5 * label_loss + 0.5 * rationale_loss
        if arguments.objective == "cotmi":
            z = torch.softmax(label_logits, dim=-1).detach().amax(dim=1)
            v = torch.softmax(rationale_logits, dim=-1).amax(dim=1)
            loss = loss + BETA * torch.nn.functional.cross_entropy(v, z)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a timed step of one side, its tokens without padding, and the process's peak memory in GiB."""
    split, vocab_size = load(arguments)
    run = {"jax": jax_steps, "torch": torch_steps}[arguments.side](arguments, split, vocab_size)
    order = TrainOrder.of(split.size, arguments.batch_size, SEED, split)
    packs = arguments.side == "jax" and not arguments.padded
    shape = make_shape(split, order, multiple=1) if packs else None
    seconds, tokens = [], []
    for step in range(arguments.steps + 1):
        batch = make_batch(split, order, step, shape)
        start = time.perf_counter()
        loss = run(batch)
        seconds.append(time.perf_counter() - start)
        tokens.append(int(split.token_counts(order.picks(step)).sum()))
        if not np.isfinite(loss):
            raise FloatingPointError(f"{arguments.side}: loss {loss} at step {step}")
        print(f"{arguments.side} step {step}: {seconds[-1]:.2f} s, loss {loss:.3f}", file=sys.stderr, flush=True)
    return {
        "seconds": statistics.median(seconds[1:]),
        "first_step_seconds": seconds[0],
        "tokens": statistics.mean(tokens[1:]),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Run both sides alternately, `rounds` times."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    for _ in range(arguments.rounds):
        for side in arguments.sides:
            command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], f"--side={side}"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[side].append(json.loads(output.splitlines()[-1]))
    report: dict[str, object] = {
        "set-up": {
            name: getattr(arguments, name)
            for name in ("dataset", "preset", "batch_size", "objective", "scan_layers", "remat", "dtype", "padded")
        },
        "machine": platform.processor() or platform.machine(),
    }
    for side, rounds in results.items():
        seconds = statistics.median(result["seconds"] for result in rounds)
        report[side] = {
            "examples_per_second": arguments.batch_size / seconds,
            "real_tokens_per_second": statistics.mean(result["tokens"] for result in rounds) / seconds,
            "seconds_per_step": seconds,
            "first_step_seconds": statistics.median(result["first_step_seconds"] for result in rounds),
            "peak_memory_gib": max(result["peak_gib"] for result in rounds),
        }
    return report


def main() -> None:
    """Parse the command line; without --side, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cqa")
    parser.add_argument("--data_root")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--objective", choices=("dss", "cotmi"), default="cotmi")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the jax side")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none", help="of the jax side")
    parser.add_argument("--padded", action="store_true", help="jax side: one example per row, and the released loss")
    parser.add_argument("--scan_layers", action="store_true", help="of the jax side")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=("jax", "torch"), default=("jax", "torch"))
    parser.add_argument("--side", choices=("jax", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    skip_absent_tpu()
    print(json.dumps(measure(arguments)) if arguments.side else json.dumps(compare(arguments), indent=1))


if __name__ == "__main__":
    main()
