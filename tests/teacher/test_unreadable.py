"""Answers that cannot be read end a run early and with an error; what could be read is kept."""

import pytest
from annotations import annotation, read_rows, report, sums
from fake_teacher import FakeTeacher, add_up

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.answers import RULES, read_sample
from cotmi_jax.teacher.asking import MAX_CONSECUTIVE_UNREADABLE, UnreadableAnswers
from cotmi_jax.teacher.journal import Choice, Record

ODD = "I would rather talk about the weather, which is fine today. " * 5 + "\x1b[31mNumber: 7"


def number(text: str) -> int:
    return int(text.split()[3])


def record(name: str, text: str) -> Record:
    return Record(name, "asked", False, "m", (Choice(text, "stop"),), None, None)


@pytest.mark.parametrize(("concurrency", "samples"), [(1, 1), (1, 3), (8, 1)])
def test_a_run_ends_after_20_questions_without_a_readable_answer(tmp_path, concurrency, samples):
    with FakeTeacher(lambda *_: ODD) as teacher:
        run = annotation(tmp_path, teacher.url, sums(200), concurrency=concurrency, samples=samples)
        with pytest.raises(UserError, match="0 have an answer .* ended after 20 questions in a row") as raised:
            run.run()
    assert 20 <= len(teacher.requests) < 20 + concurrency
    message = str(raised.value)
    assert "'I would rather talk" in message and "Number: 7'" in message
    assert "generic.toml to a rule that reads it" in message and "--journal" in message and "r.jsonl" in message
    assert message.isprintable() and len(message) < 800
    assert report(tmp_path)["parse_failures"] == len(teacher.requests) * samples  # the responses in flight are kept


def test_what_was_read_before_is_kept_in_the_output(tmp_path):
    with FakeTeacher(lambda text, k: add_up(text, k) if number(text) < 30 else ODD) as teacher:
        with pytest.raises(UserError, match="of 50 samples 30 have an answer"):
            annotation(tmp_path, teacher.url, sums(100), concurrency=1).run()
    rows = read_rows(tmp_path / "r.jsonl")
    assert [len(row["rationale"]) for row in rows] == [1] * 30 + [0] * 70


def test_a_resumed_run_ends_at_the_first_further_unreadable_answer_or_continues_with_a_readable_one(tmp_path):
    with FakeTeacher(lambda *_: ODD) as teacher:
        run = annotation(tmp_path, teacher.url, sums(60), concurrency=1)
        for paid in (20, 21, 22):
            with pytest.raises(UserError, match="in a row"):
                run.run()
            assert len(teacher.requests) == paid
        teacher.complete = add_up
        assert run.run() == 0  # 38 of 60 can be read
    assert len(teacher.requests) == 60


def test_readable_answers_between_unreadable_ones_let_the_run_continue(tmp_path):
    with FakeTeacher(lambda text, k: ODD if number(text) % 20 else add_up(text, k)) as teacher:
        run = annotation(tmp_path, teacher.url, sums(60), concurrency=1)
        with pytest.raises(UserError, match="of 60 samples 3 have an answer .* fewer than --min_readable=0.5"):
            run.run()
        assert len(teacher.requests) == 60
        assert annotation(tmp_path, teacher.url, sums(60), min_readable=0.05).run() == 0
        assert len(teacher.requests) == 60


def test_all_samples_of_one_odd_question_do_not_end_the_run(tmp_path):
    with FakeTeacher(lambda text, k: ODD if number(text) == 1 else add_up(text, k)) as teacher:
        run = annotation(tmp_path, teacher.url, sums(3), samples=25, samples_per_request=1, concurrency=1)
        assert run.run() == 0
    assert len(teacher.requests) == 75


def test_any_answers_are_accepted_by_the_share_0(tmp_path):
    with FakeTeacher(lambda *_: ODD) as teacher:
        assert annotation(tmp_path, teacher.url, sums(50), min_readable=0.0).run() == 0
    assert len(teacher.requests) == 50


def test_unreadable_hinted_answers_end_the_run_too(tmp_path):
    with FakeTeacher(lambda text, k: ODD if "given" in text else add_up(text, k)) as teacher:
        run = annotation(tmp_path, teacher.url, sums(50, wrong_gold=range(50)), rationalize=True, concurrency=1)
        with pytest.raises(UserError, match="of 70 samples 50 have an answer .* in a row"):
            run.run()
    assert len(teacher.requests) == 70


def test_readable_answers_without_any_rationale_are_an_error(tmp_path):
    with FakeTeacher(lambda *_: "<think>0 and 10 make 10.</think>So the answer is 10.") as teacher:
        with pytest.raises(UserError, match="none of 1 samples has a rationale.*pass --rationale=thinking"):
            annotation(tmp_path, teacher.url, sums(1)).run()
        assert annotation(tmp_path, teacher.url, sums(1), rationale="thinking").run() == 0
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["0 and 10 make 10."]


def test_the_count_of_a_journal_leaves_one_answer_to_decide():
    for tail in (0, 5, 19, 20, 40):
        texts = ["Four. So the answer is 4.", *["?"] * tail]
        answers = UnreadableAnswers(
            lambda choice: read_sample(choice, RULES["generic"])[1] is not None,
            {f"q{i}": [record(f"q{i}", text)] for i, text in enumerate(texts)},
        )
        added = 1
        while not answers.add(f"new{added}", [Choice("?", "stop")]):
            added += 1
        assert added == max(1, MAX_CONSECUTIVE_UNREADABLE - tail)
