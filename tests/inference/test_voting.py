"""Votes of sampled rationales on a label."""

import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.inference.voting import Sampling, Vote, vote
from cotmi_jax.models.decoding import Decoding


@pytest.mark.parametrize(
    ("labels", "winner", "share"),
    [
        (["yes"], 0, 1.0),
        (["no", "yes", " yes", "maybe"], 1, 0.5),
        (["no", "yes", "yes", "no"], 0, 0.5),  # of a tie the first
        (["", "", "", "yes"], 3, 0.25),  # an output without a label has no vote, but counts
        (["", " "], 0, 0.0),
        (["( 1 + 2 )", "( 2 + 1 )", "3"], 0, 1 / 3),
    ],
)
def test_the_label_with_most_votes_wins(labels: list[str], winner: int, share: float) -> None:
    assert vote(labels, "text") == Vote(winner, share)


def test_equations_of_one_value_vote_together() -> None:
    assert vote(["4", "( 1 + 2 )", "( 2 + 1 )", "x", "x"], "equation") == Vote(1, 0.4)


def test_votes_need_samples_of_rationales() -> None:
    Sampling(votes=3).check(Decoding("sample"), "single_task")
    Sampling(votes=1).check(Decoding("greedy"), "dss")
    with pytest.raises(UserError, match="--num_samples=3: --method=beam gives one answer; use --method=sample"):
        Sampling(votes=3).check(Decoding("beam"), "single_task")
    with pytest.raises(UserError, match="objective dss writes the label without one: leave it out"):
        Sampling(votes=3).check(Decoding("sample"), "dss")
