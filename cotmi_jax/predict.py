"""Predict labels and rationales of input lines: python -m cotmi_jax.predict --model=W --task=both < problems.txt.

A line of standard input is a text, or a JSON object with the text in `input`, whose other fields the answer repeats; a
field that the answer uses itself, such as a gold `label`, is kept in `given`. Each answer is a line of JSON. The labels
that a line's list `choices` holds, or else --candidates, are ranked by their probability.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_MODEL = flags.DEFINE_string("model", None, "Workdir of a training run, or a Hugging Face directory or hub name.")
_TASK = flags.DEFINE_enum(
    "task",
    "both",
    ["predict", "explain", "both", "raw"],
    "Label, rationale or both; raw: the output for the line without a prefix.",
)
_FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", "text", "jsonl"], "Of the input; auto: jsonl if the first line begins a JSON object."
)
_BAD_LINES = flags.DEFINE_enum(
    "bad_lines",
    "error",
    ["error", "skip"],
    "Lines that cannot be used: end there with an error, or report and skip them.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 1, "Answers per input, with --method=sample; several are listed in the field samples.", lower_bound=1
)
_SCORES = flags.DEFINE_bool(
    "scores",
    False,
    "Add sum and mean of the log-probabilities of each output's tokens, in nats, as label_score and so on, and the "
    "confidence of the label.",
)
_CANDIDATES = flags.DEFINE_list(
    "candidates",
    [],
    "Labels to rank by their probability, separated by commas, for lines without a field choices of their own.",
)
_VOCABULARY = flags.DEFINE_string("vocabulary", None, "Vocabulary of a Hugging Face --model that has none.")
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
    import sys

    import jax

    from cotmi_jax.compilation_cache import use_compilation_cache
    from cotmi_jax.config import base
    from cotmi_jax.errors import UserError
    from cotmi_jax.inference.lines import OpenStream, read_lines
    from cotmi_jax.inference.load import load_trained, parse_checkpoint_choice
    from cotmi_jax.inference.predictor import Predictor
    from cotmi_jax.models.decoding import Decoding
    from cotmi_jax.parallel.accelerators import skip_absent_tpu

    if sys.stdin is None:
        raise UserError("standard input is closed: give the lines to answer there")
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
    trained = load_trained(_MODEL.value, parse_checkpoint_choice(_CHECKPOINT.value), vocabulary_path=_VOCABULARY.value)
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
            max_input_tokens=(trained.config or base()).data.max_input_tokens,
            num_samples=_NUM_SAMPLES.value,
            scores=_SCORES.value,
            candidates=[candidate.strip() for candidate in _CANDIDATES.value],
        )
        skip = (lambda reason: print(f"skipped: {reason}", file=sys.stderr)) if _BAD_LINES.value == "skip" else None
        lines = read_lines(OpenStream(sys.stdin.fileno()), _FORMAT.value, skip, predictor.check)
        for answers in predictor.answers(lines, 1 if sys.stdin.isatty() else _BATCH_SIZE.value):
            for line, samples in answers:
                sys.stdout.buffer.write(f"{line.answered(samples)}\n".encode())
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    cli.run(main)
