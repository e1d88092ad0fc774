"""Weigh rationales by their difficulty for a student: python -m cotmi_jax.weigh --config=RECIPE --output=FILE.

Two students of the recipe's size learn to answer with the rationale in their input, each on half of the train split,
and score the other half. The file is for config.data.rationale_weights=jsonl:FILE (docs/weights.md).
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", None, "The file of weights, JSON Lines; may be gs://. It is replaced.")
_STEPS = flags.DEFINE_integer("steps", 400, "Optimizer steps of each student.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples a step.", lower_bound=1)
_SELECT = flags.DEFINE_float(
    "select",
    0.0,
    "Share of the rationales that get weight 1, those of the lowest difficulty; the others get 0. 0 (default): the "
    "weight is 1 / perplexity.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
    """Weigh the rationales of the train split that the recipe names."""
    import functools
    import json
    from collections.abc import Sequence

    import jax
    import numpy as np

    from cotmi_jax.compilation_cache import use_compilation_cache
    from cotmi_jax.config import validate
    from cotmi_jax.data.rationale_weights import FILE
    from cotmi_jax.data.run_data import load_data
    from cotmi_jax.data.vocabulary import Vocabulary
    from cotmi_jax.errors import UserError
    from cotmi_jax.evaluation.difficulty import measure_difficulty, summary, weight_rows
    from cotmi_jax.experiment import find_vocabulary
    from cotmi_jax.extensions import load_extensions
    from cotmi_jax.files import absolute, as_path, replace_file, user_error_on_write
    from cotmi_jax.parallel.accelerators import skip_absent_tpu
    from cotmi_jax.parallel.mesh import make_mesh
    from cotmi_jax.training.fit import cross_fit

    config = _CONFIG.value
    if config.data.rationale_weights.startswith(FILE):
        raise UserError(
            f"config.data.rationale_weights {config.data.rationale_weights}: this command writes such a file: set "
            "it to uniform, or to correct to give weight 0 where the teacher is wrong"
        )
    skip_absent_tpu()
    load_extensions(config.extensions)
    validate(config)
    use_compilation_cache(config.compilation_cache)
    examples = load_data(config, {"train"}).corpus.splits["train"]
    vocabulary = Vocabulary(find_vocabulary(config))
    # Inputs hold rationales too.
    config.data.max_input_tokens += config.data.max_target_tokens
    mesh = make_mesh(**config.mesh.to_dict())

    def count_tokens(labels: Sequence[str]) -> np.ndarray:
        return np.array([len(ids) + 1 for ids in vocabulary.encode(labels)])

    print(
        f"{len(examples)} train examples; trains two students, {_STEPS.value} steps of {_BATCH_SIZE.value}", flush=True
    )
    with jax.set_mesh(mesh):
        fit = functools.partial(cross_fit, config, vocabulary, mesh)
        found = measure_difficulty(fit, examples, count_tokens, _STEPS.value, _BATCH_SIZE.value)
    path = as_path(absolute(_OUTPUT.value))
    lines = (json.dumps(row) + "\n" for row in weight_rows(examples, found, _SELECT.value))
    with user_error_on_write(path):
        replace_file(path, "".join(lines))
    print(summary(found))
    print(f"written: {path}; use it with --config.data.rationale_weights={FILE}{path}")


if __name__ == "__main__":
    cli.run(main)
