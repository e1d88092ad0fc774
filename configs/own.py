"""Your own questions, with rationales from your own teacher or written by hand, as JSON Lines: see docs/data.md.

No expected result, since the data are yours. The path names a folder with train.jsonl and optionally valid.jsonl and
test.jsonl, or one file of train rows. Without a valid split, a tenth of train becomes one. Other formats and names of
columns: --config.data.dataset=csv:F (tsv, parquet, hf), --config.data.fields=input=question,label=answer.

    python -m cotmi_jax.train --config=configs/own.py --config.data.dataset=jsonl:rationales.jsonl --workdir=runs/own

An example without a rationale trains the label task only. Equations as labels: --config.data.label_kind=equation.
Without internet access: --config.model.init=DIR, a downloaded checkpoint, or random, with --config.data.vocabulary=F.
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg "smoke" shrinks it."""
    config = base()
    config.data.dataset = "jsonl:rationales.jsonl"
    config.data.empty_rationale = "keep"
    config.model.init = "google/t5-v1_1-base"
    return variant(config, arg)
