"""Tokens, parameters and step time of a student from random parameters, with T5's vocabulary and with one of its data.

    python -m benchmarks.vocabulary --dataset=esnli --preset=tiny --pieces 2000 4000

Each step trains the same examples with each vocabulary in turn, in one process, so that a change in the machine's load
affects all. Prints one JSON object for each: mean tokens of a train input, label and rationale, with eos; parameters;
FLOPs of the matrix products of an example of both tasks at these lengths; median seconds of a step; and the ratios of
FLOPs and of seconds to those with T5's vocabulary. The root of the data is --data_root or $COTMI_DATA_ROOT.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.train_step import check_device, jax_steps
from cotmi_jax.config import base, validate


def make_run(arguments: argparse.Namespace, vocabulary: str) -> tuple[dict[str, Any], Any, list[Any]]:
    """Facts about a side, its training step, and its batches."""
    import jax

    from cotmi_jax.data.run_data import RunData
    from cotmi_jax.data.vocabulary import Vocabulary
    from cotmi_jax.experiment import OFFICIAL_PIECES, find_vocabulary, make_student
    from cotmi_jax.models.config import T5Config
    from cotmi_jax.models.flops import step_flops
    from cotmi_jax.models.student import StudentDef

    config = base()
    config.data.update(dataset=arguments.dataset, root=arguments.data_root or "", empty_rationale="drop")
    config.data.vocabulary = vocabulary
    config.model.update(preset=arguments.preset, scan_layers=False)
    config.batch_size, config.steps = arguments.batch_size, arguments.steps + 1
    validate(config)
    file = Vocabulary(find_vocabulary(config))
    student, _ = make_student(config, file)
    data = RunData.of(config, file)
    shape = data.shape(1)
    tasks = data.train.tasks
    assert isinstance(student, T5Config)
    lengths = [(np.mean(task.inputs.lengths), np.mean(task.targets.lengths)) for task in tasks.values()]
    facts = {
        "vocabulary": vocabulary or ("T5's" if file.size == OFFICIAL_PIECES else "the data set's own"),
        "pieces": file.size,
        "input_tokens": float(np.mean(tasks["predict"].inputs.lengths)),
        "label_tokens": float(np.mean(tasks["predict"].targets.lengths)),
        "rationale_tokens": float(np.mean(tasks["explain"].targets.lengths)),
        "flops": float(sum(step_flops(student, rows=1, input_length=s, target_length=t) for s, t in lengths)),
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(StudentDef.of(student).shapes)),
    }
    batches = [batch for _, batch in zip(range(arguments.steps + 1), data.batches(0, shape), strict=False)]
    return facts, jax_steps(config, student, "cpu"), batches


def main() -> None:
    """Measure every vocabulary and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="esnli")
    parser.add_argument("--data_root")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--pieces", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    check_device("cpu")
    sides = [make_run(arguments, vocabulary) for vocabulary in ("", *(f"own:{pieces}" for pieces in arguments.pieces))]
    seconds: list[list[float]] = [[] for _ in sides]
    for step in range(arguments.steps + 1):
        for (_, run, batches), times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            run(batches[step])
            if step:  # the first compiles
                times.append(time.perf_counter() - start)
    medians = [statistics.median(times) for times in seconds]
    for (facts, _, _), median in zip(sides, medians, strict=True):
        ratios = {"flops_ratio": facts["flops"] / sides[0][0]["flops"], "seconds_ratio": median / medians[0]}
        print(json.dumps(facts | {"seconds": median} | ratios))


if __name__ == "__main__":
    main()
