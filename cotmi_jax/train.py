"""Train a student: python -m cotmi_jax.train --config=configs/quickstart.py --workdir=runs/quickstart.

Several hosts give the same command, with the environment variables that cotmi_jax/parallel/distributed.py names.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, which is resumed if the folder holds one; may be gs://."
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Train from the flags."""
    # Imported after the flags are parsed: a mistyped flag fails at once, before slow imports.
    from cotmi_jax.compilation_cache import use_compilation_cache
    from cotmi_jax.parallel.accelerators import skip_absent_tpu
    from cotmi_jax.parallel.distributed import process_group
    from cotmi_jax.training.job import train

    skip_absent_tpu()
    config = _CONFIG.value
    with process_group(preemption=True, show_traceback=flags.FLAGS.traceback):
        use_compilation_cache(config.compilation_cache)
        train(config, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, huge_pages=True)
