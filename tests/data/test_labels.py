"""Model output is evaluated as arithmetic only."""

import time
from fractions import Fraction

import pytest

from cotmi_jax.data.labels import MAX_CHARACTERS, MAX_DEPTH, equal_values, evaluate_expression, is_correct


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 84.0 / 2.0 )", 42.0),
        ("( ( 12 + 5 ) * 3 )", 51.0),
        ("2 + 3 * 4", 14.0),
        ("20 - 5 - 3", 12.0),  # from left to right: 20 - (5 - 3) is 18
        ("64 / 4 / 2 * 3", 24.0),
        ("((((7))))", 7.0),
        ("-(3 - 5) * -2", -4.0),
        ("4--6", 10.0),
        ("- - 3", 3.0),
        (".5 + 2.", 2.5),
        ("007", 7.0),
        ("\t1 +\n 1 \r\n", 2.0),
        ("1.5*1.5", 2.25),
    ],
)
def test_value_of_an_expression(text: str, value: float) -> None:
    assert evaluate_expression(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "9**9**9",
        "9//2",
        "7 % 2",
        "2 ^ 3",
        pytest.param("(" * 10_000 + "1" + ")" * 10_000, id="parentheses"),
        pytest.param("(" * 10_000, id="open-parentheses"),
        pytest.param("-" * 10_000 + "1", id="minuses"),
        "nan",
        "inf",
        "1e999",
        "1e3",
        pytest.param("9" * 400, id="huge"),
        pytest.param("9" * 300 + "*" + "9" * 300, id="overflow"),
        pytest.param(f"1 / .{'0' * 200}1 / .{'0' * 200}1", id="overflow-by-division"),
        "",
        " \n",
        "()",
        "( 1 + 2",
        "1 + 2 )",
        "1 +",
        "* 2",
        "+ 2",
        "1 2",
        "3 ( 4 )",
        "1.2.3",
        ".",
        "1,000 + 1",
        "$5 + 1",
        "50%",
        "0x10",
        "1_000",
        "٣ + ٤",
        "３",
        "½",
        "2 − 1",  # a typographic minus
        "1\u00a0+ 1",
        "1 / 0",
        "1 / ( 2 - 2 )",
        "0 / 0",
        "( 8 / 2 ) = 4",
    ],
)
def test_anything_else_has_no_value_and_takes_no_time(text: str) -> None:
    start = time.process_time()
    assert evaluate_expression(text) is None
    assert time.process_time() - start < 0.1


def test_limits_are_the_stated_ones() -> None:
    assert evaluate_expression("1".rjust(MAX_CHARACTERS)) == 1.0
    assert evaluate_expression("1".rjust(MAX_CHARACTERS + 1)) is None
    levels = MAX_DEPTH - 1  # the number itself is the deepest level
    assert evaluate_expression("(" * levels + "1" + ")" * levels) == 1.0
    assert evaluate_expression("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) is None
    assert evaluate_expression(" + ".join(["( 1 )"] * 100)) == 100.0  # depth is not the number of parentheses


def test_equal_values_is_relative_and_none_equals_nothing() -> None:
    assert equal_values(1 / 3, 0.33333334)
    assert equal_values(3e9, 3e9 + 1)
    assert not equal_values(1.0, 1.00001)
    assert equal_values(0.1 * 3 - 0.3, 0.0)
    assert not equal_values(0.0, 1e-6)
    assert not equal_values(None, 1.0)
    assert not equal_values(1.0, None)
    assert not equal_values(None, None)


@pytest.mark.parametrize(
    ("prediction", "label", "correct"),
    [
        ("1000000", "1000001", False),
        ("9007199254740992", "9007199254740993", False),  # equal as floats
        ("1000000.0", "1000001.00", False),
        ("1 / 3 + 1 / 3 + 1 / 3", "1", True),
        ("( 10.0 / 3.0 ) * 3.0", "10", True),
        ("1 / 3000000", "1 / 3000001", False),
        ("1 / 10000000000", "0", False),
        ("0.3333333", "1 / 3", True),  # rounded
        ("0.333", "1 / 3", False),
        ("1000000.5", "1000001", True),  # a number of the prediction may be rounded
        ("1000000.5", "1000001.5", True),
    ],
)
def test_values_are_compared_exactly_unless_a_number_may_be_rounded(prediction: str, label: str, correct: bool) -> None:
    assert is_correct(prediction, label, "equation") is correct
    assert is_correct(label, prediction, "equation") is correct


def test_the_value_of_whole_numbers_is_exact() -> None:
    assert isinstance(evaluate_expression("( 84.0 / 3.00 ) - 007."), Fraction)
    assert isinstance(evaluate_expression("84.5 + 1"), float)


def test_no_text_makes_a_fraction_large_or_slow() -> None:
    """The text is at most 1000 characters long, which bounds the digits of every intermediate value."""
    primes = [n for n in range(11, 4000) if all(n % d for d in range(2, 64) if d < n)]
    sums = " + ".join(f"1/{prime}" for prime in primes)[:MAX_CHARACTERS].rpartition(" + ")[0]
    nines = f"1/{'9' * 300}+1/{'9' * 301}"
    start = time.process_time()
    for text in (sums, nines, "*".join(["99"] * 150), "/".join(["7"] * 500)):
        value = evaluate_expression(text)
        assert isinstance(value, Fraction) and len(str(value)) <= MAX_CHARACTERS
    assert time.process_time() - start < 0.1
    assert evaluate_expression("*".join(["99"] * 250)) is None  # beyond the largest float
