"""Scores and preferences are read from the forms that models write, and nothing from those that state none."""

import time

import pytest

from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.judge_answers import read_choice, read_score

SCORES = {
    "It follows.\nScore: 4": 4,
    "4": 4,
    "4/5": 4,
    "[[4]]": 4,
    "4 stars": 4,
    r"\boxed{4}": 4,
    "Score: four": 4,
    "Overall rating is five.": 5,
    "**Score:** 4/5": 4,
    "Score: **4**.": 4,
    "It is fine.\n\n### Score: 3 out of 5": 3,
    "Score: 4.0": 4,
    "Final score - 2": 2,
    "Score: 4. A longer text would be nice.": 4,
    "I would give it 4/5 since it is right": 4,
    "A score of 5 would need an equation.\nScore: 4": 4,
    "<think>Score: 1</think>Score: 5": 5,
    '{"score": 4}': 4,
    '{"score": "4/5"}': 4,
    'Here:\n```json\n{"reason": "all 5 steps", "score": 2}\n```': 2,
    "Die Begründung ist klar.\nBewertung: 4 von 5": 4,
    "评分：４分": 4,
    "Оценка: 4 из 5": 4,
    # Not readable: refusals, other languages without a score, nonsense, several values, ranges, other scales.
    "": None,
    "I cannot rate this.": None,
    "As an AI I can not give a score from 1 to 5.": None,
    "I'm sorry, I can't help with 5 of these.": None,
    "Die Begründung ist klar.": None,
    "banana 17 ☃": None,
    "Score: 3 for clarity. Score: 4 for logic.": None,
    "between 3/5 and 4/5 perhaps": None,
    "Score: 1-5": None,
    "Score: 3 or 4": None,
    "Score: 4.5": None,
    "Score: 7": None,
    "Score: 0": None,
    "Score: -4": None,
    "Score: 45": None,
    "Score: 4%": None,
    "Score: 8/10": None,
    "Score: 4/10": None,
    "On 4/5/2020 it was": None,
    '{"score": 9}': None,
    '{"score": 4.5}': None,
    '{"score": 4, "rating": 3}': None,
    '{"error": "busy"}': None,
}
CHOICES = {
    "Better: 1": "1",
    "It adds a step.\nBetter: 2": "2",
    "Better: tie": "tie",
    "Better: both": "tie",
    "Tie": "tie",
    "2": "2",
    "[[A]]": "1",
    "Winner: B": "2",
    "**Better:** Rationale 2": "2",
    "Better: the first one.": "1",
    "Explanation 2 is better.": "2",
    "The second explanation is better because it adds.": "2",
    "A is better": "1",
    '{"better": 1}': "1",
    '```json\n{"reason": "x", "better": "tie"}\n```': "tie",
    "Besser: 2": "2",
    "更好：2": "2",
    "<think>Better: 1</think>Better: 2": "2",
    "": None,
    "I cannot choose.": None,
    "I'm sorry, a problem.": None,
    "Beide sind gut.": None,
    "Better: 3": None,
    "Better: 12": None,
    "Better: 1 or 2": None,
    "Better than a banana": None,
    "It is the better: a good one": None,
    "Explanation 1 is better. Explanation 2 is better.": None,
    "Score: 4": None,
}


@pytest.mark.parametrize(("text", "score"), SCORES.items())
def test_a_score_is_read(text: str, score: int | None) -> None:
    assert read_score(Choice(text, "stop")) == score


@pytest.mark.parametrize(("text", "choice"), CHOICES.items())
def test_a_choice_is_read(text: str, choice: str | None) -> None:
    assert read_choice(Choice(text, "stop")) == choice


@pytest.mark.parametrize("piece", ["1 ", "score: ", "x", "better: 1 ", "first one ", "{", "4/5", "\n1", "[", "the "])
def test_long_answers_take_time_linear_in_their_length(piece: str) -> None:
    answer = Choice(piece * (200_000 // len(piece)), "length")
    start = time.process_time()
    read_score(answer), read_choice(answer)
    assert time.process_time() - start < 2
