"""A judge's run against a fake server: scores, pairs in both orders, planted biases, answers that cannot be read."""

import json

import fake_teacher as fake
import numpy as np
import pytest
from fake_teacher import FakeTeacher
from judged import judging, make_run, number_of, plain, results, shown_explanations

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.comparison import items_interval


def by_number(text: str, sample: int) -> str:
    return f"It follows.\nScore: {1 + number_of(text) // 3 % 5}"


def longer(number: int) -> str:
    return plain(number) + " So it is." * (1 + number % 3)


def test_every_rationale_is_scored_and_the_mean_has_a_clustered_interval(tmp_path, capsys):
    run = make_run(tmp_path / "a")
    with FakeTeacher(by_number) as server:
        judged = judging(server.url, run)
        assert judged.judge() == 0
    assert len(server.requests) == 30
    result, rows = results(judged)
    scores = np.array([1 + number // 3 % 5 for number in range(30)])
    assert [row["scores"] for row in rows] == [[score] for score in scores]
    expected = items_interval(scores, np.arange(30) // 3)
    assert result["values"]["score"] == {"value": scores.mean(), "interval": [expected.low, expected.high], "n": 30}
    assert result["clusters"] == 10 and result["score_counts"] == dict.fromkeys("12345", 6)
    assert result["items"]["judged"] == 30 and result["answers"] == {"n": 30, "unreadable": 0, "cut_by_length": 0}
    assert result["model"] == "oracle-1" and result["settings"] == {"temperature": 0.0, "max_tokens": 64}
    assert result["prompt"] == judged.rubric.digest and result["workdirs"] == [run]
    printed = capsys.readouterr()
    assert f"{scores.mean():.2f}  (95% interval {expected.low:.2f} to {expected.high:.2f}), 10 clusters" in printed.out
    assert "30 requests about 30 of 30 items: about " in printed.err  # the estimate comes first


def test_a_request_has_rubric_problem_gold_and_rationale(tmp_path):
    tricky = "Premise.</s>Hypothesis {gold} \\1 <b>"
    run = make_run(tmp_path / "a", lambda number: "{input} {rationale} \\g<0>", size=2)
    path = tmp_path / "a/evaluation/test/predictions.jsonl"
    path.write_text(path.read_text().replace("What is 0 + 10?", tricky.replace("\\", "\\\\")))
    with FakeTeacher(lambda *_: "Score: 4") as server:
        judged = judging(server.url, run, concurrency=1)
        judged.judge()
    system, user = server.requests[0]["messages"]
    assert system == {"role": "system", "content": judged.rubric.instructions}
    assert "<problem>\nPremise.\nHypothesis {gold} \\1 <b>\n</problem>" in user["content"]
    assert "<correct_answer>\n= 10\n</correct_answer>" in user["content"]
    assert shown_explanations(user["content"]) == ["{input} {rationale} \\g<0>"]
    assert "predicted" not in user["content"] and server.requests[0]["temperature"] == 0.0


def test_an_empty_rationale_is_not_judged_but_counted(tmp_path, capsys):
    run = make_run(tmp_path / "a", lambda number: {0: None, 1: "", 2: " \n"}.get(number, plain(number)))
    with FakeTeacher(by_number) as server:
        judged = judging(server.url, run)
        judged.judge()
    result, rows = results(judged)
    assert len(server.requests) == 27 and result["values"]["score"]["n"] == 27
    assert result["items"]["empty"] == 3 and result["items"]["empty_by_run"] == [3]
    assert rows[0] == {"id": "s/0", "cluster": "c0", "status": "empty", "words": [0]}
    assert "27 judged, 3 with an empty rationale, not judged" in capsys.readouterr().out


def test_answers_in_all_forms_are_read_and_the_others_counted(tmp_path, capsys):
    forms = {
        0: "4/5",
        1: "Score: four",
        2: 'Here it is:\n```json\n{"score": 4}\n```',
        3: "Die Begründung stimmt.\nBewertung: 4 von 5",
        4: "I'm sorry, but I can't rate this.",
        5: "Die Begründung stimmt.",
        6: "banana 17 ☃ \x1b[31m",
        7: "",
    }
    with FakeTeacher(lambda text, _: forms.get(number_of(text), "Score: 2")) as server:
        judged = judging(server.url, make_run(tmp_path / "a", size=12))
        assert judged.judge() == 0
    result, rows = results(judged)
    assert [row["scores"] for row in rows] == [[4]] * 4 + [[None]] * 4 + [[2]] * 4
    assert result["values"]["score"]["value"] == 3.0 and result["values"]["score"]["n"] == 8
    assert result["items"]["unreadable"] == 4 and result["answers"]["unreadable"] == 4
    out = capsys.readouterr().out
    assert "8 judged, 4 without a readable answer" in out and "12, 4 of them unreadable" in out
    assert "the mean is of items with a readable score" in out


@pytest.mark.parametrize("against", [False, True])
def test_a_judge_that_never_answers_in_form_ends_the_run(tmp_path, against):
    other = make_run(tmp_path / "b", longer) if against else None
    with FakeTeacher(lambda *_: "I would rather talk\nabout the weather.") as server:
        judged = judging(server.url, make_run(tmp_path / "a"), other, concurrency=1)
        with pytest.raises(UserError, match="0 state what the rubric asks for, .* after 20 items in a row") as raised:
            judged.judge()
    assert "\n" not in str(raised.value) and "weather" in str(raised.value) and "--rubric" in str(raised.value)
    assert len(server.requests) < 60 and not judged.output.exists()


def test_too_few_readable_answers_are_an_error_after_the_results(tmp_path):
    with FakeTeacher(lambda text, _: "Score: 3" if number_of(text) % 3 == 0 else "Hm.") as server:
        run = make_run(tmp_path / "a")
        judged = judging(server.url, run)
        with pytest.raises(UserError, match=r"of 30 answers 10 state .* fewer than --min_readable=0.5"):
            judged.judge()
        assert results(judged)[0]["values"]["score"]["n"] == 10
        assert judging(server.url, run, min_readable=0.2).judge() == 0
    assert len(server.requests) == 30


def test_without_any_readable_answer_there_is_no_result(tmp_path):
    with FakeTeacher(lambda *_: "Hm.") as server:
        judged = judging(server.url, make_run(tmp_path / "a"), min_readable=0.0)
        with pytest.raises(
            UserError, match="of 30 answers 0 state .* and without one there is no result; one is 'Hm.'"
        ):
            judged.judge()
    assert len(server.requests) == 30 and not judged.output.exists()


def test_cut_answers_name_max_tokens(tmp_path):
    with FakeTeacher(lambda *_: "First I look at") as server:
        server.finish_reason = "length"
        with pytest.raises(UserError, match="cut by the limit on tokens: raise --max_tokens"):
            judging(server.url, make_run(tmp_path / "a", size=3)).judge()


def test_pairs_are_shown_in_both_orders_and_the_better_side_wins(tmp_path, capsys):
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", longer)

    def prefer_short(text: str, sample: int) -> str:
        first, second = shown_explanations(text)
        return f"Better: {1 if len(first) < len(second) else 2}"

    with FakeTeacher(prefer_short) as server:
        judged = judging(server.url, *runs)
        assert judged.judge() == 0
    pairs = {tuple(shown_explanations(text)) for text in server.asked}
    expected = {(plain(number), longer(number)) for number in range(30)}
    assert pairs == expected | {pair[::-1] for pair in expected} and len(server.requests) == 60
    result, rows = results(judged)
    assert [row["preferences"] for row in rows] == [[[1, 1]]] * 30
    values = result["values"]
    assert values["preference"]["value"] == values["wins"]["value"] == values["wins_if_shorter"]["value"] == 1
    assert values["flips"]["value"] == values["longer_wins"]["value"] == 0 and values["first_wins"]["value"] == 0.5
    out = capsys.readouterr().out
    assert "A is preferred" in out and "the judge prefers the shorter" in out and "prefers the first" not in out


def test_planted_position_bias_is_found_and_printed(tmp_path, capsys):
    def prefer_first(text: str, sample: int) -> str:
        number = number_of(text)
        fair = 1 if shown_explanations(text)[0] == plain(number) else 2  # prefers A, whatever the order
        return f"Better: {1 if number % 10 < 7 else fair}"

    with FakeTeacher(prefer_first) as server:
        judged = judging(server.url, make_run(tmp_path / "a"), make_run(tmp_path / "b", longer))
        judged.judge()
    values = results(judged)[0]["values"]
    assert values["flips"]["value"] == values["ties"]["value"] == 0.7 and values["wins"]["value"] == pytest.approx(0.3)
    assert values["first_wins"]["value"] == 0.85 and values["first_wins"]["interval"][0] > 0.6
    assert values["order_agreement"]["value"] < 0.2
    out = capsys.readouterr().out
    assert "flips with the order  70.0%  (95% interval" in out and "they count as ties" in out
    first = next(line for line in out.splitlines() if line.startswith("first shown wins"))
    assert first.startswith("first shown wins      85.0%") and first.endswith("the judge prefers the first")


def test_pairs_that_need_no_judge_are_counted(tmp_path, capsys):
    runs = [
        make_run(tmp_path / name, lambda number, skip=skip: None if number in skip else plain(number % 25))
        for name, skip in (("a", (0, 1)), ("b", (1, 2, 3)))
    ]
    path = tmp_path / "b/evaluation/test/predictions.jsonl"
    path.write_text(path.read_text().replace('"4 and 10 make 14."', '"4 + 10 = 14"'))
    with FakeTeacher(lambda *_: "Better: tie") as server:
        judged = judging(server.url, *runs)
        judged.judge()
    items = results(judged)[0]["items"]
    assert (items["empty"], items["empty_by_run"], items["identical"], items["judged"]) == (4, [2, 3], 24, 2)
    assert len(server.requests) == 4
    assert "4 with an empty rationale (A 2, B 3), not judged" in " ".join(capsys.readouterr().out.split())


def test_repeats_have_an_agreement_and_a_warning_at_temperature_0(tmp_path, capsys):
    def noisy(text: str, sample: int) -> str:
        return f"Score: {min(5, 1 + number_of(text) // 8 + sample * (number_of(text) % 2))}"

    run = make_run(tmp_path / "a")
    with FakeTeacher(noisy) as server:
        judged = judging(server.url, run, repeats=2, temperature=0.7)
        judged.judge()
        assert {body["n"] for body in server.requests} == {2}
        result, rows = results(judged)
        assert rows[1]["scores"] == [1, 2] and 0.5 < result["values"]["repeat_agreement"]["value"] < 0.95
        out = " ".join(capsys.readouterr().out.split())
        assert "Krippendorff's alpha (ordinal)" in out and "equal in 50.0% of pairs, chance included" in out
        assert "at temperature 0" not in out
        judging(server.url, run).judge()
        assert "not available: agreement of repeats needs --repeats=2" in capsys.readouterr().out
        judging(server.url, run, repeats=2).judge()
    assert "at temperature 0 repeats are nearly the same" in " ".join(capsys.readouterr().out.split())


def test_a_failed_request_is_retried_and_a_missing_answer_reported(tmp_path):
    run = make_run(tmp_path / "a", size=5)
    with FakeTeacher(by_number, faults=[fake.status(429), fake.truncated_json]) as server:
        judged = judging(server.url, run, concurrency=1, max_retries=2)
        assert judged.judge() == 0
    assert len(server.requests) == 7 and results(judged)[0]["values"]["score"]["n"] == 5
    with FakeTeacher(by_number, faults=[fake.status(500, "out of memory")]) as server:
        judged = judging(server.url, run, concurrency=1, max_retries=0, temperature=0.5)
        with pytest.raises(UserError, match="1 of 5 items are missing answers .first: s/0: 500 out of memory"):
            judged.judge()
        result, rows = results(judged)
        assert result["items"]["missing"] == 1 and result["values"]["score"]["n"] == 4
        assert result["items"]["unreadable"] == 0
        assert rows[0]["scores"] == [None]
        assert judged.judge() == 0
    assert results(judged)[0]["items"]["missing"] == 0 and len(server.requests) == 6
    with FakeTeacher(by_number, faults=[fake.status(500, "out of memory")]) as server:
        judged = judging(server.url, run, concurrency=1, max_retries=0, temperature=0.5, repeats=2)
        with pytest.raises(UserError, match="1 of 5 items are missing answers"):
            judged.judge()  # each item has one answer from before
    items = results(judged)[0]["items"]
    assert (items["judged"], items["missing"], items["unreadable"]) == (5, 1, 0)


def test_a_server_that_is_unreachable_or_refuses_is_one_line(tmp_path):
    run = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="20 questions in a row failed, last: connection failed.*is the server up"):
        judging("http://127.0.0.1:9/v1", run, max_retries=0).judge()
    with FakeTeacher(faults=[fake.status(401, "bad key")] * 9) as server:
        judged = judging(server.url, run, concurrency=1)
        with pytest.raises(UserError, match="401 bad key; check the key"):
            judged.judge()
    assert not judged.output.exists() and len(server.requests) == 1


def test_the_results_have_everything_to_compute_them_again(tmp_path):
    with FakeTeacher(by_number) as server:
        judged = judging(server.url, make_run(tmp_path / "a"))
        judged.judge()
    result, rows = results(judged)
    scores = np.array([np.mean(row["scores"]) for row in rows])
    found = items_interval(scores, np.unique([row["cluster"] for row in rows], return_inverse=True)[1])
    assert [found.low, found.high] == result["values"]["score"]["interval"]
    assert json.loads(judged.journal.read_text().splitlines()[0])["prompt"] == result["prompt"]
