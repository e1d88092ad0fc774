"""Export a student as a Hugging Face directory: python -m cotmi_jax.export --model=W --output=DIR."""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_MODEL = flags.DEFINE_string("model", None, "Workdir of a training run, or a Hugging Face directory or hub name.")
_OUTPUT = flags.DEFINE_string("output", None, "New folder; transformers.AutoModelForSeq2SeqLM loads it.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "If --model is a workdir: best (on valid), latest, or a step.")
_PUSH_TO_HUB = flags.DEFINE_string("push_to_hub", None, "OWNER/NAME: upload the folder as this model to the hub, too.")
_PRIVATE = flags.DEFINE_bool("private", False, "With --push_to_hub: create the model as a private one.")
_LICENSE = flags.DEFINE_string("license", None, "The hub's identifier for the model card, such as apache-2.0.")
flags.mark_flags_as_required(["model", "output"])


def main() -> None:
    """Export from the flags."""
    import pathlib

    import jax

    from cotmi_jax.errors import UserError
    from cotmi_jax.files import absolute, as_path, is_remote, user_error_on_failure
    from cotmi_jax.inference.load import is_workdir, load_trained, parse_checkpoint_choice
    from cotmi_jax.models.config import T5Config
    from cotmi_jax.models.hf import save_hf
    from cotmi_jax.models.hf_hub import check_access, push
    from cotmi_jax.parallel.accelerators import skip_absent_tpu
    from cotmi_jax.report.model_card import model_card

    output, name = as_path(absolute(_OUTPUT.value)), _PUSH_TO_HUB.value
    if name is not None:
        if is_remote(output):
            raise UserError(f"--push_to_hub uploads a local folder, but --output is {output}: give a local one")
        check_access(name)
    skip_absent_tpu()
    trained = load_trained(_MODEL.value, parse_checkpoint_choice(_CHECKPOINT.value))
    student = trained.student.config
    if not isinstance(student, T5Config):
        raise UserError(
            f"--model {_MODEL.value} is a {type(student).__name__}, but only a T5 can be exported: read its parameters "
            "with inference.load.load_workdir"
        )
    workdir = as_path(absolute(_MODEL.value)) if is_workdir(_MODEL.value) else None
    card = model_card(name or output.name, student.model_type, trained, workdir, license=_LICENSE.value)
    params = jax.device_get(trained.params)
    with user_error_on_failure(f"cannot write --output {output}"):
        save_hf(params, student, output, vocabulary_file=trained.vocabulary.path, card=card)
    print(f"written: {output}")
    if name is not None:
        print(f"uploaded: {push(pathlib.Path(output), name, private=_PRIVATE.value)}")


if __name__ == "__main__":
    cli.run(main)
