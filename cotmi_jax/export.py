"""Export a student as a Hugging Face directory: python -m cotmi_jax.export --model=W --output=DIR."""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_MODEL = flags.DEFINE_string("model", None, "Workdir of a training run, or a Hugging Face directory or hub name.")
_OUTPUT = flags.DEFINE_string("output", None, "New folder; transformers.T5ForConditionalGeneration loads it.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "If --model is a workdir: best (on valid), latest, or a step.")
flags.mark_flags_as_required(["model", "output"])


def main() -> None:
    """Export from the flags."""
    import jax

    from cotmi_jax.errors import UserError
    from cotmi_jax.files import absolute, as_path, user_error_on_failure
    from cotmi_jax.inference.load import load_trained, parse_checkpoint_choice
    from cotmi_jax.models.config import T5Config
    from cotmi_jax.models.hf import save_hf

    trained = load_trained(_MODEL.value, parse_checkpoint_choice(_CHECKPOINT.value))
    if not isinstance(trained.student.config, T5Config):
        raise UserError(
            f"--model {_MODEL.value} is a {type(trained.student.config).__name__}, but only a T5 can be exported: read "
            "its parameters with inference.load.load_workdir"
        )
    output = as_path(absolute(_OUTPUT.value))
    with user_error_on_failure(f"cannot write --output {output}"):
        save_hf(jax.device_get(trained.params), trained.student.config, output, vocabulary_file=trained.vocabulary.path)
    print(f"written: {output}")


if __name__ == "__main__":
    cli.run(main)
