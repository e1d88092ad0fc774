"""Makes legacy_workdir.tar.xz, an interrupted run by revision d10450d and what that revision made of it afterwards.

    git worktree add /tmp/legacy d10450d && cd /tmp/legacy
    export XLA_FLAGS=--xla_cpu_use_fusion_emitters=false  # as in tests/conftest.py: another code generator, other bits
    PYTHONPATH=. python {repository}/tests/workdir/make_legacy_workdir.py legacy_workdir.tar.xz

The run has every kind of state: AdamW's moments, the networks of the mutual-information term with their Adam, and
MINE's moving average. It is interrupted after step 4 of 6. The archive holds its workdir (`run`), `expected.npz` with
the parameters at step 6, and `expected.json`: metrics and 16 predictions of step 4, and type and shape of all arrays of
step 6.
"""

import importlib
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

CHANGES: dict[str, Any] = {
    "steps": 6,
    "batch_size": 16,
    "micro_batches": 2,
    "data.dataset": "arithmetic",
    "data.size": 20,
    "data.cache": "none",
    "data.vocabulary": "spiece.model",  # neither this nor the initial checkpoint is read again
    "model.init": "initial",
    "model.dropout": 0.0,  # dropout masks differ between revisions
    "model.scan_layers": False,
    "objective.beta": 0.1,
    "optimizer.learning_rate": 1e-2,
    "mi.estimator": "mine",
    "mi.critic.hidden": 2,
    "mi.critic.layers": 1,
    "mi.critic.dim": 2,
    "mi.compression.name": "variational",
    "mi.warmup_steps": 1,
    "mi.ramp_steps": 2,
    "mi.monitor.every": 0,
    "eval.every": 2,
    "eval.examples": 12,
    "checkpoint.every": 2,
    "checkpoint.keep": 1,
    "compilation_cache": "none",
}


def legacy(module: str) -> Any:
    """A module of the revision that makes the archive."""
    return importlib.import_module(f"cotmi_jax.{module}")


def initial_student(folder: Path) -> None:
    """A Hugging Face directory of a student with two layers of width 4; its numbers come from numpy."""
    config = legacy("models.config").T5Config(
        vocab_size=432, d_model=4, d_kv=4, d_ff=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1
    )
    shapes, draw = legacy("models.student").StudentDef.of(config).shapes, np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.normal(0.0, 0.3, leaf.shape).astype(np.float32), shapes)
    vocabulary = legacy("data.arithmetic").VOCABULARY_PATH
    legacy("models.hf").save_hf(params, config, folder, vocabulary_file=vocabulary)
    shutil.copy(vocabulary, "spiece.model")


def interrupt_after(step: int) -> None:
    """Send this process SIGTERM once the metrics of a step are written."""
    writer = legacy("training.writers").MetricWriter
    write = writer.write

    def write_and_signal(self: Any, at: int, metrics: Any) -> None:
        write(self, at, metrics)
        if at == step and "train/loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    writer.write = write_and_signal


def main(archive: Path) -> None:
    """Train, interrupt, keep the workdir; then evaluate and resume it."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)
    os.chdir(tempfile.mkdtemp())
    initial_student(Path("initial"))
    config = legacy("config").smoke(legacy("config").base())
    config.update_from_flattened_dict(CHANGES)
    interrupt_after(3)  # whose metrics are written while step 4 runs
    train = legacy("training.job").train
    assert train(config, "run") == 4
    shutil.rmtree("run/tensorboard")
    shutil.copytree("run", "resumed")
    scored = legacy("training.scoring").score("resumed", "valid", checkpoint="latest", information=False)
    assert train(config, "resumed") == 6
    checkpoint = legacy("training.checkpoint")
    found = checkpoint.contents(checkpoint.find(Path("resumed").absolute(), "latest"))
    arrays = {name: value for name, value in found if isinstance(value, np.ndarray)}
    np.savez_compressed(
        "expected.npz", **{name: array for name, array in arrays.items() if not name.startswith("optimizer")}
    )
    expected = {
        "metrics": scored.metrics,
        "predictions": scored.predictions[:16],
        "arrays": {name: [str(array.dtype), *array.shape] for name, array in arrays.items()},
        "lines": [json.loads(line) for line in Path("resumed/metrics.jsonl").read_text().splitlines()],
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    with tarfile.open(archive, "w:xz") as packed:
        for name in ("run", "expected.npz", "expected.json"):
            packed.add(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
