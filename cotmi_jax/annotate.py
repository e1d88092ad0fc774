"""Request rationales from a teacher: python -m cotmi_jax.annotate --questions=Q.jsonl --model=M --output=R.jsonl."""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

from cotmi_jax.data.sources.released_sets import RELEASED
from cotmi_jax.teacher.request_flags import RequestFlags

_QUESTIONS = flags.DEFINE_string("questions", None, "JSON Lines with input and, if known, label (gold) and id.")
_DATASET = flags.DEFINE_enum("dataset", None, sorted(RELEASED), "A released set, instead of --questions.")
_SPLIT = flags.DEFINE_enum("split", "train", ["train", "valid", "test"], "Split of --dataset.")
_DATA_ROOT = flags.DEFINE_string("data_root", None, "Folder of --dataset; default: $COTMI_DATA_ROOT.")
_LIMIT = flags.DEFINE_integer("limit", None, "Number of questions to use, from the first; default: all.", lower_bound=1)
_PROMPT = flags.DEFINE_string("prompt", None, "A file or a built-in prompt; default: that of --dataset, else generic.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON Lines for training; the report is OUTPUT with .report.json.")
_JOURNAL = flags.DEFINE_string("journal", None, "File of raw responses; default: OUTPUT with .journal.jsonl.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the first prompt and an estimate; send nothing.")
_REQUESTS = RequestFlags(role="teacher", temperature=0.7, max_tokens=256)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Completions per question.", lower_bound=1)
_RATIONALE = flags.DEFINE_enum(
    "rationale", "completion", ["completion", "thinking"], "Text that is the rationale; thinking: of reasoning models."
)
_STRUCTURED = flags.DEFINE_bool("structured", False, "Request JSON by a schema; needs a prompt with the rule json.")
_MIN_READABLE = flags.DEFINE_float(
    "min_readable",
    0.5,
    "Share of the samples whose answer has to be readable; 0 accepts any answers.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_RATIONALIZE = flags.DEFINE_bool("rationalize", False, "Ask again, stating the gold label, if no sample gives it.")
_INCONSISTENT = flags.DEFINE_enum(
    "inconsistent", "drop", ["drop", "keep", "downweight"], "Treatment of rationales whose answer is not the label."
)
_INCONSISTENT_WEIGHT = flags.DEFINE_float(
    "inconsistent_weight", 0.25, "Weight of --inconsistent=downweight.", lower_bound=0.0
)
_RATIONALIZED_WEIGHT = flags.DEFINE_float(
    "rationalized_weight", 1.0, "Weight of rationales of --rationalize.", lower_bound=0.0
)
_COUNTERFACTUALS = flags.DEFINE_bool(
    "counterfactuals",
    False,
    "Also write the samples with another answer than the label, one for each answer, as counterfactual pairs "
    "(docs/data.md); with several --samples.",
)
flags.mark_flag_as_required("output")
flags.mark_flags_as_mutual_exclusive(["questions", "dataset"], required=True)


def main() -> int:
    """Annotate from the flags; returns the exit code."""
    from cotmi_jax.teacher.annotate import Annotation, Policy
    from cotmi_jax.teacher.prompt import load_prompt
    from cotmi_jax.teacher.questions import load_questions
    from cotmi_jax.teacher.session import local_file

    prompt = load_prompt(_PROMPT.value or _DATASET.value or "generic").with_source(_RATIONALE.value)
    schema = prompt.schema() if _STRUCTURED.value else None
    source = (_QUESTIONS.value, _DATASET.value, _SPLIT.value, _DATA_ROOT.value)
    output = local_file(_OUTPUT.value, "output")
    annotation = Annotation(
        load_questions(*source, prompt.rule.kind)[: _LIMIT.value],
        prompt,
        _REQUESTS.service(schema),
        _SAMPLES.value,
        _RATIONALIZE.value,
        Policy(_INCONSISTENT.value, _INCONSISTENT_WEIGHT.value, _RATIONALIZED_WEIGHT.value),
        output,
        local_file(_JOURNAL.value, "journal") if _JOURNAL.value else output.with_suffix(".journal.jsonl"),
        _MIN_READABLE.value,
        _COUNTERFACTUALS.value,
    )
    if _DRY_RUN.value:
        annotation.dry_run()
        return 0
    return annotation.run()


if __name__ == "__main__":
    cli.run(main)
