"""Score a trained student on a split: python -m cotmi_jax.evaluate --workdir=W --split=test.

Several hosts give the same command, with the environment variables that cotmi_jax/parallel/distributed.py names.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run; nothing else is needed.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "The split to score.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (on the valid split), latest, or a step.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results; default: {workdir}/evaluation/{split}.")
_DATA_ROOT = flags.DEFINE_string("data_root", None, "Folder of the data, if it has moved since training.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", 0, "Number of examples to print, with the predicted label and rationale.", lower_bound=0
)
_INFORMATION = flags.DEFINE_bool(
    "information", True, "Also measure held-out mutual information, with critics fitted to train examples."
)
_METRICS = flags.DEFINE_string(
    "metrics",
    None,
    "Metrics besides accuracy, separated by commas; default: config.eval.metrics of the run.",
)
_EXTENSIONS = flags.DEFINE_string(
    "extensions",
    "",
    "Files or modules that register metrics, separated by commas; those of the run are always imported.",
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "", "Folder of compiled programs, as config.compilation_cache of training; none: no cache."
)
flags.mark_flag_as_required("workdir")


def main() -> None:
    """Evaluate from the flags."""
    from cotmi_jax.compilation_cache import use_compilation_cache
    from cotmi_jax.evaluation.job import score
    from cotmi_jax.parallel.distributed import is_main_process, process_group
    from cotmi_jax.report.plots import draw_information
    from cotmi_jax.report.terminal import format_examples, format_scores

    with process_group(preemption=False, show_traceback=flags.FLAGS.traceback):
        use_compilation_cache(_COMPILATION_CACHE.value)
        result = score(
            _WORKDIR.value,
            _SPLIT.value,
            checkpoint=_CHECKPOINT.value,
            output=_OUTPUT.value,
            data_root=_DATA_ROOT.value,
            information=_INFORMATION.value,
            metrics=_METRICS.value,
            extensions=_EXTENSIONS.value,
        )
        if not is_main_process():
            return
        print(format_scores(result.metrics, result.information))
        if _EXAMPLES.value:
            print("\n" + format_examples(result.predictions[: _EXAMPLES.value]))
        drawn = draw_information(result.workdir, result.output / "information.png")
        picture = ", information.png" if drawn else ""
        print(f"\nwritten: {result.output}/metrics.json, predictions.jsonl{picture}")


if __name__ == "__main__":
    cli.run(main)
