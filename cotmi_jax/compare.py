"""Compare evaluated runs of several methods: python -m cotmi_jax.compare WORKDIR WORKDIR … --baseline=WORKDIR.

Runs whose configs differ in nothing but the seed are one method; two or more seeds of each give intervals.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_BASELINE = flags.DEFINE_string(
    "baseline", None, "A method by its name in the table, or one of its workdirs; default: that of the first workdir."
)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "The split whose evaluations are compared.")
_MARGIN = flags.DEFINE_float("margin", 1.0, "Difference in percentage points below which methods are equivalent.")
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
    from cotmi_jax.evaluation.methods import group, read_evaluated
    from cotmi_jax.evaluation.verdicts import compare
    from cotmi_jax.report import comparison as shown

    if len(workdirs) < 2:
        raise UserError(f"{len(workdirs)} workdirs: give those of two or more evaluated runs")
    methods = group([read_evaluated(workdir, _SPLIT.value) for workdir in workdirs], _SPLIT.value)
    baseline = methods.find(_BASELINE.value or workdirs[0])
    found = compare(methods, baseline, _MARGIN.value / 100)
    if _JSON.value:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print((shown.markdown if _MARKDOWN.value else shown.latex if _LATEX.value else shown.text)(found))


if __name__ == "__main__":
    cli.run(main, positional=True)
