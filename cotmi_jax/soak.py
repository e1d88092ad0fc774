"""Kill a training run again and again and compare it with one that was left alone, bit for bit.

    python -m cotmi_jax.soak --config=configs/quickstart.py:smoke --workdir=runs/soak --kills=20 --seed=0

Exits with 1 where they differ. {workdir}/reference is the run that was left alone, {workdir}/killed-{n} those that were
killed (kept where they differ), each with a log beside it.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

import sys

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe; its keys are overridden by --config.key=value.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A new folder for the runs.")
_KILLS = flags.DEFINE_integer("kills", 20, "How often a run is killed at least.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    """Soak from the flags."""
    import jax

    from cotmi_jax.config import validate
    from cotmi_jax.training.soak import soak

    jax.config.update("jax_platforms", "cpu")  # the trainers need the accelerators, which belong to one process
    config = cli.loaded_config(_CONFIG)
    validate(config)
    flag = flags.FLAGS["config"]
    overrides = config_flags.get_override_values(flag)
    command = [sys.executable, "-m", "cotmi_jax.train", f"--config={config_flags.get_config_filename(flag)}"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    report = soak(command, _WORKDIR.value, kills=_KILLS.value, seed=_SEED.value, eval_every=config.eval.every)
    print(report.text())
    return 1 if report.differences else 0


if __name__ == "__main__":
    cli.run(main)
