"""Results of a page as Markdown: the numbers of compare, the part of a document, and what is refused."""

import json
from collections import Counter
from pathlib import Path

import runs
from reported import write_arms, write_run, write_study

from cotmi_jax.report.page import words


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table's lines by method."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_the_numbers_are_those_of_compare_and_the_rest_of_the_document_stays(tmp_path: Path) -> None:
    workdirs = write_arms(tmp_path, data__dataset="esnli")
    document = tmp_path / "study.md"
    other = "<!-- report: begin -->\nkept\n<!-- report: end -->\n"
    document.write_text(f"# Ours\n\n{other}\n<!-- pair: begin -->\nold\n<!-- pair: end -->\n\nWhat follows from it.\n")
    measures = "--metric=accuracy,sequence_brier,true_steps"
    result = runs.command("report", *workdirs, f"--output={document}", measures, "--part=pair")
    assert (result.code, result.out, result.err) == (0, f"{document}\n", ""), result
    text = document.read_text()
    assert text.startswith(f"# Ours\n\n{other}\n<!-- pair: begin -->\n\n") and "old\n" not in text
    assert text.endswith("\n\n<!-- pair: end -->\n\nWhat follows from it.\n") and measures in text
    found = json.loads(runs.command("compare", *workdirs, measures, "--json").out)["measures"]
    table = rows(text)
    assert table["method"][1:] == ["label accuracy, %", "Brier score of confidence in the label"]  # steps: no values
    for column, each in enumerate(found[:2], 1):
        factor, digits = (100, 1) if each["unit"] == "%" else (1, 3)
        for method in each["methods"]:
            cell = table[method["method"]][column]
            assert cell.startswith(f"{factor * method['value']:.{digits}f} [")
            if difference := method["difference"]:
                bold = "**" * (difference["verdict"] in ("better", "worse"))
                shown = f"{bold}{factor * difference['value']:+.{digits}f}{bold}"
                assert shown in cell and ("≈" in cell) == (difference["verdict"] == "equivalent")
            else:
                assert "<br>" not in cell
    assert "**" in table["cotmi"][1]
    verdicts = Counter(one["difference"]["verdict"] for each in found for one in each["methods"] if one["difference"])
    (summary,) = (line for line in text.splitlines() if line.startswith(f"{verdicts.total()} differences to "))
    assert len(verdicts) > 1
    assert all(f"{number} {verdict}" in summary for verdict, number in verdicts.items())


def test_the_margin_is_that_of_the_flag(tmp_path: Path) -> None:
    arms = {"dss": 0.6, "cotmi": 0.65}
    workdirs = [
        write_run(tmp_path / f"{name}{seed}", seed, accuracy, objective__name=name, data__dataset="esnli")
        for name, accuracy in arms.items()
        for seed in range(2)
    ]
    marks = []
    for margin in ("0.001", "90"):
        result = runs.command("report", *workdirs, f"--output={tmp_path}/new.md", f"--margin={margin}")
        assert result.code == 0, result
        marks.append(
            [row[1].partition("<br>")[2].startswith("≈") for row in rows((tmp_path / "new.md").read_text()).values()]
        )
    assert not any(marks[0]) and any(marks[1])


def test_verdicts_of_measures_of_which_neither_direction_is_better_are_counted() -> None:
    assert words.list_verdicts(Counter(higher=2)) == "all higher"
    assert words.list_verdicts(Counter(lower=1, better=2, undecided=3)) == "2 better, 1 lower and 3 undecided"
    assert words.list_verdicts(Counter(equivalent=1), "equivalent within ±1 points") == "equivalent within ±1 points"


def test_a_half_done_study_has_a_new_document_that_lists_what_is_missing(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    result = runs.command("report", str(tmp_path / "study"), f"--output={tmp_path}/new.md")
    assert (result.code, result.err) == (0, ""), result
    text = (tmp_path / "new.md").read_text()
    assert text.startswith("<!-- report: begin -->")
    assert "Missing are 4 of 12 runs: 1 running; 1 failed (0-standard-1); 2 pending." in text


def test_a_document_without_the_part_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("# Mine\n")
    result = runs.command("report", *write_arms(tmp_path), f"--output={tmp_path}/mine.md")
    assert result.code == 2 and "needs one line <!-- report: begin -->" in result.err
    assert (tmp_path / "mine.md").read_text() == "# Mine\n"
    result = runs.command("report", *write_arms(tmp_path / "b"), f"--output={tmp_path}/a.html", "--metric=accuracy")
    assert result.code == 2 and "--output=FILE.md" in result.err
