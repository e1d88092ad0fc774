"""Judge a student's rationales by a language model: python -m cotmi_jax.judge --workdir=W --model=M --base_url=URL.

Scores of 1 to 5, or with --against=W2 the better of two students' rationales, each pair in both orders. The workdirs
were evaluated (python -m cotmi_jax.evaluate); docs/judging.md explains the results.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

from cotmi_jax.teacher.request_flags import RequestFlags

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of an evaluated run, whose rationales are judged.")
_AGAINST = flags.DEFINE_string("against", None, "Another one, evaluated on the same data: which rationale is better?")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "The split whose evaluation is judged.")
_LIMIT = flags.DEFINE_integer(
    "limit", None, "Number of examples to judge, drawn by --seed; default: all.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draw; the same examples are drawn for every run on a split.")
_RUBRIC = flags.DEFINE_string("rubric", "default", "A rubric file (docs/judging.md), or a built-in one.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Answers to each request, for their agreement.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file of the results; default: evaluation/SPLIT/judge-MODEL-….json in the workdir."
)
_JOURNAL = flags.DEFINE_string("journal", None, "File of raw responses; default: OUTPUT with .journal.jsonl.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the first request and an estimate; send nothing.")
_MIN_READABLE = flags.DEFINE_float(
    "min_readable",
    0.5,
    "Share of the answers that have to be readable; 0 accepts any.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_REQUESTS = RequestFlags(role="judge", temperature=0.0, max_tokens=512)
flags.mark_flag_as_required("workdir")


def main() -> int:
    """Judge from the flags; returns the exit code."""
    from cotmi_jax.evaluation.methods import read_evaluated
    from cotmi_jax.teacher.judge_items import read_items
    from cotmi_jax.teacher.judging import Judging, default_output
    from cotmi_jax.teacher.rubric import load_rubric
    from cotmi_jax.teacher.session import local_file

    rubric = load_rubric(_RUBRIC.value, "absolute" if _AGAINST.value is None else "pairwise")
    service = _REQUESTS.service()
    run = read_evaluated(_WORKDIR.value, _SPLIT.value)
    other = None if _AGAINST.value is None else read_evaluated(_AGAINST.value, _SPLIT.value)
    items = read_items(run, other, _SPLIT.value, _LIMIT.value, _SEED.value)
    header = service.header(rubric.digest)
    output = local_file(_OUTPUT.value, "output") if _OUTPUT.value else default_output(run, other, _SPLIT.value, header)
    journal = local_file(_JOURNAL.value, "journal") if _JOURNAL.value else output.with_suffix(".journal.jsonl")
    fixed = (rubric, service, _REPEATS.value, output, journal, _MIN_READABLE.value)
    judging = Judging(run, other, _SPLIT.value, items, _SEED.value, *fixed)
    if _DRY_RUN.value:
        judging.dry_run()
        return 0
    return judging.judge()


if __name__ == "__main__":
    cli.run(main)
