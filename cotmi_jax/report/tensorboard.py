"""An evaluation in TensorBoard: scores, examples and pictures."""

import sys
from collections.abc import Sequence

from cotmi_jax.evaluation.examples import markdown_examples
from cotmi_jax.evaluation.job import Scored
from cotmi_jax.files import Path, is_remote
from cotmi_jax.workdir.trackers import TensorBoard, TrackedRun

EXAMPLES = 20


def log_evaluation(result: Scored, pictures: Sequence[Path]) -> bool:
    """Write event files to {output}/tensorboard, at the step of the checkpoint; in a bucket nothing, and False.

    A later evaluation of the same split replaces what TensorBoard shows of an earlier one.
    """
    if is_remote(result.output):
        return False
    step = result.metrics["checkpoint"]["step"] or 0  # None: not from a run
    run = TrackedRun(result.output, result.output, step - 1, "", {}, lambda line: print(line, file=sys.stderr))
    tracker = TensorBoard(run)
    tracker.scalars(step, {name: score["value"] for name, score in result.metrics["metrics"].items()})
    tracker.texts(step, {"examples": markdown_examples(result.predictions[:EXAMPLES])})
    tracker.images(step, {picture.stem: picture.read_bytes() for picture in pictures})
    tracker.close()
    return True
