"""What a judge is asked and never asked twice: draws, resumed runs, rubrics, and workdirs that cannot be judged."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import runs
from annotations import read_rows
from fake_teacher import MODEL, FakeTeacher
from judged import judging, make_run, number_of, plain, results
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.judge_items import draw, is_same_model, teacher_models
from cotmi_jax.teacher.prompt import load_prompt
from cotmi_jax.teacher.rubric import load_rubric
from cotmi_jax.teacher.session import local_file


def four(text: str, sample: int) -> str:
    return "Score: 4"


def test_a_draw_is_the_same_for_every_run_and_part_of_a_larger_one():
    ids = [f"esnli/test/{number}" for number in range(500)]
    drawn = draw(ids, 50, 3)
    assert len(drawn) == 50 and sorted(draw(reversed(ids), 50, 3)) == sorted(drawn)
    assert set(drawn) < set(draw(ids, 100, 3)) and drawn == [each for each in ids if each in set(drawn)]
    assert len(set(drawn) & set(draw(ids, 50, 4))) < 20 and draw(ids, None, 0) == ids == draw(ids, 900, 0)
    assert 60 < sum(int(each.rpartition("/")[2]) for each in drawn) / 50 / 2.5 < 140  # from all of the split


def test_what_is_missing_is_requested_and_nothing_twice(tmp_path):
    run = make_run(tmp_path / "a")
    with FakeTeacher(four) as server:

        def requested(**changes: object) -> int:
            before = len(server.requests)
            assert judging(server.url, run, **changes).judge() == 0
            return len(server.requests) - before

        assert requested(limit=10) == 10 and requested(limit=10) == 0
        assert requested(limit=15) == 5 and requested() == 15
        assert requested(repeats=3) == 30 and server.requests[-1]["n"] == 2
        assert requested(repeats=2) == 0
        predictions = tmp_path / "a/evaluation/test/predictions.jsonl"
        predictions.write_text(predictions.read_text().replace("7 and 10 make 17.", "Seven and 10 make 17."))
        assert requested(repeats=2) == 1  # of s/7, whose rationale changed
        assert requested(temperature=0.5) == 30  # another judge, in files of its own
    assert len(list(predictions.parent.glob("judge-oracle-1-*.journal.jsonl"))) == 2


def test_a_dry_run_shows_the_first_request_and_the_cost_and_sends_nothing(tmp_path, capsys):
    run = make_run(tmp_path / "a", lambda number: plain(number) if number else None)
    with FakeTeacher(four) as server:
        judged = judging(server.url, run, repeats=2, samples_per_request=1)
        judged.dry_run()
    out = capsys.readouterr().out
    assert not server.requests and not judged.journal.exists()
    assert "[system]\nYou grade explanations." in out and "1 and 10 make 11." in out
    assert "58 requests about 29 of 30 items: about " in out and f"at most {58 * 64} out" in out


def start(run: str, url: str) -> subprocess.Popen[str]:
    options = [f"--workdir={run}", f"--base_url={url}", f"--model={MODEL}", "--concurrency=4", "--backoff=0.01"]
    command = [sys.executable, "-m", "cotmi_jax.judge", *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_resumes_and_pays_only_requests_in_flight_again(tmp_path):
    run = make_run(tmp_path / "a", size=60)
    folder = tmp_path / "a/evaluation/test"
    with FakeTeacher(four, delay_s=0.05) as server:
        killed, deadline = start(run, server.url), time.monotonic() + 60
        while not (found := list(folder.glob("*.journal.jsonl"))) or found[0].read_bytes().count(b"\n") < 20:
            assert time.monotonic() < deadline, "the run made no progress for 60 s"
            time.sleep(0.005)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        killed.communicate()
        time.sleep(0.2)  # requests that the server still processes
        paid = len(server.requests)
        again = start(run, server.url)
        out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert 60 <= len(server.requests) <= 60 + 4 and 19 <= paid < 60
    assert "mean score, 1 to 5  4.00" in out
    assert Counter(row["id"] for row in read_rows(found[0])[1:]) == Counter(f"s/{number}" for number in range(60))


@pytest.mark.slow
def test_the_command_judges_and_its_errors_are_one_line(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", lambda number: f"Sum: {number + 10}.")
    with FakeTeacher(lambda text, _: "Better: 2" if "explanation_2" in text else "Score: 5") as server:
        options = [f"--base_url={server.url}", f"--model={MODEL}"]
        scored = runs.command("__main__", "judge", f"--workdir={a}", *options, "--limit=5")
        assert scored.code == 0 and "5 of 30 in test (seed 0): 5 judged" in scored.out, scored
        paired = runs.command("judge", f"--workdir={a}", f"--against={b}", *options, f"--output={tmp_path}/r.json")
        assert paired.code == 0 and "the judge prefers the second" in paired.out, paired
        refused = runs.command("judge", f"--workdir={tmp_path}/none", *options)
        runs.assert_refused(refused, "none")
    runs.assert_refused(runs.command("judge", f"--workdir={a}"), "--model must have a value")
    assert json.loads((tmp_path / "r.json").read_text())["values"]["flips"]["value"] == 1
    assert len(read_rows(tmp_path / "r.journal.jsonl")) == 1 + 60


def test_other_data_splits_and_examples_are_errors_that_name_both(tmp_path):
    run = make_run(tmp_path / "a")
    changed = make_run(tmp_path / "input")
    path = Path(changed, "evaluation/test/predictions.jsonl")
    path.write_text(path.read_text().replace("What is 3 + 10?", "What is 3 + 11?"))
    for other, message in {
        make_run(tmp_path / "data", **{"data.dataset": "cqa"}): "config.data.dataset 'svamp' and .*data 'cqa'",
        make_run(tmp_path / "short", size=20): "/a and .*/short were evaluated on other examples of test .30 and 20.",
        changed: "/a and .*/input have other inputs of example s/3",
        make_run(tmp_path / "valid", split="valid"): "valid was not evaluated on test: run python -m",
        run: "is --workdir itself",
    }.items():
        with pytest.raises(UserError, match=message):
            judging(None, run, other)


def test_runs_without_rationales_are_refused_before_any_request(tmp_path):
    with pytest.raises(UserError, match="no example of test has a rationale of the student .objective standard."):
        judging(None, make_run(tmp_path / "a", lambda number: None, **{"objective.name": "standard"}))
    run = make_run(tmp_path / "b", lambda number: plain(number) if number == 29 else None)
    with pytest.raises(UserError, match="nothing to judge: of 3 items 3 have an empty rationale"):
        judging(None, run, limit=3).judge()
    same = make_run(tmp_path / "c"), make_run(tmp_path / "d")
    with pytest.raises(UserError, match="0 have an empty rationale and 30 the same rationale twice"):
        judging(None, *same).dry_run()


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("oracle-1-2026-08-01", "the judge wrote the rationales of the training data (oracle-1-2026-08-01)"),
        ("other-2", None),
        (None, "it is not known which model wrote the rationales"),
    ],
)
def test_a_judge_that_is_the_teacher_is_a_warning(tmp_path, capsys, teacher, expected):
    (tmp_path / "r.jsonl").write_text("")
    if teacher:
        report = {"model": teacher, "models": {teacher: 3}}
        (tmp_path / "r.report.json").write_text(json.dumps(report))
    run = make_run(tmp_path / "a", size=4, **{"data.dataset": f"jsonl:{tmp_path}/r.jsonl"})
    with FakeTeacher(four) as server:
        judged = judging(server.url, run)
        judged.judge()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [expected in line for line in warnings] == ([] if expected is None else [True])
    assert results(judged)[0]["judge_is_teacher"] == bool(teacher and "oracle" in teacher)


@pytest.mark.parametrize(
    ("dataset", "teachers", "known"),
    [
        ("svamp", ["palm"], True),
        ("arithmetic", [], True),
        ("svamp=2,hf:mine", ["palm"], False),
        ("svamp,own", ["palm"], False),
    ],
)
def test_the_teacher_is_known_for_released_sets_and_where_there_is_none(dataset, teachers, known):
    assert teacher_models({"data.dataset": dataset, "data.teacher": "palm"}) == (teachers, known)


def test_names_of_one_model():
    for one, other, same in [
        ("openai/gpt-5-mini", "gpt-5-mini-2025-08-07", True),
        ("Qwen/Qwen3-8B", "qwen3-8b", True),
        ("gpt-4", "gpt-4o", False),
        ("gpt-5", "gpt-5-mini", False),
        ("palm", "palmyra-x5", False),
        ("", "gpt-5", False),
    ]:
        assert is_same_model(one, other) == is_same_model(other, one) == same, (one, other)


def test_a_rubric_is_a_file_that_users_edit(tmp_path):
    default = load_rubric("default", "absolute")
    copy = tmp_path / "own.toml"
    copy.write_text("# A comment.\n" + default.path.read_text())
    assert load_rubric(str(copy), "absolute").digest == default.digest
    assert load_rubric(str(copy), "pairwise").digest != default.digest
    copy.write_text('[absolute]\nquestion = "Rate {rationale}"\n')
    own = load_rubric(str(copy), "absolute")
    assert own.conversation(own.text("Q", "G", "R")) == [{"role": "user", "content": "Rate R"}]
    with FakeTeacher(four) as server:
        judging(server.url, make_run(tmp_path / "a", size=3), rubric=copy).judge()
    assert sorted(server.asked) == [f"Rate {plain(number)}" for number in range(3)]


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("[absolute", "absolute", "own.toml: not TOML"),
        ("[absolut]\n", "absolute", "unknown table 'absolut'; a rubric has the tables"),
        ("absolute = 3\n", "absolute", r"no table \[absolute\]"),
        ('[absolute]\nquestion = "{rationale}"\n', "pairwise", r"no table \[pairwise\], which --against needs"),
        ('[absolute]\nquestion = "{input}"\n', "absolute", r"lacks \{rationale\}; its placeholders are"),
        ('[pairwise]\nquestion = "{rationale_1} {rationale}"\n', "pairwise", r"lacks \{rationale_2\}"),
        ('[absolute]\nquestion = "{rationale} {answer}"\n', "absolute", r"unknown placeholder \{answer\}"),
        ('[absolute]\nquestion = "{rationale}"\nscale = "9"\n', "absolute", "unknown key 'scale'"),
        ("[absolute]\nquestion = 3\n", "absolute", "question = 3 is not a text"),
    ],
)
def test_an_invalid_rubric_is_refused(tmp_path, content, mode, message):
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_rubric(str(tmp_path / "own.toml"), mode)
    with pytest.raises(UserError, match="--rubric=none: no such file, and none of the built-in rubrics .default."):
        load_rubric("none", mode)


def test_rubrics_are_installed_with_the_package_and_are_no_prompts():
    data = re.search(r"package-data = .*", (REPOSITORY / "pyproject.toml").read_text())
    assert data and '"teacher/rubrics/*.toml"' in data[0]
    with pytest.raises(UserError, match="none of the built-in prompts"):
        load_prompt("default")


def test_a_server_that_returns_one_sample_is_asked_again(tmp_path):
    with FakeTeacher(lambda text, _: f"Score: {1 + number_of(text)}") as server:
        server.largest_n = 1
        judged = judging(server.url, make_run(tmp_path / "a", size=3), repeats=3)
        judged.judge()
    assert [row["scores"] for row in results(judged)[1]] == [[1] * 3, [2] * 3, [3] * 3] and len(server.requests) == 9


def test_files_are_local(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_file("~/r.jsonl", "output") == tmp_path / "r.jsonl"
    with pytest.raises(UserError, match="--output=gs://bucket/r.jsonl: give a local path"):
        local_file("gs://bucket/r.jsonl", "output")
