"""The page of a study or of evaluated runs: its numbers, its words, what it says of what is missing, and its safety."""

import base64
import functools
import gzip
import hashlib
import json
import os
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import runs
from reported import HOSTILE, Page, block, write_arms, write_run, write_study

from cotmi_jax.errors import UserError
from cotmi_jax.report.page import examples
from cotmi_jax.report.page.chart import Chart, Curve, ticks
from cotmi_jax.report.page.gather import gather
from cotmi_jax.report.page.render import make_page, write_page

MINUS = "−"


def report(folder: Path, *sources: str, baseline: str | None = None) -> Page:
    """The page that is written of these folders, with the default options."""
    write_page(make_page(gather(sources, None, baseline, 0.01)), folder / "report.html")
    return Page((folder / "report.html").read_text("utf-8"))


def compared(*arguments: str) -> Any:
    return json.loads(runs.command("compare", *arguments, "--json").out)


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", MINUS)


def set_browser(path: str) -> None:
    """What the webbrowser of the standard library starts in this process."""
    os.environ["BROWSER"] = path


def test_the_numbers_are_those_of_compare(tmp_path: Path) -> None:
    workdirs = write_arms(tmp_path, data__dataset="esnli")
    options = (*workdirs, f"--baseline={workdirs[0]}", "--margin=2")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    opens = functools.partial(set_browser, str(browser))
    result = runs.command("report", *options, f"--output={tmp_path}/report.html", "--open", before=opens)
    assert (result.code, result.err) == (0, ""), result
    assert (tmp_path / "opened").read_text() == f"file://{tmp_path}/report.html\n"
    assert re.fullmatch(rf"{tmp_path}/report.html \(\d+ kB; \d+ charts in report_plots\)\n", result.out)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    rows, found = page.rows("Difference, points"), compared(*options)
    assert list(rows) == [row["method"] for row in found["methods"]] == ["dss", "cotmi", "standard"]
    for expected in found["methods"]:
        row, (low, high) = rows[expected["method"]], expected["interval"]
        assert row["Accuracy, %"] == f"{100 * expected['accuracy']:.1f} {100 * low:.1f} to {100 * high:.1f}"
        assert row["Seeds"] == "2"
        if difference := expected["difference"]:
            around = " to ".join(points(end) for end in difference["interval"])
            assert row["Difference, points"] == f"{points(difference['value'])} {around}"
            assert row["p (Holm)"] in (f"{difference['p_holm']:.3f}", "<0.001")
            assert (row["p (Holm)"] == "<0.001") == (difference["p_holm"] < 0.001)
            assert difference["verdict"] in row["Verdict"]
    assert rows["dss"]["Difference, points"] == "baseline"
    assert "cotmi is better than dss: +" in page.text and "p\u00a0<\u00a0.001 adjusted" in page.text
    assert "Whether standard differs" in page.text or "standard and dss are equivalent within ±2 points" in page.text


def test_all_measures_are_those_of_compare(tmp_path: Path) -> None:
    workdirs = write_arms(tmp_path, data__dataset="esnli")
    page = report(tmp_path, *workdirs)
    found = compared(*workdirs, "--metric=all")
    assert f"adjusted for the {found['measures'][0]['contrasts']} differences" in page.text
    cells = {row[0]: row[1:] for table in page.tables for row in table}
    names = [name for name in cells if any(each["measure"] in name for each in found["measures"])]
    assert len(names) >= len(found["measures"]) - 1 > 15  # accuracy has its own table
    for each in found["measures"]:
        if each["measure"] not in ("agreement_gold", "sequence_brier", "rouge_l"):
            continue
        digits, factor = (1, 100) if each["unit"] == "%" else (3, 1)
        (shown,) = [row for name, row in cells.items() if re.search(rf"{each['measure']}(,|$)", name)]
        for cell, method in zip(shown, each["methods"], strict=True):
            if method["value"] is None:
                assert "not available" in cell and method["not_available"] in cell
            else:
                assert f"{factor * method['value']:.{digits}f}" in cell
            if method["difference"]:
                change = f"{factor * method['difference']['value']:+.{digits}f}".replace("-", MINUS)
                assert change in cell and method["difference"]["verdict"] in cell
    assert "own_metric" in page.text and "own_metric" not in str(found)  # registered by an extension


def test_a_half_done_study_says_what_is_missing(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    page = report(tmp_path, str(study), baseline="dss")
    assert "Does the term help?" in page.text and "Claim of study toy, test split" in page.text
    assert "2 comparisons of label accuracy with dss: all better." in page.text
    difference = points(gather([str(study)], None, "dss", 0.01).sets[1].arms[1].row.contrast.interval.value)
    assert page.rows("cqa") == {"cotmi": {"Method": "cotmi", "esnli": ANY, "cqa": f"{difference}better"}}
    assert "4 of 12 runs are missing" in page.text
    assert "0-standard-0: running" in page.text and "0-standard-1: failed, out of memory" in page.text
    assert "1-standard-0: pending" in page.text
    names = [each["name"] for each in block(page)["sets"]]
    assert names == ["esnli", "cqa"]
    assert list(page.rows("Papers, %")) == ["dss", "cotmi"]
    assert (tmp_path / "report_plots" / "esnli-valid-accuracy.svg").exists()
    assert (tmp_path / "report_plots" / "cqa-2-risk-coverage.svg").exists()
    damaged = study / "runs" / "0-cotmi-1" / "evaluation" / "test" / "predictions.jsonl"
    damaged.write_text(damaged.read_text().partition("\n")[0] + "\n")
    later = report(tmp_path, str(study), baseline="dss")
    assert "5 of 12 runs are missing" in later.text and "0-cotmi-1: done, but cannot be read, " in later.text
    assert "one run: an interval needs at least 2 seeds" in later.rows("Difference, points")["cotmi"]["Verdict"]
    with open(study / "runs" / "0-dss-0" / "metrics.jsonl", "a") as log:
        log.write("{\n")
    later = report(tmp_path, str(study), baseline="dss")
    assert re.search(r"0-dss-0: done, but cannot be read, .*metrics.jsonl, line \d+: no JSON object", later.text)


def test_a_study_without_results_has_a_page(tmp_path: Path) -> None:
    page = report(tmp_path, str(write_study(tmp_path / "study", datasets=())))
    assert "Does the term help?" in page.text and "no run of this study was evaluated on test yet" in page.text
    assert page.scripts == []


def test_a_baseline_that_a_set_lacks_leaves_its_differences_out(tmp_path: Path) -> None:
    first = [write_run(tmp_path / f"a{s}", s, 0.6, objective__name="dss", data__dataset="esnli") for s in (0, 1)]
    first += [write_run(tmp_path / f"b{s}", s, 0.6, objective__name="cotmi", data__dataset="esnli") for s in (0, 1)]
    other = [write_run(tmp_path / f"c{s}", s, 0.6, objective__name="cotmi", data__dataset="cqa") for s in (0, 1)]
    page = report(tmp_path, *first, *other, baseline=first[1])
    assert "has no evaluated run on this set yet" in page.text
    assert page.rows("Difference, points")["dss"]["Difference, points"] == "baseline"
    found = gather([*first, *other], None, first[1], 0.01)
    assert [each.baseline for each in found.sets] == ["dss", ""]
    assert [arm.place for each in found.sets for arm in each.arms if arm.name == "cotmi"] == [1, 1]  # one colour


def test_sections_without_data_say_what_gives_it(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "w", 0, 0.5, logs=False, objective__name="standard", data__dataset="svamp")
    metrics = Path(workdir) / "evaluation" / "test" / "metrics.json"
    found = json.loads(metrics.read_text())
    del found["calibration"], found["metrics"]
    metrics.write_text(json.dumps(found))
    page = report(tmp_path, workdir)
    for command in (
        *("--config.eval.every=", "--config.mi.monitor.every=", "--config.data.subsample="),
        f"evaluate --workdir={workdir} --split=test",
        "--metrics=agreement,covariation,simulatability",
    ):
        assert command in page.text, command
    assert page.text.count("Not available: ") >= 4
    assert "one run: an interval needs at least 2 seeds" in page.text
    assert "No difference can be stated" in page.text
    assert "not recorded" in page.rows("Machine")["standard"]["Machine"]


def test_runs_that_were_not_evaluated_are_listed(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", 0, 0.5, objective__name="dss")
    waiting = Path(write_run(tmp_path / "waiting", 1, 0.5, objective__name="dss"))
    (waiting / "evaluation" / "test" / "metrics.json").unlink()
    page = report(tmp_path, done, str(waiting))
    assert "1 of 2 runs is missing" in page.text and f"--workdir={waiting} --split=test" in page.text
    with pytest.raises(UserError, match="no run was evaluated on test: python -m cotmi_jax.evaluate"):
        gather([str(waiting)], None, None, 0.01)


def test_what_makes_no_page_is_refused(tmp_path: Path) -> None:
    workdir, study = write_run(tmp_path / "w", 0, 0.5), str(write_study(tmp_path / "study", datasets=()))
    for sources, baseline, message in (
        ([], None, "no folder: give that of a study, or the workdirs"),
        ([workdir, study], None, "is a study: give it alone, or workdirs"),
        ([workdir], "x", "--baseline=x is neither a method nor a workdir"),
        ([str(tmp_path / "nowhere")], None, "no run.json in"),
    ):
        with pytest.raises(UserError, match=message):
            gather(sources, None, baseline, 0.01)
    for option, message in {
        "--margin=0": "--margin=0: give percentage points",
        "--output=page.txt": "give the name of a file that ends in .html",
        f"--output={tmp_path}/none/x.html": "cannot write --output=",
    }.items():
        runs.assert_refused(runs.command("report", workdir, option), message)


def test_papers_values_are_marked_by_their_runs(tmp_path: Path) -> None:
    workdirs = write_arms(tmp_path, seeds=1, data__dataset="svamp", model__init="google/t5-v1_1-base", logs=False)
    workdirs.append(write_run(tmp_path / "less", 0, 0.5, data__dataset="svamp", data__subsample=0.5, logs=False))
    rows = report(tmp_path, *workdirs).rows("Papers, %")
    shown = {name: row["Papers, %"] for name, row in rows.items()}
    assert shown["cotmi subsample=1.0 init=google/t5-v1_1-base"] == "68.00 MI, T5-base, single run"
    assert shown["dss subsample=1.0 init=google/t5-v1_1-base"] == "65.50 DSS, T5-base, mean of 4"
    assert [value for value in shown.values() if not value] == [""]  # of half the train split no paper says anything


def test_accuracy_by_the_amount_of_data(tmp_path: Path) -> None:
    workdirs = [
        write_run(tmp_path / f"{name}{share}{seed}", seed, 0.5 + share / 5, objective__name=name, data__subsample=share)
        for name in ("dss", "cotmi")
        for share in (0.1, 1.0)
        for seed in (0, 1)
    ]
    report(tmp_path, *workdirs)
    (svg,) = (tmp_path / "report_plots").glob("data-efficiency-*.svg")
    texts = [each.text for each in xml.etree.ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"10", "100", "dss", "cotmi", "% of the train split"} <= set(texts)


def test_methods_are_compared_at_equal_settings_of_the_sweep(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", datasets=("esnli",), fractions=(0.5, 1.0))
    found = gather([str(study)], None, None, 0.01)
    assert [each.name for each in found.sets] == ["esnli, subsample=0.5", "esnli, subsample=1.0"]
    for each in found.sets:
        assert [arm.name for arm in each.arms] == ["dss", "cotmi"] and each.baseline == "dss"
        assert [row.contrast is not None for row in each.comparison.rows] == [False, True]
    page = report(tmp_path, str(study))
    assert page.text.count("Accuracy by the amount of train data, esnli") == 1
    (svg,) = (tmp_path / "report_plots").glob("data-efficiency-*.svg")
    texts = [each.text for each in xml.etree.ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"50", "100", "dss", "cotmi"} <= set(texts)
    # Without its runs the baseline of the study stays the same.
    path = study / "study.jsonl"
    path.write_text("".join(line for line in path.open() if not ('"done"' in line and "0-dss" in line)))
    first = gather([str(study)], None, None, 0.01).sets[0]
    assert first.baseline == "" and first.no_baseline == "the baseline dss has no evaluated run on this set yet"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    """A page with hostile texts in every field, also of 10,000 characters."""
    folder = tmp_path_factory.mktemp("hostile")
    study = write_study(folder / "study", HOSTILE, datasets=(f"jsonl:{HOSTILE}",), size=9)
    path = study / "runs" / "0-dss-0" / "evaluation" / "test" / "predictions.jsonl"
    path.write_text(path.read_text().replace("It follows.", "It follows." + 10_000 * "x"))
    yield report(folder, str(study)), folder


def test_hostile_texts_are_texts(hostile: tuple[Page, Path]) -> None:
    page, folder = hostile
    assert page.tags.count("script") == 2 and page.tags.count("style") == 1
    assert not {"img", "iframe", "object", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "data", "style")]
    assert links and all(str(value).startswith("#") for value in links)
    # The product has more digits than a time on the page, or by chance a revision.
    assert "{{ 7919 * 7927 }}" in page.text and "62773913" not in page.text
    (found,) = block(page)["sets"]
    assert found["input"][0] == f"Premise 0: a dog runs.{HOSTILE}" and len(found["why"][0]) > 10_000
    raw = page.scripts[0]
    assert not set("<>&\u2028\u2029") & set(raw)
    for svg in (folder / "report_plots").glob("*.svg"):
        tree = xml.etree.ElementTree.parse(svg)
        assert {each.tag.rpartition("}")[2] for each in tree.iter()} <= {
            "svg",
            "style",
            "g",
            "path",
            "text",
            "rect",
            "circle",
        }


def test_the_policy_allows_the_one_script_and_the_one_style(hostile: tuple[Page, Path]) -> None:
    page, folder = hostile
    html = (folder / "report.html").read_text("utf-8")
    (policy,) = [value for name, value in page.attributes if name == "content" and value and "default-src" in value]
    style = html.split("<style>")[1].split("</style>")[0]
    for kind, text in (("script", page.scripts[1]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "style=" not in html.replace(style, "").split("<script")[0]
    assert len(page.scripts[1].encode()) <= 10_000


def test_the_page_is_small_and_its_data_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdirs = write_arms(tmp_path, data__dataset="esnli")
    workdirs += [
        write_run(tmp_path / f"r{s}", s, 0.7, data__dataset="esnli", objective__name="cotmi", mi__estimator="dv")
        for s in (0, 1)
    ]
    found = gather(workdirs, None, None, 0.01)
    plain = make_page(found).html
    data = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', plain, re.DOTALL)
    assert data is not None and len(plain.encode()) - len(data[1]) <= 150_000
    monkeypatch.setattr(examples, "_MAX_PLAIN", 1000)
    packed = Page(make_page(found, examples=7).html)
    assert ("data-encoding", "gzip") in packed.attributes
    sets = json.loads(gzip.decompress(base64.b64decode(packed.scripts[0])))["sets"]
    assert sets[0]["id"] == json.loads(data[1])["sets"][0]["id"][:7]
    assert [len(run["right"]) for run in sets[0]["runs"]] == [7] * len(workdirs)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [(0.0, 1.0, 4, [0.0, 0.5, 1.0]), (-0.3, 0.3, 5, [-0.2, 0.0, 0.2]), (0.0, 700.0, 5, [0, 200, 400, 600])],
)
def test_ticks_are_round_numbers(low: float, high: float, count: int, expected: list[float]) -> None:
    assert ticks(low, high, count) == pytest.approx(expected, abs=1e-12)


def test_a_curve_is_drawn_where_its_values_are() -> None:
    curve = Curve(1, [0.0, 10.0], [0.0, 100.0], [0.0, 90.0], [0.0, 100.0])
    chart = Chart("c", "t", "d", "x", "y", [curve], x_limits=(0.0, 10.0), y_limits=(0.0, 100.0))
    paths = re.findall(r'd="M([\d.]+) ([\d.]+)l([-\d. ]+)"', chart.svg())
    (x, y, moves), (dx, dy) = paths[-1], map(float, paths[-1][2].split())
    assert (float(x), float(y)) == (46, 200) and (float(x) + dx, float(y) + dy) == (348, 12), moves
    many = Curve(1, list(range(1000)), [float(i) for i in range(1000)])
    assert len(Chart("c", "t", "d", "x", "y", [many]).svg()) < 3000
