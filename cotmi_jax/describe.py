"""Show a data set before training: python -m cotmi_jax.describe --dataset=cqa --data_root=DIR.

With --config=RECIPE it is the data set of a recipe, read and cut as a run of that recipe would; flags change its keys.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

from cotmi_jax.data.origins import RELEASE, T5_VOCABULARY

_CONFIG = cli.define_config()
# By key of config.data. None: that of --config, else the default of a recipe.
_DATA = {
    "dataset": flags.DEFINE_string(
        "dataset",
        None,
        "arithmetic, deduction, svamp, cqa, esnli, anli1, jsonl:PATH, csv:PATH, tsv:PATH, parquet:PATH, "
        "hf:NAME_OR_PATH or tfds:NAME, or several: svamp=3,arithmetic=1; default: that of --config.",
    ),
    "root": flags.DEFINE_string(
        "data_root", None, f"Folder of the release ({RELEASE}, unpacked); default: $COTMI_DATA_ROOT."
    ),
    "teacher": flags.DEFINE_string("teacher", None, "palm (default) or gpt-neox."),
    "align": flags.DEFINE_string(
        "align",
        None,
        "If rows and completions differ in number: strict (default): error; prefix: use the rows that have both.",
    ),
    "augment_asdiv": flags.DEFINE_bool("augment_asdiv", None, "Add ASDiv to SVAMP's train split."),
    "bad_rows": flags.DEFINE_string("bad_rows", None, "error (default), or skip: leave out rows that cannot be used."),
    "rationale_answer": flags.DEFINE_string(
        "rationale_answer",
        None,
        "keep or append: count the rationales that then state their label as the answer; default: cut.",
    ),
    "fields": flags.DEFINE_string(
        "fields",
        None,
        "Columns of your own rows that hold the fields: input=question,label=answer; default: their names.",
    ),
    "labels": flags.DEFINE_string(
        "labels", None, "Labels that your own rows may have, separated by commas; default: any."
    ),
    "label_kind": flags.DEFINE_string(
        "label_kind", None, "How labels of your own rows are compared: text (default) or equation."
    ),
    "tfds_dir": flags.DEFINE_string(
        "tfds_dir",
        None,
        "Folder of data sets prepared by TensorFlow Datasets; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
    ),
    "vocabulary": flags.DEFINE_string(
        "vocabulary",
        None,
        "SentencePiece file, tokenizer.json, or bytes; default: the data set's, else {root}/t5/spiece.model "
        f"({T5_VOCABULARY}).",
    ),
}
_EXTENSIONS = flags.DEFINE_string(
    "extensions", None, "Files or modules that register data sets, as config.extensions, separated by commas."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
flags.register_multi_flags_validator(
    ["dataset", "config"],
    lambda values: values["dataset"] is not None or values["config"] is not None,
    "--dataset must have a value, or --config",
)


def main() -> None:
    """Print the statistics of the data set that the flags name."""
    import json

    from cotmi_jax.config import base, validate
    from cotmi_jax.data.checks import check_splits, format_checks
    from cotmi_jax.data.rationale_answer import format_span_counts
    from cotmi_jax.data.run_data import count_answers, load_data
    from cotmi_jax.data.statistics import describe, format_description
    from cotmi_jax.data.tasks import PREDICT, PREFIX
    from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
    from cotmi_jax.experiment import find_vocabulary
    from cotmi_jax.extensions import load_extensions

    config = _CONFIG.value or base()
    config.data.update({key: flag.value for key, flag in _DATA.items() if flag.value is not None})
    config.data.empty_rationale = "keep"  # their number is shown
    config.extensions = config.extensions if _EXTENSIONS.value is None else _EXTENSIONS.value
    load_extensions(config.extensions)
    validate(config)
    loaded = load_data(config)
    vocabulary = Vocabulary(find_vocabulary(config))
    description = describe(
        loaded,
        lambda texts: [[*ids, EOS_ID] for ids in vocabulary.encode(texts)],
        input_prefix=PREFIX[PREDICT],
    )
    limits = {"input": config.data.max_input_tokens}
    limits |= dict.fromkeys(("label", "rationale"), config.data.max_target_tokens)
    checks = check_splits(loaded.corpus.splits, vocabulary, limits, PREFIX[PREDICT])
    answers = count_answers(config, vocabulary, loaded)
    if _JSON.value:
        counts = {split: count._asdict() for split, count in answers.items()}
        print(json.dumps({**description, "checks": checks, "answers": counts}, indent=1))
    else:
        print(format_description(description), format_checks(checks), *format_span_counts(answers), sep="\n\n")


if __name__ == "__main__":
    cli.run(main)
