"""Training speed and peak memory of the cotmi step and of the reference set-up in torch, on the same rows.

    python -m benchmarks.train_step --dataset=cqa --preset=small --batch_size=64

The torch side does what the released code does: transformers' T5, one forward pass per task, batches padded to their
longest row, AdamW, and the released mutual-information loss over the whole vocabulary. The jax side packs its rows and
uses the same loss without its defects (barber_agakov); with --padded, rows are padded to the longest of the split, and
the loss is the released one. Both train from random parameters with dropout, in float32 or, with --dtype=bfloat16, with
bfloat16 activations (torch: autocast). Each runs in a process of its own, and the processes alternate, so that a change
in the machine's load affects both. The first step (compilation, allocation) is reported separately. The result is
printed as JSON. The root of the data is --data_root or $COTMI_DATA_ROOT.

On a GPU, the model FLOP utilization is reported too: FLOPs of the matrix products of real tokens per second
(cotmi_jax/models/flops.py), divided by the bfloat16 peak of the device (cotmi_jax/parallel/accelerators.py):

    python -m benchmarks.train_step --device=gpu --dtype=bfloat16 --preset=base --batch_size=256 --steps=20
    python -m benchmarks.train_step --device=gpu --dtype=bfloat16 --preset=large --batch_size=128 --steps=20
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import quickstart
from benchmarks.table import Options, Row, missing, run_json, shown_command
from cotmi_jax.config import base, validate
from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import make_batch, make_shape
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.errors import UserError
from cotmi_jax.huge_pages import use_huge_pages
from cotmi_jax.parallel.accelerators import find_accelerator, skip_absent_tpu

SEED = 0
LEARNING_RATE = 5e-5
BETA = 0.1
SIDES = ("jax", "torch")


def make_config(arguments: argparse.Namespace) -> ConfigDict:
    """The configuration of the jax side."""
    config = base()
    config.data.dataset, config.data.root = arguments.dataset, arguments.data_root or ""
    config.data.empty_rationale, config.data.packing = "drop", not arguments.padded
    config.batch_size = arguments.batch_size
    config.model.update(preset=arguments.preset, dtype=arguments.dtype, scan_layers=arguments.scan_layers)
    config.model.remat = arguments.remat or config.model.remat
    config.model.attention = arguments.attention or config.model.attention
    config.objective.update(name=arguments.objective, beta=BETA)
    config.mi.estimator = "released" if arguments.padded else "barber_agakov"
    validate(config)
    return config


def load(config: ConfigDict) -> tuple[TokenizedSplit, Any]:
    """The tokenized train split and the student's config."""
    from cotmi_jax.data.run_data import load_data, tokenize
    from cotmi_jax.data.vocabulary import Vocabulary
    from cotmi_jax.experiment import find_vocabulary, make_student

    vocabulary = Vocabulary(find_vocabulary(config))
    student, _ = make_student(config, vocabulary)
    return tokenize(config, vocabulary, load_data(config).corpus.splits["train"], train=True), student


def check_device(name: str) -> str:
    """Make JAX use a device, cpu, gpu or tpu; returns its kind. Raises UserError if the machine has none."""
    import jax

    skip_absent_tpu()
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        return jax.devices(name)[0].device_kind
    except RuntimeError:
        found = ", ".join(sorted({each.platform for each in jax.devices()}))
        raise UserError(f"--device={name}: JAX finds none on this machine, only {found}") from None


def jax_steps(config: ConfigDict, student: Any, device: str) -> Callable[[Batch], float]:
    """A function that trains on a batch with the step of cotmi_jax and returns the loss."""
    import jax
    import optax

    from cotmi_jax.experiment import make_objective
    from cotmi_jax.models.rng import stream_key, train_streams
    from cotmi_jax.models.student import StudentDef
    from cotmi_jax.parallel.batch import put_batch
    from cotmi_jax.parallel.mesh import make_mesh
    from cotmi_jax.training.state import StateDef
    from cotmi_jax.training.step import make_train_step

    mesh = make_mesh(devices=jax.devices(device)[:1])
    schedule = optax.constant_schedule(LEARNING_RATE)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    with jax.set_mesh(mesh):
        state_def, objective = StateDef.of(StudentDef.of(student), optimizer, mesh), make_objective(config)
        step = make_train_step(state_def, objective, schedule)
        state, streams = state_def.init(stream_key(SEED, "init")), train_streams(SEED)

    def run(batch: Batch) -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, put_batch(batch, mesh), streams)
        return float(metrics["loss"])

    return run


def torch_steps(
    config: ConfigDict, student: Any, device: str, attention: str
) -> tuple[Callable[[Batch], float], dict[str, str]]:
    """A function that trains on a batch with torch and transformers and returns the loss; and what it runs with."""
    import torch
    import transformers
    from transformers import T5Config, T5ForConditionalGeneration

    from cotmi_jax.models.hf_config import config_to_hf

    torch.manual_seed(SEED)
    place = {"cpu": "cpu", "gpu": "cuda"}[device]
    model = T5ForConditionalGeneration._from_config(T5Config(**config_to_hf(student)), attn_implementation=attention)
    model = model.to(place).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=device == "gpu")
    autocast = torch.autocast(place, torch.bfloat16, enabled=config.model.dtype == "bfloat16")

    def trimmed(ids: np.ndarray) -> torch.Tensor:
        longest = int((ids != 0).sum(axis=1).max())
        return torch.from_numpy(ids[:, :longest].astype(np.int64)).to(place)

    def forward(task: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = trimmed(task["inputs"]), trimmed(task["targets"])
        labels[labels == 0] = -100
        output = model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels)
        return output.loss, output.logits

    def loss_of(batch: Batch) -> torch.Tensor:
        label_loss, label_logits = forward(batch["predict"])
        rationale_loss, rationale_logits = forward(batch["explain"])
        loss = 0.5 * label_loss + 0.5 * rationale_loss
        if config.objective.name == "cotmi":
            z = torch.softmax(label_logits, dim=-1).detach().amax(dim=1)
            v = torch.softmax(rationale_logits, dim=-1).amax(dim=1)
            loss = loss + BETA * torch.nn.functional.cross_entropy(v, z)
        return loss

    def run(batch: Batch) -> float:
        optimizer.zero_grad()
        with autocast:
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return run, versions | {"attention": model.config._attn_implementation}


def peak_gib(side: str, device: str) -> float:
    """Peak memory: of the process on a CPU, else what was allocated on the device."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if side == "torch":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    import jax

    return jax.devices(device)[0].memory_stats()["peak_bytes_in_use"] / 2**30


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a timed step of one side, its tokens and FLOPs without padding, and its peak memory."""
    from cotmi_jax.training.throughput import Work

    config, kind = make_config(arguments), check_device(arguments.device)
    split, student = load(config)
    setup: dict[str, Any] = {"device": kind}
    if arguments.side == "jax":
        run = jax_steps(config, student, arguments.device)
    else:
        run, versions = torch_steps(config, student, arguments.device, arguments.torch_attention)
        setup |= versions
    order = TrainOrder.of(split.size, arguments.batch_size, SEED, split)
    packs = arguments.side == "jax" and config.data.packing
    shape = make_shape(split, order, multiple=1) if packs else None
    seconds, cpu_seconds, work = [], [], []
    for step in range(arguments.steps + 1):
        batch, picks = make_batch(split, order, step, shape), order.picks(step)
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = run(batch)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        work.append(Work.of(student, arguments.batch_size, split.pair_lengths(picks)))
        if not np.isfinite(loss):
            raise FloatingPointError(f"{arguments.side}: loss {loss} at step {step}")
        print(f"{arguments.side} step {step}: {seconds[-1]:.2f} s, loss {loss:.3f}", file=sys.stderr, flush=True)
    found = setup | {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "first_step_seconds": seconds[0],
        "tokens": statistics.mean(each.tokens for each in work[1:]),
        "peak_gib": peak_gib(arguments.side, arguments.device),
    }
    flops = statistics.mean(each.flops for each in work[1:] if each.flops)
    if arguments.device == "cpu":
        found["gflop_per_cpu_second"] = flops / 1e9 / found["cpu_seconds"]
    if accelerator := find_accelerator(kind):
        found["mfu"] = flops / found["seconds"] / accelerator.flops
    return found


def compare(arguments: argparse.Namespace, given: list[str]) -> dict[str, Any]:
    """Run both sides alternately, `rounds` times."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in arguments.sides}
    for _ in range(arguments.rounds):
        for side in arguments.sides:
            results[side].append(run_json("benchmarks.train_step", *given, f"--side={side}"))
    names = ("dataset", "preset", "batch_size", "objective", "scan_layers", "remat", "attention", "dtype", "padded")
    report: dict[str, Any] = {
        "set-up": {name: getattr(arguments, name) for name in names},
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
            "rounds": rounds,
        }
        for name in ("mfu", "gflop_per_cpu_second"):
            if name in rounds[0]:
                report[side][name] = statistics.median(result[name] for result in rounds)
    return report


def rows(options: Options) -> list[Row]:
    """Examples/s and peak memory of CommonsenseQA and e-SNLI beside torch, and the step of the quickstart."""
    found = []
    steps = 2 if options.quick else 4
    absent = missing("torch", "transformers")
    for dataset, preset, size in (
        [("arithmetic", "tiny", 8)]
        if options.quick
        else [
            ("cqa", "small", 64),
            ("esnli", "small", 64),
        ]
    ):
        given = [f"--dataset={dataset}", f"--preset={preset}", f"--batch_size={size}", f"--steps={steps}"]
        given += [f"--rounds={options.rounds}"] + ["--sides=jax"] * bool(absent)
        given += [f"--data_root={options.data_root}"] * bool(options.data_root)
        report = run_json("benchmarks.train_step", *given)
        command, note = shown_command("benchmarks.train_step", *given), ""
        ours, torch, name = report["jax"]["rounds"], [], ""
        if absent:
            note = f"no {' and '.join(absent)}: pip install -e '.[torch]'"
        else:
            torch = report["torch"]["rounds"]
            name = "transformers {transformers}, torch {torch}, {attention}".format(**torch[0])
        what = f"train step, {preset}, {dataset}, batch {size}"
        for label, unit, value in (
            (what, "examples/s", lambda each, size=size: size / each["seconds"]),
            (f"{what}: peak memory", "GiB", lambda each: each["peak_gib"]),
        ):
            values = [list(map(value, side)) for side in (ours, torch)]
            found.append(Row.of(label, unit, *values, command=command, peer_name=name, note=note))
    return [*found, *quickstart.rows(options)]


def main() -> int:
    """Parse the command line; without --side, compare. 2 for a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cqa")
    parser.add_argument("--data_root")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--objective", choices=("dss", "cotmi"), default="cotmi")
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), default="cpu", help="the torch side: cpu or gpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
    parser.add_argument("--remat", help="of the jax side, as config.model.remat")
    parser.add_argument("--attention", help="of the jax side, as config.model.attention")
    parser.add_argument("--padded", action="store_true", help="jax side: one example per row, and the released loss")
    parser.add_argument("--scan_layers", action="store_true", help="of the jax side")
    parser.add_argument(
        "--torch_attention", choices=("sdpa", "eager", "flex_attention"), default="sdpa", help="of transformers"
    )
    parser.add_argument("--steps", type=int, default=4, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.side == "jax" and arguments.device == "cpu":
            use_huge_pages()  # as train does
        if "torch" in arguments.sides and arguments.device == "tpu":
            raise UserError("--device=tpu: the torch side runs on cpu and gpu only: give --sides jax")
        report = measure(arguments) if arguments.side else compare(arguments, sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=None if arguments.side else 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
