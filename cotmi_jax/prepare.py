"""Prepare data sets with TensorFlow Datasets: python -m cotmi_jax.prepare cotmi_jax/data/builders/dss --config=svamp …

This is `tfds build` with all its options. The command `tfds` imports apache-beam and mlcroissant for its other
subcommands, which pip does not install with it (github.com/tensorflow/datasets/issues/5463); this one needs neither.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import app

from cotmi_jax.errors import UserError


def main() -> None:
    """Build the data set that the arguments name; errors of TensorFlow Datasets about it become UserErrors."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.scripts.cli import build, cli_utils

    def execute(arguments: build.Args) -> None:
        try:
            arguments.execute()
        # AssertionError: the manual directory is missing. ValueError: the data set or its config is unknown.
        except (AssertionError, FileNotFoundError, ValueError, tfds.core.DatasetNotFoundError) as error:
            raise UserError(" ".join(str(error).split())) from error

    parse = cli_utils.make_flags_parser(build.Args, description=(__doc__ or "").split("\n")[0])
    app.run(lambda arguments: cli.guard(lambda: execute(arguments)), flags_parser=parse)


if __name__ == "__main__":
    main()
