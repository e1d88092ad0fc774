"""Speed of the input pipeline: packed and padded batches from prepared tokens, and the reference set-up's collator.

    python -m benchmarks.input --dataset=cqa

The reference set-up collates with transformers and torch: one `DataCollatorForSeq2Seq` per task behind a DataLoader
that yields the same rows. All sides run alternately in one process. Tokens are counted without padding, and time is
processor time over all cores. The JSON output also has the padding of each side, the shape of packed batches, and the
fraction of examples that balancing moved to another batch. The root of the data is --data_root or $COTMI_DATA_ROOT.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # otherwise torch's copies use threads on the other cores

import numpy as np  # noqa: E402

from benchmarks.table import Options, Row, missing, run_json, shown_command  # noqa: E402
from cotmi_jax.config import base  # noqa: E402
from cotmi_jax.data.packing import make_batch  # noqa: E402
from cotmi_jax.data.run_data import RunData  # noqa: E402
from cotmi_jax.data.tokens import Batch, TokenizedSplit  # noqa: E402
from cotmi_jax.data.vocabulary import Vocabulary  # noqa: E402
from cotmi_jax.experiment import find_vocabulary  # noqa: E402

Counts = tuple[int, int]  # input and target positions of a batch


def load(arguments: argparse.Namespace, cache: str) -> RunData:
    """The run's data, read from a cache that the first call writes."""
    config = base()
    config.data.dataset, config.data.root = arguments.dataset, arguments.data_root or ""
    config.data.empty_rationale, config.model.init = "drop", "random"
    config.batch_size, config.data.cache = arguments.batch_size, cache
    vocabulary = Vocabulary(find_vocabulary(config))
    RunData.of(config, vocabulary)
    return RunData.of(config, vocabulary)


def ours(data: RunData, *, packing: bool, steps: int, platform: str = "cpu") -> Callable[[], Iterator[Batch]]:
    """Batches of the first steps, made as in a run but without tf.data."""
    shape = data.shape(1, platform) if packing else None

    def batches() -> Iterator[Batch]:
        for step in range(steps):
            yield make_batch(data.train, data.order, step, shape)

    return batches


def pipeline(data: RunData, *, steps: int) -> Callable[[], Iterator[Batch]]:
    """The same packed batches through tf.data and its threads, as in a run."""
    from cotmi_jax.data.pipeline import train_batches

    shape = data.shape(shards=1)
    return lambda: train_batches(data.train, data.order, 0, steps, shape=shape)


def reference(data: RunData, *, steps: int) -> Callable[[], Iterator[Batch]]:
    """The same rows through one collator per task."""
    import torch
    from transformers import DataCollatorForSeq2Seq, T5Tokenizer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(find_vocabulary(data.config).read_bytes())
        tokenizer = T5Tokenizer.from_pretrained(folder)
    collate = DataCollatorForSeq2Seq(tokenizer)
    rows = [features(data.train, row) for row in range(data.train.size)]
    picked = [data.order.picks(step).rows.tolist() for step in range(steps)]

    def both(examples: list[dict[str, dict[str, list[int]]]]) -> Batch:
        return {task: dict(collate([example[task] for example in examples])) for task in data.train.tasks}

    def batches() -> Iterator[Batch]:
        yield from torch.utils.data.DataLoader(rows, batch_sampler=picked, collate_fn=both)

    return batches


def features(split: TokenizedSplit, row: int) -> dict[str, dict[str, list[int]]]:
    """A row in the form of a tokenized transformers data set."""
    found = {}
    for task, tokens in split.tasks.items():
        ids, labels = (
            ragged.flat[ragged.offsets[row] : ragged.offsets[row + 1]].tolist()
            for ragged in (tokens.inputs, tokens.targets)
        )
        found[task] = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    return found


def fraction_moved(data: RunData, steps: int) -> float:
    """Fraction of the examples of the first steps that a purely random order puts into another batch."""
    plain = dataclasses.replace(data.order, tokens=None)
    moved = [np.setdiff1d(data.order.picks(step).rows, plain.picks(step).rows).size for step in range(steps)]
    return sum(moved) / (steps * data.order.batch_size)


def positions(batch: Batch) -> Counts:
    """Token positions of a batch, padding included."""
    if "rows" in batch:
        return batch["rows"]["inputs"].size, batch["rows"]["targets"].size
    tasks = [batch[task] for task in ("predict", "explain")]
    names = ("inputs", "targets") if "inputs" in tasks[0] else ("input_ids", "labels")
    inputs, targets = (sum(int(np.prod(task[name].shape)) for task in tasks) for name in names)
    return inputs, targets


def measure(batches: Callable[[], Iterator[Batch]], clock: Callable[[], float]) -> tuple[float, np.ndarray]:
    """Seconds for all batches, and the number of their positions."""
    start, total = clock(), np.zeros(2)
    for batch in batches():
        total += positions(batch)
    return clock() - start, total


def rows(options: Options) -> list[Row]:
    """Tokens per second of processor time beside the collator of transformers, and the padding of packed batches."""
    absent = missing("torch", "transformers")
    found = []
    for dataset in ["arithmetic"] if options.quick else ["cqa", "svamp", "esnli", "arithmetic"]:
        given = [f"--dataset={dataset}", f"--rounds={options.rounds}", f"--steps={2 if options.quick else 100}"]
        given += ["--batch_size=8"] * options.quick + [f"--data_root={options.data_root}"] * bool(options.data_root)
        given += ["--sides", "packed", *(["torch"] if not absent else [])]
        report, command = run_json("benchmarks.input", *given), shown_command("benchmarks.input", *given)
        ours = report["packed"]
        padding = (
            f"{report['shape']}: {ours['input_padding']:.1%} of inputs and {ours['target_padding']:.1%} of targets"
        )
        if absent:
            padding += f"; no {' and '.join(absent)}: pip install -e '.[torch]'"
        peer = report["torch"]["rounds"] if "torch" in report else []
        found.append(
            Row.of(
                f"input pipeline, {dataset}, batch {report['batch_size']}",
                "tokens per second and core",
                ours["rounds"],
                peer,
                command=command,
                peer_name="DataCollatorForSeq2Seq and DataLoader" * bool(peer),
                note=f"padding of {padding}",
            )
        )
    return found


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cqa")
    parser.add_argument("--data_root")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--platform", choices=("cpu", "gpu", "tpu"), default="cpu", help="devices that packed rows are chosen for"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", nargs="+", choices=("packed", "padded", "tf.data", "torch"), default=("packed", "torch")
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        data = load(arguments, cache)
        makers = {
            "packed": lambda: ours(data, packing=True, steps=arguments.steps, platform=arguments.platform),
            "padded": lambda: ours(data, packing=False, steps=arguments.steps),
            "tf.data": lambda: pipeline(data, steps=arguments.steps),
            "torch": lambda: reference(data, steps=arguments.steps),
        }
        sides = {side: makers[side]() for side in arguments.sides}
        loads = [data.train.token_counts(data.order.picks(step)).sum(axis=0) for step in range(arguments.steps)]
        tokens = np.sum(loads, axis=0)
        spent: dict[str, list[float]] = {side: [] for side in sides}
        for batches in sides.values():
            next(batches())  # imports, first pages of the cache
        totals = {}
        for _ in range(arguments.rounds):
            for side, batches in sides.items():
                seconds, totals[side] = measure(batches, time.process_time)
                spent[side].append(seconds)
    report: dict[str, object] = {
        "dataset": arguments.dataset,
        "batch_size": arguments.batch_size,
        "tokens_a_batch": float(tokens.sum() / arguments.steps),
        "machine": platform.processor() or platform.machine(),
    }
    if "packed" in sides:
        shape = data.shape(1, arguments.platform)
        assert shape is not None
        text = f"{shape.rows} rows of {shape.input_length}→{shape.target_length}"
        report |= {"shape": text, "examples_moved": fraction_moved(data, arguments.steps)}
    for side, seconds_of_rounds in spent.items():
        seconds = statistics.median(seconds_of_rounds)
        padding = 1.0 - tokens / totals[side]
        report[side] = {
            "tokens_per_second_and_core": tokens.sum() / seconds,
            "milliseconds_a_batch": 1e3 * seconds / arguments.steps,
            "rounds": [tokens.sum() / each for each in seconds_of_rounds],
            "input_padding": padding[0],
            "target_padding": padding[1],
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
