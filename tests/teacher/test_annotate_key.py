"""The key is sent to the server and written nowhere; the command line of annotation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from annotations import annotation, read_rows, sums, write_rows
from fake_teacher import FakeTeacher, status
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.client import read_key

KEY = "sk-test-5f1c0aYp9Lr2"


def annotate(folder: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    options = [f"--questions={folder}/q.jsonl", f"--output={folder}/r.jsonl", "--model=oracle-1", "--backoff=0.01"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, "-m", "cotmi_jax.annotate", *options, *more],
        cwd=REPOSITORY,
        env={**bare, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_without_key(folder: Path, run: subprocess.CompletedProcess[str]) -> None:
    assert KEY not in run.stdout + run.stderr
    for path in folder.rglob("*"):
        assert KEY.encode() not in path.read_bytes(), path


def test_the_key_is_sent_and_never_written(tmp_path):
    """Also if the server repeats it in a response, and with all logging enabled."""

    def complete(text: str, sample: int) -> str:
        return f"Your key is {KEY}. So the answer is 10."

    write_rows(tmp_path / "q.jsonl", sums(2))
    with FakeTeacher(complete, faults=(status(500, f"key {KEY} failed"),)) as teacher:
        teacher.model = f"oracle-1 {KEY}"
        teacher.finish_reason = f"stop {KEY}"
        run = annotate(tmp_path, f"--base_url={teacher.url}", "--verbosity=1", OPENAI_API_KEY=KEY, OPENAI_LOG="debug")
    assert run.returncode == 0, run.stderr
    assert set(teacher.keys) == {f"Bearer {KEY}"}
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["Your key is [key]."]
    assert_without_key(tmp_path, run)


@pytest.mark.parametrize(("code", "more", "lines"), [(401, "--concurrency=1", 1), (500, "--traceback", None)])
def test_an_error_that_repeats_the_key_is_printed_without_it(tmp_path, code, more, lines):
    write_rows(tmp_path / "q.jsonl", sums(1))
    with FakeTeacher(faults=[status(code, f"Incorrect API key provided: {KEY}.")] * 9) as teacher:
        where = (f"--base_url={teacher.url}", "--key_variable=MY_KEY", "--max_retries=1")
        run = annotate(tmp_path, *where, more, MY_KEY=KEY)
    assert run.returncode != 0 and "Incorrect API key provided: [key]." in run.stderr
    assert lines is None or len(run.stderr.strip().splitlines()) == lines
    assert_without_key(tmp_path, run)


def test_with_a_base_url_no_key_is_needed(tmp_path):
    write_rows(tmp_path / "q.jsonl", sums(1))
    with FakeTeacher() as teacher:
        assert annotate(tmp_path, OPENAI_BASE_URL=teacher.url).returncode == 0
    assert len(teacher.requests) == 1


def test_a_placeholder_key_is_not_redacted_from_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("COTMI_TEST_KEY", "EMPTY")
    with FakeTeacher(lambda *_: "The box is EMPTY. So the answer is 10.") as teacher:
        annotation(tmp_path, teacher.url, sums(1)).run()
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["The box is EMPTY."]


def test_without_a_key_and_a_base_url_the_run_is_refused(tmp_path):
    write_rows(tmp_path / "q.jsonl", sums(1))
    run = annotate(tmp_path)
    assert run.returncode == 2
    assert "no key: set OPENAI_API_KEY in the environment, or --base_url" in run.stderr


def test_a_key_as_the_name_of_the_variable_is_refused_and_not_printed(monkeypatch):
    with pytest.raises(UserError, match="never the key itself") as raised:
        read_key(KEY, None)
    assert KEY not in str(raised.value)
    monkeypatch.setenv("COTMI_TEST_KEY", f"{KEY}\u2026")
    with pytest.raises(UserError, match="COTMI_TEST_KEY has characters") as raised:
        read_key("COTMI_TEST_KEY", None)
    assert KEY not in str(raised.value)


def test_without_the_openai_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[teacher\]'"):
        annotation(tmp_path, "http://127.0.0.1:9/v1", sums(1)).run()


def test_annotation_loads_neither_jax_nor_tensorflow():
    code = "import sys, cotmi_jax.teacher.annotate as a; print({'jax', 'tensorflow', 'openai'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_every_flag_reaches_the_run(tmp_path):
    """The shell passes flags by position, so each has a value of its own here."""
    write_rows(tmp_path / "q.jsonl", sums(3, wrong_gold=[1]))
    with FakeTeacher(delay_s=0.05) as teacher:
        shape = ("--limit=2", "--samples=3", "--samples_per_request=2", "--temperature=0.3", "--max_tokens=77")
        limits = ("--concurrency=1", "--requests_per_minute=6000", "--tokens_per_minute=600000", "--timeout=9")
        policy = ("--rationalize", "--inconsistent=downweight", "--inconsistent_weight=0.125", "--price_in=1")
        more = ("--price_out=1000000", '--body={"seed": 4}', f"--journal={tmp_path}/paid", "--prompt=generic")
        run = annotate(tmp_path, f"--base_url={teacher.url}", *shape, *limits, *policy, *more)
    assert run.returncode == 0, run.stderr
    assert [row["weight"] for row in read_rows(tmp_path / "r.jsonl")] == [[1.0], [0.125]]
    assert [body.get("n", 1) for body in teacher.requests] == [
        2,
        1,
    ] * 3  # two questions, and a hinted request for one of them
    assert {(body["temperature"], body["max_tokens"], body["seed"]) for body in teacher.requests} == {(0.3, 77, 4)}
    assert teacher.most_in_flight == 1
    assert len(read_rows(tmp_path / "paid")) == 7 and "$60.0006" in run.stdout


def test_flags_about_answers_reach_the_run_and_too_few_readable_ones_exit_with_2(tmp_path):
    def complete(text: str, sample: int) -> str:
        return '<think>Ten.</think>{"rationale": "Zero.", "answer": "10"}' if "0 + 10" in text else "Who\nknows?"

    write_rows(tmp_path / "q.jsonl", sums(4))
    flags = ("--prompt=json", "--structured", "--rationale=thinking", "--min_readable=0.3")
    with FakeTeacher(complete) as teacher:
        run = annotate(tmp_path, f"--base_url={teacher.url}", *flags)
    assert run.returncode == 2
    error = run.stderr.splitlines()[-1]
    assert error.startswith("error: of 4 samples 1 have an answer") and "--min_readable=0.3" in error
    assert "Who\\nknows?" in error
    assert [row["rationale"] for row in read_rows(tmp_path / "r.jsonl")] == [["Ten."], [], [], []]
    assert {body["response_format"]["type"] for body in teacher.requests} == {"json_schema"}


def test_released_sets_are_questions(tmp_path, data_root):
    with FakeTeacher(lambda *_: "Of these, one. So the answer is (a) the bank.") as teacher:
        run = subprocess.run(
            [sys.executable, "-m", "cotmi_jax.annotate", "--dataset=cqa", "--split=test", f"--data_root={data_root}"]
            + [f"--output={tmp_path}/r.jsonl", "--model=oracle-1", f"--base_url={teacher.url}", "--limit=2"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr
    assert [row["id"] for row in read_rows(tmp_path / "r.jsonl")] == ["cqa/test/0", "cqa/test/1"]
    assert sorted(row["input"] for row in read_rows(tmp_path / "r.jsonl")) == sorted(
        text.removeprefix("Q: ").removesuffix("\nA:") for text in teacher.asked
    )
