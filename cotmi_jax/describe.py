"""Show a data set before training: python -m cotmi_jax.describe --dataset=cqa --data_root=DIR."""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

from cotmi_jax.data.origins import RELEASE, T5_VOCABULARY

_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "arithmetic, svamp, cqa, esnli, anli1, jsonl:PATH, csv:PATH, tsv:PATH, parquet:PATH, hf:NAME_OR_PATH or "
    "tfds:NAME, or several: svamp=3,arithmetic=1.",
)
_DATA_ROOT = flags.DEFINE_string(
    "data_root", None, f"Folder of the release ({RELEASE}, unpacked); default: $COTMI_DATA_ROOT."
)
_TEACHER = flags.DEFINE_string("teacher", "palm", "palm or gpt-neox.")
_ALIGN = flags.DEFINE_string(
    "align", "strict", "If rows and completions differ in number: strict: error; prefix: use the rows that have both."
)
_ASDIV = flags.DEFINE_bool("augment_asdiv", False, "Add ASDiv to SVAMP's train split.")
_BAD_ROWS = flags.DEFINE_string("bad_rows", "error", "error, or skip: leave out rows that cannot be used.")
_FIELDS = flags.DEFINE_string(
    "fields", "", "Columns of your own rows that hold the fields: input=question,label=answer; default: their names."
)
_LABELS = flags.DEFINE_string("labels", "", "Labels that your own rows may have, separated by commas; default: any.")
_LABEL_KIND = flags.DEFINE_string("label_kind", "text", "How labels of your own rows are compared: text or equation.")
_TFDS_DIR = flags.DEFINE_string(
    "tfds_dir",
    "",
    "Folder of data sets prepared by TensorFlow Datasets; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
)
_VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "SentencePiece file, tokenizer.json, or bytes; default: the data set's, else {root}/t5/spiece.model "
    f"({T5_VOCABULARY}).",
)
_EXTENSIONS = flags.DEFINE_string(
    "extensions", "", "Files or modules that register data sets, as config.extensions, separated by commas."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
flags.mark_flag_as_required("dataset")


def main() -> None:
    """Print the statistics of the data set that the flags name."""
    import json

    from cotmi_jax.config import base, load_extensions
    from cotmi_jax.data.checks import check_splits, format_checks
    from cotmi_jax.data.run_data import load_data
    from cotmi_jax.data.statistics import describe, format_description
    from cotmi_jax.data.tasks import PREDICT, PREFIX
    from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
    from cotmi_jax.experiment import find_vocabulary

    load_extensions(_EXTENSIONS.value)
    config = base()
    config.data.dataset, config.data.root = _DATASET.value, _DATA_ROOT.value or ""
    config.data.teacher, config.data.align, config.data.augment_asdiv = _TEACHER.value, _ALIGN.value, _ASDIV.value
    config.data.bad_rows, config.data.tfds_dir = _BAD_ROWS.value, _TFDS_DIR.value
    config.data.labels, config.data.label_kind, config.data.fields = _LABELS.value, _LABEL_KIND.value, _FIELDS.value
    config.data.vocabulary, config.data.empty_rationale = _VOCABULARY.value or "", "keep"
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
    if _JSON.value:
        print(json.dumps({**description, "checks": checks}, indent=1))
    else:
        print(format_description(description), format_checks(checks), sep="\n\n")


if __name__ == "__main__":
    cli.run(main)
