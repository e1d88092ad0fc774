"""Compare evaluated runs of several methods: python -m cotmi_jax.compare WORKDIR WORKDIR … --baseline=WORKDIR.

Runs whose configs differ in nothing but the seed are one method; two or more seeds of each give intervals.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_BASELINE = flags.DEFINE_string(
    "baseline", None, "A method by its name in the table, or one of its workdirs; default: that of the first workdir."
)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "The split whose evaluations are compared.")
_METRIC = flags.DEFINE_string(
    "metric", "accuracy", "Measures, separated by commas, or all: docs/evaluation.md lists them. p is adjusted for all."
)
_MARGIN = flags.DEFINE_float(
    "margin",
    None,
    "Difference below which methods are equivalent, in percentage points or the unit of the measure; default: that of "
    "each measure, 1 point of accuracy.",
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print a table of Markdown.")
_LATEX = flags.DEFINE_bool("latex", False, "Print a LaTeX table; it needs the package booktabs.")
flags.register_multi_flags_validator(
    ["json", "markdown", "latex"],
    lambda values: sum(values.values()) <= 1,
    "--json, --markdown and --latex exclude each other",
)


def main(workdirs: list[str]) -> None:
    """Compare the runs in these workdirs."""
    import json

    from cotmi_jax.errors import UserError
    from cotmi_jax.evaluation.measures import parse_measures
    from cotmi_jax.evaluation.methods import group, read_evaluated
    from cotmi_jax.evaluation.verdicts import compare_all, to_json
    from cotmi_jax.report import comparison as shown

    if len(workdirs) < 2:
        raise UserError(f"{len(workdirs)} workdirs: give those of two or more evaluated runs")
    measures = parse_measures(_METRIC.value)
    if _MARGIN.value is not None and len({measure.unit for measure in measures}) > 1:
        raise UserError("--margin has one unit, the measures have several: leave it out, or compare one at a time")
    methods = group([read_evaluated(workdir, _SPLIT.value) for workdir in workdirs], _SPLIT.value)
    baseline = methods.find(_BASELINE.value or workdirs[0])
    margin = None if _MARGIN.value is None else _MARGIN.value / measures[0].factor
    found = compare_all(methods, baseline, measures, margin)
    if _JSON.value:
        print(json.dumps(to_json(found), indent=1))
    else:
        print((shown.markdown if _MARKDOWN.value else shown.latex if _LATEX.value else shown.text)(found))


if __name__ == "__main__":
    cli.run(main, positional=True)
