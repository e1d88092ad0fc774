"""Annotation against a fake server, with and without faults: requests, retries, the filter, output and report."""

import dataclasses
import json

import fake_teacher as fake
import pytest
from annotations import annotation, read_rows, report, sums
from fake_teacher import FakeTeacher, add_up

from cotmi_jax.data.example import Pair
from cotmi_jax.data.sources.own_files import FileSource
from cotmi_jax.errors import UserError
from cotmi_jax.teacher.consistency import Policy
from cotmi_jax.teacher.prompt import load_prompt
from cotmi_jax.teacher.report import Prices
from cotmi_jax.teacher.session import request_settings


def test_every_question_becomes_a_row_of_the_output(tmp_path):
    with FakeTeacher() as teacher:
        assert annotation(tmp_path, teacher.url, sums(7), samples=2).run() == 0
    rows = read_rows(tmp_path / "r.jsonl")
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(7)]
    assert rows[3] == {
        "id": "q3",
        "input": "What is 3 + 10?",
        "label": "13",
        "rationale": ["3 and 10 make 13."],
        "weight": [1.0],
        "teacher_label": "13",
    }


def test_choices_and_clusters_reach_the_training_data(tmp_path):
    """Choices without the label, here a teacher's wrong answer, would be refused there and are left out."""
    rows = [
        row | {"choices": choices, "cluster": 7}
        for row, choices in zip(sums(3), (["10", "11"], ["11", "12"], ["x", "y"]), strict=True)
    ]
    del rows[2]["label"]
    with FakeTeacher() as teacher:
        assert annotation(tmp_path, teacher.url, rows).run() == 0
    written = read_rows(tmp_path / "r.jsonl")
    assert [row.get("choices") for row in written] == [["10", "11"], ["11", "12"], None]
    train = FileSource("jsonl", tmp_path / "r.jsonl").read(["train"]).splits["train"]
    assert [example.choices for example in train] == [("10", "11"), ("11", "12"), ()]
    assert {example.cluster for example in train} == {f"{train[0].id.partition('/')[0]}/7"}


def test_answers_other_than_the_label_become_counterfactuals_that_training_reads(tmp_path):
    def sometimes_wrong(question, index):
        right = add_up(question, index)
        return right.replace("make 1", "make 9").replace("is 1", "is 9") if index == 1 else right

    with FakeTeacher(sometimes_wrong) as teacher:
        job = annotation(tmp_path, teacher.url, sums(3), samples=3)
        assert dataclasses.replace(job, counterfactuals=True).run() == 0
    rows = read_rows(tmp_path / "r.jsonl")
    assert [row["counterfactuals"] for row in rows] == [
        [{"label": f"9{i}", "rationale": f"{i} and 10 make 9{i}."}] for i in range(3)
    ]
    train = FileSource("jsonl", tmp_path / "r.jsonl").read(["train"]).splits["train"]
    assert [example.counterfactuals for example in train] == [
        (Pair(f"9{i}", f"{i} and 10 make 9{i}."),) for i in range(3)
    ]


def test_a_request_has_the_prompt_the_question_and_the_settings(tmp_path):
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(1), samples=2, settings={"top_k": 5, "max_tokens": None}).run()
    (body,) = teacher.requests
    prompt = load_prompt("generic")
    assert [message["role"] for message in body["messages"]] == ["system", *["user", "assistant"] * 5, "user"]
    assert body["messages"][0]["content"] == prompt.instructions
    assert body["messages"][2]["content"] == prompt.examples[0].completion
    assert body["messages"][-1]["content"] == "Q: What is 0 + 10?\nA:"
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "oracle-1",
        "temperature": 0.7,
        "n": 2,
        "top_k": 5,
    }


FAULTS = {
    "429": fake.status(429, headers={"Retry-After": "0.05"}),
    "408": fake.status(408),
    "500": fake.status(500),
    "503": fake.status(503),
    "slow": fake.slow(1.5),
    "trickle": fake.trickle(1.5),
    "truncated": fake.truncated_json,
    "cut off": fake.cut_off,
    "dropped": fake.dropped,
    "web page": fake.web_page,
    "error in 200": fake.error_in_200,
    "no choices": lambda handler: handler.reply(200, {"choices": []}),
    "no message": lambda handler: handler.reply(200, {"choices": [{"finish_reason": "stop"}]}),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_failed_request_is_retried(tmp_path, fault):
    with FakeTeacher(faults=(fault,)) as teacher:
        assert annotation(tmp_path, teacher.url, sums(3), timeout=0.6, concurrency=1).run() == 0
    assert len(teacher.requests) == 4
    assert teacher.asked[0] == teacher.asked[1]
    assert teacher.times[1] - teacher.times[0] < 1.4  # also if bytes keep arriving
    assert [row["teacher_label"] for row in read_rows(tmp_path / "r.jsonl")] == ["10", "11", "12"]
    assert report(tmp_path)["responses"] == 3


def test_a_retry_waits_as_long_as_the_server_sets(tmp_path):
    with FakeTeacher(faults=(fake.status(429, headers={"Retry-After": "0.7"}),)) as teacher:
        annotation(tmp_path, teacher.url, sums(1)).run()
    assert 0.7 <= teacher.times[1] - teacher.times[0] < 2.0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (fake.status(401, "bad key"), "401 bad key; check the key"),
        (fake.status(403, "not yours"), "403 not yours; check that the key"),
        (fake.status(404, "no model oracle-1"), "404 no model oracle-1; check --model=oracle-1"),
        (fake.status(400, "n must be 1"), "400 n must be 1; change the request"),
        (fake.status(429, "pay first", kind="insufficient_quota"), "429 pay first; the quota is exhausted"),
    ],
)
def test_a_permanent_error_ends_the_run_at_once(tmp_path, fault, message):
    (tmp_path / "r.jsonl").write_text("of an earlier run\n")
    with FakeTeacher(faults=(fault,)) as teacher:
        with pytest.raises(UserError) as raised:
            annotation(tmp_path, teacher.url, sums(9), concurrency=1).run()
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert len(teacher.requests) == 1
        assert (tmp_path / "r.jsonl").read_text() == "of an earlier run\n"
        assert annotation(tmp_path, teacher.url, sums(9)).run() == 0
    assert len(read_rows(tmp_path / "r.jsonl")) == 9


def test_responses_in_flight_when_the_run_ends_are_journaled(tmp_path):
    """A permanent error arrives while three other requests, which are paid for, are in flight."""
    with FakeTeacher(faults=(fake.status(404), *[fake.slow(0.3)] * 3)) as teacher:
        with pytest.raises(UserError):
            annotation(tmp_path, teacher.url, sums(9), concurrency=4).run()
        assert len(teacher.requests) == 4
    assert len(read_rows(tmp_path / "r.journal.jsonl")) == 1 + 3


def test_unanswered_questions_are_reported_and_requested_by_the_next_run(tmp_path):
    with FakeTeacher(faults=[fake.status(500, "out of memory")] * 4) as teacher:
        run = annotation(tmp_path, teacher.url, sums(5), concurrency=1)
        with pytest.raises(UserError, match=r"1 of 5 questions .*first: q0: 500 out of memory.*same command"):
            run.run()
        rows = read_rows(tmp_path / "r.jsonl")
        assert [len(row["rationale"]) for row in rows] == [0, 1, 1, 1, 1]
        assert (rows[0]["label"], rows[0]["teacher_label"], rows[0]["weight"]) == ("10", None, [])
        assert report(tmp_path)["missing"] == 1
        del teacher.requests[:]
        assert run.run() == 0
    assert teacher.asked == ["Q: What is 0 + 10?\nA:"]
    assert [len(row["rationale"]) for row in read_rows(tmp_path / "r.jsonl")] == [1] * 5


def test_a_server_that_is_down_ends_the_run(tmp_path):
    with FakeTeacher(faults=[fake.status(500)] * 1000) as teacher:
        with pytest.raises(UserError, match="20 questions in a row failed"):
            annotation(tmp_path, teacher.url, sums(100), max_retries=0, concurrency=1).run()
    assert len(teacher.requests) == 20


def test_failures_among_answers_do_not_end_the_run(tmp_path):
    no_fault = fake.slow(0)
    with FakeTeacher(faults=[fake.status(500), no_fault] * 25) as teacher:
        with pytest.raises(UserError, match="25 of 50 questions"):
            annotation(tmp_path, teacher.url, sums(50), max_retries=0, concurrency=1).run()
    assert len(teacher.requests) == 50


def test_samples_that_a_response_lacks_are_requested_again(tmp_path):
    with FakeTeacher() as teacher:
        teacher.largest_n = 2
        annotation(tmp_path, teacher.url, sums(1), samples=5).run()
    assert [body.get("n", 1) for body in teacher.requests] == [5, 3, 1]
    assert report(tmp_path)["samples"] == 5


def test_one_sample_per_request_and_more_samples_in_a_later_run(tmp_path):
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(2), samples=2, samples_per_request=1).run()
        assert [body.get("n") for body in teacher.requests] == [None] * 4
        annotation(tmp_path, teacher.url, sums(2), samples=5).run()
        assert [body["n"] for body in teacher.requests[4:]] == [3, 3]
        annotation(tmp_path, teacher.url, sums(2), samples=3).run()
    assert len(teacher.requests) == 6
    assert report(tmp_path)["samples"] == 6


def test_concurrency_bounds_the_requests_in_flight(tmp_path):
    with FakeTeacher(delay_s=0.1) as teacher:
        annotation(tmp_path, teacher.url, sums(12), concurrency=3).run()
    assert teacher.most_in_flight == 3


def test_requests_respect_the_rate_limit(tmp_path):
    with FakeTeacher(faults=(fake.status(500),)) as teacher:
        annotation(tmp_path, teacher.url, sums(4), requests_per_minute=600).run()
    assert len(teacher.times) == 5  # retries count
    assert teacher.times[-1] - teacher.times[0] > 0.35


def test_tokens_respect_the_rate_limit_by_the_count_of_the_server(tmp_path):
    """A response has 110 tokens, which take 0.2 s at 33,000 a minute; three times as many are reserved first."""
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(4), concurrency=1, samples=1, tokens_per_minute=33_000).run()
    assert 0.55 < teacher.times[-1] - teacher.times[0] < 1.5


def test_rationalization_states_the_label_if_no_sample_gives_it(tmp_path):
    def complete(text: str, sample: int) -> str:
        return "Adding and one more. So the answer is 12." if "correct answer is 12" in text else add_up(text, sample)

    with FakeTeacher(complete) as teacher:
        rows = sums(3, wrong_gold=[1, 2])
        assert annotation(tmp_path, teacher.url, rows, rationalize=True).run() == 0
        assert sorted("given" in text for text in teacher.asked) == [False] * 3 + [True] * 2
        hinted = [record["id"] for record in read_rows(tmp_path / "r.journal.jsonl") if record.get("hinted")]
        assert sorted(hinted) == ["q1", "q2"]
        assert [row["rationale"] for row in read_rows(tmp_path / "r.jsonl")] == [
            ["0 and 10 make 10."],
            ["Adding and one more."],
            [],
        ]
        assert report(tmp_path)["rationales"]["rationalized"] == 1
        assert report(tmp_path)["rationales"]["rationalized_drop"] == 1
        assert report(tmp_path)["agreement_samples"]["accuracy"] == pytest.approx(1 / 3)

        lighter = Policy("downweight", 0.25, 0.5)
        annotation(tmp_path, teacher.url, rows, rationalize=True, policy=lighter).run()
        assert [row["weight"] for row in read_rows(tmp_path / "r.jsonl")] == [[1.0], [0.25, 0.5], [0.25]]
        annotation(tmp_path, teacher.url, rows).run()
        assert [len(row["rationale"]) for row in read_rows(tmp_path / "r.jsonl")] == [1, 0, 0]
        assert len(teacher.requests) == 5

        rows[2]["label"] = "77"  # after a corrected label, responses to a hint with the former one are unused
        assert annotation(tmp_path, teacher.url, rows, rationalize=True).run() == 0
        assert len(teacher.requests) == 6 and "correct answer is 77" in teacher.asked[-1]


def test_rationalization_waits_for_all_samples(tmp_path):
    with FakeTeacher(faults=(fake.slow(0), fake.status(500))) as teacher:
        run = annotation(tmp_path, teacher.url, sums(1, wrong_gold=[0]), samples=2, max_retries=0, rationalize=True)
        teacher.largest_n = 1
        with pytest.raises(UserError, match="1 of 1 questions"):
            run.run()
        assert len(teacher.requests) == 2
        assert run.run() == 0
        assert ["given" in text for text in teacher.asked[2:]] == [False, True, True]
        fewer = dataclasses.replace(run, samples=1)
        assert fewer.run() == 0
    assert report(tmp_path)["rationales"]["rationalized_drop"] == 1


def test_a_prompt_without_hint_is_refused_before_any_request(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('parse = "generic"\nquestion = "{input}"')
    with FakeTeacher() as teacher:
        with pytest.raises(UserError, match="own.toml: no hint"):
            annotation(tmp_path, teacher.url, sums(1), prompt=own, rationalize=True).run()
        assert not teacher.requests


def test_a_question_that_does_not_fit_the_prompt_is_refused_before_any_request(tmp_path):
    rows = [{"input": "A dog runs.</s>It sleeps."}, {"input": "A dog runs."}]
    with FakeTeacher() as teacher:
        with pytest.raises(UserError, match="q.jsonl:2: no </s>"):
            annotation(tmp_path, teacher.url, rows, prompt="esnli").run()
        assert not teacher.requests


def test_lone_surrogates_become_question_marks(tmp_path):
    with FakeTeacher(lambda *_: "Smile \ud83d. So the answer is 10.") as teacher:
        assert annotation(tmp_path, teacher.url, sums(1)).run() == 0
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == ["Smile ?."]


def test_another_policy_needs_neither_requests_nor_a_key(tmp_path, monkeypatch):
    rows = sums(4, wrong_gold=[2])
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, rows).run()
    dropped = (tmp_path / "r.jsonl").read_bytes()
    (tmp_path / "link.jsonl").hardlink_to(tmp_path / "r.jsonl")
    monkeypatch.delenv("COTMI_TEST_KEY", raising=False)
    annotation(tmp_path, None, rows, policy=Policy("keep", 0.25, 1.0)).run()
    assert [row["weight"] for row in read_rows(tmp_path / "r.jsonl")] == [[1.0]] * 4
    annotation(tmp_path, None, rows, policy=Policy("downweight", 0.1, 1.0)).run()
    assert [row["weight"] for row in read_rows(tmp_path / "r.jsonl")] == [[1.0], [1.0], [0.1], [1.0]]
    annotation(tmp_path, None, rows).run()
    assert (tmp_path / "r.jsonl").read_bytes() == dropped
    assert len(teacher.requests) == 4
    assert (tmp_path / "link.jsonl").read_bytes() == dropped  # the file is replaced, not overwritten
    assert not list(tmp_path.glob("*.tmp"))


def test_without_gold_the_majority_is_the_label(tmp_path):
    def complete(text: str, sample: int) -> str:
        if "1 + 10" in text:
            return "Nobody knows."
        return f"Way {sample}. So the answer is {'blue' if sample == 1 else 'red'}."

    rows = [{"input": row["input"]} for row in sums(2)]
    with FakeTeacher(complete) as teacher:
        annotation(tmp_path, teacher.url, rows, samples=3).run()
    (row,) = read_rows(tmp_path / "r.jsonl")  # a question with neither gold nor an answer has no label
    assert (row["id"], row["label"], row["teacher_label"]) == ("q/0", "red", "red")
    assert row["rationale"] == ["Way 0.", "Way 2."]
    counts = report(tmp_path)
    assert (counts["with_gold"], counts["without_label"], counts["parse_failures"]) == (0, 1, 3)
    assert counts["agreement_samples"] is counts["agreement_majority"] is None


def test_the_report_counts_samples_tokens_and_cost(tmp_path, capsys):
    def complete(text: str, sample: int) -> str:
        return "No idea" if sample == 2 else add_up(text, sample) if sample == 0 else "Guess now. So the answer is 11."

    with FakeTeacher(complete) as teacher:
        annotation(tmp_path, teacher.url, sums(2), samples=3, prices=Prices(2.0, 10.0)).run()
    counts = report(tmp_path)
    assert (counts["questions"], counts["samples"], counts["parse_failures"]) == (2, 6, 2)
    assert counts["agreement_samples"]["accuracy"] == pytest.approx(3 / 6)
    assert counts["agreement_majority"]["accuracy"] == 1.0  # one tie, won by the first answer, and one majority
    assert counts["rationales"]["consistent"] == 3 and counts["rationales"]["inconsistent_drop"] == 3
    assert counts["words"] == {"mean": 4.0, "p95": 5.0, "max": 5}
    assert (counts["tokens_in"], counts["tokens_out"]) == (200, 20)
    assert counts["cost"] == pytest.approx(200 * 2e-6 + 20 * 10e-6)
    assert "200 in, 20 out, 2 responses, $0.0006" in capsys.readouterr().out


def test_the_report_warns_of_cut_completions_missing_counts_and_another_model(tmp_path, capsys):
    cut = {"choices": [{"message": {"content": "3 and"}, "finish_reason": "length"}], "model": "smaller-0"}
    with FakeTeacher(faults=(lambda handler: handler.reply(200, cut),)) as teacher:
        annotation(tmp_path, teacher.url, sums(2), concurrency=1).run()
    counts = report(tmp_path)
    assert (counts["cut_by_length"], counts["parse_failures"], counts["responses_without_count"]) == (1, 1, 1)
    assert counts["models"] == {"smaller-0": 1, "oracle-1": 1}
    assert "requested oracle-1, but smaller-0 answered" in capsys.readouterr().out


def test_a_refusal_without_text_is_no_readable_answer(tmp_path):
    refusal = {
        "choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}],
        "model": "oracle-1",
    }
    with FakeTeacher(faults=(lambda handler: handler.reply(200, refusal),)) as teacher:
        with pytest.raises(UserError, match="of 1 samples 0 have an answer .* one is empty"):
            annotation(tmp_path, teacher.url, sums(1)).run()
    assert len(teacher.requests) == 1
    assert report(tmp_path)["parse_failures"] == 1


def test_a_dry_run_prints_the_prompt_and_counts_the_missing_requests(tmp_path, capsys):
    with FakeTeacher() as teacher:
        fresh = annotation(tmp_path, teacher.url, sums(3), samples=4, samples_per_request=3)
        fresh.dry_run()
        assert not (tmp_path / "r.journal.jsonl").exists() and not teacher.requests
        out = capsys.readouterr().out
        assert "[user]\nQ: What is 0 + 10?\nA:" in out and "6 requests for 3 of 3 questions" in out
        annotation(tmp_path, teacher.url, sums(1), samples=4).run()
        fresh.dry_run()
    assert "4 requests for 2 of 3 questions" in capsys.readouterr().out


def test_equations_are_compared_by_value(tmp_path):
    rows = [{"input": "Six shelves of seven books.\nHow many?", "label": "( 7.0 * 6.0 )"}]
    completions = ("6 * 7. The answer is (6 * 7).", "5 of 9. The answer is (5 * 9).")
    with FakeTeacher(lambda _, sample: completions[sample]) as teacher:
        annotation(tmp_path, teacher.url, rows, samples=2, prompt="svamp").run()
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert (row["label"], row["teacher_label"], row["rationale"]) == ("( 7.0 * 6.0 )", "(6 * 7)", ["6 * 7."])


def test_inputs_are_not_overwritten(tmp_path):
    run = annotation(tmp_path, "http://127.0.0.1:9/v1", sums(1))
    for changed in ({"output": tmp_path / "q.jsonl"}, {"journal": run.output}, {"journal": tmp_path / "q.jsonl"}):
        with pytest.raises(UserError, match="would be overwritten"):
            dataclasses.replace(run, **changed).run()


def test_body_is_a_json_object_that_cannot_replace_model_messages_or_n():
    for body in ("{", "[1]", '{"n": 3}', '{"model": "x"}', '{"stream": true}'):
        with pytest.raises(UserError, match="--body="):
            request_settings(0.7, 64, body)
    assert request_settings(0.7, 64, json.dumps({"temperature": None})) == {"temperature": None, "max_tokens": 64}
