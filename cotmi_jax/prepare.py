"""Prepare sets of TensorFlow Datasets: python -m cotmi_jax.prepare cotmi_jax/data/builders/dss --config=svamp …

This is `tfds build` with all its options. The command of that name first imports packages of its sister commands that
pip does not install with it, apache-beam and mlcroissant (github.com/tensorflow/datasets/issues/5463); this needs none.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import app

from cotmi_jax.errors import UserError


def main() -> None:
    """Build what the arguments name; whatever TensorFlow Datasets cannot do with them becomes one line."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.scripts.cli import build, cli_utils

    def execute(arguments: build.Args) -> None:
        try:
            arguments.execute()
        # An AssertionError says that the manual directory is missing, a ValueError that a set or config is unknown.
        except (AssertionError, FileNotFoundError, ValueError, tfds.core.DatasetNotFoundError) as error:
            raise UserError(" ".join(str(error).split())) from error

    parse = cli_utils.make_flags_parser(build.Args, description=(__doc__ or "").split("\n")[0])
    app.run(lambda arguments: cli.guard(lambda: execute(arguments)), flags_parser=parse)


if __name__ == "__main__":
    main()
