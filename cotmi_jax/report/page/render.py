"""The page as one HTML file that requests nothing, and its charts as SVG files."""

import base64
import dataclasses
import datetime
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cotmi_jax.files import Path, make_folder, replace_file
from cotmi_jax.report.calibration_rows import KIND_NAMES
from cotmi_jax.report.page import confidences, curves, tables, words
from cotmi_jax.report.page.chart import PALETTE, Chart, palette_css
from cotmi_jax.report.page.examples import example_block
from cotmi_jax.report.page.gather import Gathered, ResultSet
from cotmi_jax.workdir.provenance import revision

_MAX_ANSWERS = 8  # sentences at the top of a page; more are folded


class Page(NamedTuple):
    """The HTML, and the charts that are files as well."""

    html: str
    charts: tuple[Chart, ...]


@dataclasses.dataclass(frozen=True)
class SetView:
    """What the template shows of a data set. A section without content has its reason in its place."""

    found: ResultSet
    answers: list[words.Answer]
    table: tables.ResultTable
    caption: str
    learning: list[Chart]
    information: list[Chart]
    kind: str
    no_confidence: str
    reliability: list[Chart]
    risk: Chart | None
    calibration: list[tuple[str, ...]]
    confidence_measures: tables.MeasureTable
    measures: tables.MeasureTable
    costs: list[tables.CostRow]

    def charts(self) -> list[Chart]:
        """All of the set."""
        return [*self.learning, *self.information, *self.reliability, *([self.risk] if self.risk else [])]


def make_page(found: Gathered, *, examples: int = 0) -> Page:
    """The page of what was gathered. examples: of each data set, at most; 0: all."""
    views = [_view(each, found.margin) for each in found.sets]
    efficiency = curves.data_efficiency(found.sets)
    script, style = _asset("page.js"), _asset("page.css") + palette_css(":root")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(_asset("page.html")).render(
        found=found,
        views=views,
        efficiency=efficiency,
        seconds=tables.duration(found.seconds) if found.seconds else "",
        question=words.question(found),
        summary=words.summary(found),
        matrix=words.matrix(found) if len(views) > 1 else [],
        kinds=KIND_NAMES,
        colors=len(PALETTE),
        commands=_commands(found),
        many_answers=sum(len(view.answers) for view in views) > _MAX_ANSWERS,
        block=example_block(found, examples),
        limit=examples,
        policy=_policy(script, style),
        script=Markup(script),
        style=Markup(style),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        revision=(revision() or "unknown")[:12],
    )
    return Page(html, (*(chart for view in views for chart in view.charts()), *efficiency))


def write_page(page: Page, output: Path) -> list[str]:
    """Write the page, and its charts into a folder beside it; returns the names of the SVG files. Raises OSError."""
    # Half of a surrogate pair, which JSON can state, has no UTF-8: the browser shows its reference as �.
    replace_file(output, page.html.encode("utf-8", "xmlcharrefreplace"))
    if not page.charts:
        return []
    folder = output.with_name(f"{output.stem}_plots")
    make_folder(folder)
    for chart in page.charts:
        replace_file(folder / f"{chart.file}.svg", chart.standalone().encode("utf-8", "xmlcharrefreplace"))
    return [f"{chart.file}.svg" for chart in page.charts]


def _view(each: ResultSet, margin: float) -> SetView:
    logs = curves.read_logs(each)
    kind, no_confidence = confidences.kind_of(each)
    confidence_measures, measures = tables.measure_tables(each)
    return SetView(
        found=each,
        answers=words.answers(each, margin),
        table=tables.result_table(each),
        caption=words.counted(each),
        learning=curves.learning_curves(each, logs),
        information=curves.information_curves(each, logs),
        kind=kind,
        no_confidence=no_confidence,
        reliability=confidences.reliability(each, kind) if kind else [],
        risk=confidences.risk_coverage_chart(each, kind) if kind else None,
        calibration=confidences.calibration_table(each, kind) if kind else [],
        confidence_measures=confidence_measures,
        measures=measures,
        costs=tables.costs(each, logs),
    )


def _commands(found: Gathered) -> Mapping[str, str]:
    """What gives the content of a section that is empty, by section."""
    workdir = next((str(run.workdir) for each in found.sets for arm in each.arms for run in arm.runs), "WORKDIR")
    evaluate = f"python -m cotmi_jax.evaluate --workdir={workdir} --split={found.split}"
    train = "python -m cotmi_jax.train --config=RECIPE --workdir=WORKDIR"
    return {
        "evaluate": evaluate,
        "learning": f"{train} --config.eval.every=250",
        "information": f"{train} --config.mi.monitor.every=1000",
        "efficiency": f"{train} --config.data.subsample=0.1",
        "agreement": f"{evaluate} --metrics=agreement,steps,rationale_overlap",
        "faithfulness": f"{evaluate} --metrics=agreement,covariation,simulatability",
    }


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8")


def _policy(script: str, style: str) -> str:
    """The content security policy: this script and this style, and nothing else from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
