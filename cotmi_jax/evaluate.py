"""Score a student on a split: python -m cotmi_jax.evaluate --workdir=W --split=test.

--workdir=W scores a run on its own data. --model=W --dataset=D scores it on another data set, and
--model=HF --dataset=D scores a Hugging Face checkpoint as it is, for a baseline; neither needs a train split.

Several hosts give the same command, with the environment variables that cotmi_jax/parallel/distributed.py names.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training run; nothing else is needed.")
_MODEL = flags.DEFINE_string("model", None, "Instead of --workdir: a workdir, or a Hugging Face directory or hub name.")
_DATASET = flags.DEFINE_string(
    "dataset", None, "Data set to score, as config.data.dataset (docs/data.md); default: that of the run."
)
_OBJECTIVE = flags.DEFINE_string(
    "objective",
    None,
    "Objective of a Hugging Face --model, which determines its tasks and prefixes; default: predict, the label alone.",
)
_VOCABULARY = flags.DEFINE_string("vocabulary", None, "Vocabulary of a Hugging Face --model that has none.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "The split to score.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (on the valid split), latest, or a step.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for the results; default: evaluation/SPLIT in the workdir, evaluation/DATASET/SPLIT with --dataset, and "
    "evaluation/MODEL/DATASET/SPLIT in the current folder for a Hugging Face model.",
)
# By key of config.data. Those beside the first say how --dataset is read.
_DATA = {
    "root": flags.DEFINE_string("data_root", None, "Folder of the data, if it is not that of training."),
    "tfds_dir": flags.DEFINE_string("tfds_dir", None, "As config.data.tfds_dir."),
    "teacher": flags.DEFINE_string("teacher", None, "As config.data.teacher."),
    "bad_rows": flags.DEFINE_string("bad_rows", None, "As config.data.bad_rows."),
    "labels": flags.DEFINE_string("labels", None, "As config.data.labels."),
    "fields": flags.DEFINE_string("fields", None, "As config.data.fields."),
    "label_kind": flags.DEFINE_string("label_kind", None, "As config.data.label_kind."),
}
_EXAMPLES = flags.DEFINE_integer(
    "examples", 0, "Number of examples to print, with the predicted label and rationale.", lower_bound=0
)
_INFORMATION = flags.DEFINE_bool(
    "information",
    None,
    "Also measure held-out mutual information, beside that of the initial weights; default: without --dataset.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Examples a batch; default: config.eval.batch_size.", lower_bound=1
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "Maximal number of generated tokens; default: config.eval.max_decode_tokens.", lower_bound=1
)
_METHOD = flags.DEFINE_enum(
    "method",
    "greedy",
    ["greedy", "sample", "beam"],
    "Decoding of labels and rationales; results of sample and beam get folders of their own, SPLIT-METHOD.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    1,
    "With --method=sample and objective single_task: outputs of an example that vote on its label (self-consistency).",
    lower_bound=1,
)
# By field of Decoding.
_DECODING = {
    "num_beams": flags.DEFINE_integer("num_beams", 4, "Beams of --method=beam."),
    "length_penalty": flags.DEFINE_float("length_penalty", 1.0, "Exponent of the length that divides a beam's score."),
    "temperature": flags.DEFINE_float("temperature", 1.0, "Temperature of --method=sample."),
    "top_k": flags.DEFINE_integer("top_k", 0, "Sample among the k most probable tokens; 0: all."),
    "top_p": flags.DEFINE_float("top_p", 1.0, "Sample among the most probable tokens that together reach p."),
}
_SEED = flags.DEFINE_integer("seed", 0, "Seed of --method=sample.")
_METRICS = flags.DEFINE_string(
    "metrics",
    None,
    "Metrics besides accuracy, separated by commas; default: config.eval.metrics of the run, label_scores, "
    "calibration, with choices ranked_accuracy, and agreement, steps, rationale_overlap if its student gives "
    "rationales. rationale_overlap:NAME embeds with a transformers encoder.",
)
_EXTENSIONS = flags.DEFINE_string(
    "extensions",
    "",
    "Files or modules that register metrics, separated by commas; those of the run are always imported.",
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "", "Folder of compiled programs, as config.compilation_cache of training; none: no cache."
)
flags.register_multi_flags_validator(
    ["workdir", "model"],
    lambda values: (values["workdir"] is None) != (values["model"] is None),
    "--workdir must have a value, or --model, but not both",
)


# Flags that may differ between the processes of a job: places on their hosts. Of extensions the content counts.
_BY_HOST = ("data_root", "tfds_dir", "vocabulary", "compilation_cache", "extensions")


def _check_processes() -> None:
    """Raises UserError where the processes of a job were given other flags, code or packages."""
    import jax

    from cotmi_jax.parallel.agreement import check_agreement
    from cotmi_jax.workdir.provenance import code_facts, extension_contents

    if jax.process_count() == 1:
        return
    module = flags.FLAGS.find_module_defining_flag("workdir")  # this one, under the name that it was started by
    given = {f"--{flag.name}": flag.value for flag in flags.FLAGS.get_key_flags_for_module(module)}
    facts = {name: value for name, value in given.items() if name[2:] not in _BY_HOST}
    facts["--extensions"] = extension_contents(_EXTENSIONS.value)
    check_agreement("give all the same command, code and packages", facts | code_facts())


def main() -> None:
    """Evaluate from the flags."""
    from cotmi_jax.compilation_cache import use_compilation_cache
    from cotmi_jax.evaluation.job import score
    from cotmi_jax.inference.voting import Sampling
    from cotmi_jax.models.decoding import Decoding
    from cotmi_jax.parallel.accelerators import skip_absent_tpu
    from cotmi_jax.parallel.distributed import is_main_process, process_group
    from cotmi_jax.report.evaluation_plots import draw_evaluation
    from cotmi_jax.report.plots import draw_information
    from cotmi_jax.report.tensorboard import log_evaluation
    from cotmi_jax.report.terminal import format_examples, format_scores
    from cotmi_jax.training.fit import cross_fit

    skip_absent_tpu()
    with process_group(preemption=False, show_traceback=flags.FLAGS.traceback):
        _check_processes()
        use_compilation_cache(_COMPILATION_CACHE.value)
        result = score(
            _WORKDIR.value or _MODEL.value,
            _SPLIT.value,
            checkpoint=_CHECKPOINT.value,
            dataset=_DATASET.value,
            objective=_OBJECTIVE.value,
            vocabulary=_VOCABULARY.value,
            data_settings={key: flag.value for key, flag in _DATA.items() if flag.value is not None},
            output=_OUTPUT.value,
            information=_INFORMATION.value,
            metrics=_METRICS.value,
            extensions=_EXTENSIONS.value,
            batch_size=_BATCH_SIZE.value,
            max_tokens=_MAX_TOKENS.value,
            decoding=Decoding(_METHOD.value, **{name: flag.value for name, flag in _DECODING.items()}),
            sampling=Sampling(_SEED.value, _NUM_SAMPLES.value),
            cross_fit=cross_fit,
        )
        if not is_main_process():
            return
        print(format_scores(result.metrics, result.information))
        if _EXAMPLES.value:
            print("\n" + format_examples(result.predictions[: _EXAMPLES.value]))
        drawn = draw_evaluation(result.metrics, result.predictions, result.output)
        if result.workdir is not None and draw_information(result.workdir, result.output / "information.png"):
            drawn.append("information.png")
        pictures = [name for name in drawn if name.endswith(".png")]
        written = ["metrics.json", "predictions.jsonl"]
        written += [name.replace("png", "{png,svg}") if f"{name[:-3]}svg" in drawn else name for name in pictures]
        if log_evaluation(result, [result.output / name for name in pictures]):
            written.append("tensorboard/")
        print(f"\nwritten: {result.output}/{', '.join(written)}")


if __name__ == "__main__":
    cli.run(main)
