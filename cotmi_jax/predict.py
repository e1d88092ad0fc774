"""Predict labels and rationales of input lines: python -m cotmi_jax.predict --model=W --task=both < problems.txt."""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_MODEL = flags.DEFINE_string("model", None, "Workdir of a training run, or a Hugging Face directory or hub name.")
_TASK = flags.DEFINE_enum(
    "task",
    "both",
    ["predict", "explain", "both", "raw"],
    "Label, rationale or both; raw: the output for the line without a prefix.",
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "If --model is a workdir: best (on valid), latest, or a step.")
_METHOD = flags.DEFINE_enum("method", "greedy", ["greedy", "sample", "beam"], "Decoding method.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 64, "Maximal number of generated tokens.")
_BEAMS = flags.DEFINE_integer("num_beams", 4, "Beams of --method=beam.")
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 1.0, "Exponent of the length that divides a beam's score.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Temperature of --method=sample.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k most probable tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample among the most probable tokens that together reach p.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of --method=sample.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Lines per batch (always 1 if standard input is a terminal).", lower_bound=1
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "", "Folder of compiled programs, as config.compilation_cache of training; none: no cache."
)
flags.mark_flag_as_required("model")


def main() -> None:
    """Predict from the flags."""
    import json
    import sys

    import jax

    from cotmi_jax.compilation_cache import use_compilation_cache
    from cotmi_jax.inference.load import load_trained, parse_checkpoint_choice
    from cotmi_jax.inference.predictor import Predictor
    from cotmi_jax.models.decoding import Decoding
    from cotmi_jax.parallel.accelerators import skip_absent_tpu

    skip_absent_tpu()
    use_compilation_cache(_COMPILATION_CACHE.value)
    decoding = Decoding(
        _METHOD.value,
        max_tokens=_MAX_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        num_beams=_BEAMS.value,
        length_penalty=_LENGTH_PENALTY.value,
    )
    trained = load_trained(_MODEL.value, parse_checkpoint_choice(_CHECKPOINT.value))
    with jax.set_mesh(trained.mesh):
        predictor = Predictor(
            trained.student,
            trained.params,
            trained.vocabulary,
            trained.objective,
            trained.mesh,
            task=_TASK.value,
            decoding=decoding,
            seed=_SEED.value,
        )
        for answers in predictor.answers(sys.stdin, 1 if sys.stdin.isatty() else _BATCH_SIZE.value):
            for answer in answers:
                print(json.dumps(answer, ensure_ascii=False))
            sys.stdout.flush()


if __name__ == "__main__":
    cli.run(main)
