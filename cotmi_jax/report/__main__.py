"""Write one HTML page of a study or of evaluated runs: python -m cotmi_jax.report STUDY --output=report.html.

Several workdirs in place of a study: python -m cotmi_jax.report WORKDIR WORKDIR …, which were evaluated on one split.
The page needs no network and no other file. Every chart is also an SVG file, in the folder OUTPUT_plots. With
--output=FILE.md the tables of results are written as Markdown, into the marked part of a document if there is one.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

from absl import flags

_OUTPUT = flags.DEFINE_string("output", "report.html", "The file of the page, or a document that ends in .md.")
_OPEN = flags.DEFINE_bool("open", False, "Open the page in the browser.")
_BASELINE = flags.DEFINE_string(
    "baseline", None, "A method by its name on the page, or one of its workdirs; default: the first of each data set."
)
_SPLIT = flags.DEFINE_enum(
    "split", None, ["train", "valid", "test"], "The split whose evaluations are shown; default: the study's, or test."
)
_MARGIN = flags.DEFINE_float("margin", 1.0, "Difference in percentage points below which methods are equivalent.")
_METRIC = flags.DEFINE_string(
    "metric", None, "Measures of a document (.md), separated by commas, as those of compare; the page has all."
)
_PART = flags.DEFINE_string(
    "part",
    None,
    "The part of a document (.md) to write, between <!-- PART: begin --> and <!-- PART: end -->; default: report.",
)
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Examples of each data set on the page; 0: all.", lower_bound=0)


def main(sources: list[str]) -> None:
    """Write the page of these folders."""
    import shlex
    import sys
    from pathlib import Path

    from cotmi_jax.errors import UserError
    from cotmi_jax.files import user_error_on_failure
    from cotmi_jax.report.page import markdown
    from cotmi_jax.report.page.gather import gather
    from cotmi_jax.report.page.render import make_page, write_page

    output = Path(_OUTPUT.value).expanduser().absolute()
    if output.suffix not in (".html", ".htm", ".md"):
        raise UserError(f"--output={_OUTPUT.value}: give the name of a file that ends in .html or .md")
    for flag in (_METRIC, _PART):
        if flag.value is not None and output.suffix != ".md":
            raise UserError(f"--{flag.name}={flag.value} is of documents (--output=FILE.md): the page has everything")
    found = gather(sources, _SPLIT.value, _BASELINE.value, _MARGIN.value / 100)
    writing = f"cannot write --output={_OUTPUT.value}", "give a file in a folder that can be written"
    if output.suffix == ".md":
        command = shlex.join(["python", "-m", "cotmi_jax.report", *sys.argv[1:]])
        text = markdown.markdown(found, _METRIC.value or markdown.MEASURES, command)
        with user_error_on_failure(*writing):
            markdown.write_part(output, text, _PART.value or "report")
        print(output)
        return
    page = make_page(found, examples=_EXAMPLES.value)
    with user_error_on_failure(*writing):
        charts = write_page(page, output)
    plots = f"; {len(charts)} charts in {output.stem}_plots" if charts else ""
    print(f"{output} ({output.stat().st_size / 1000:,.0f} kB{plots})")
    if _OPEN.value:
        import webbrowser

        if not webbrowser.open(output.as_uri()):
            print(f"no browser found: open {output.as_uri()}")


if __name__ == "__main__":
    cli.run(main, positional=True)
