"""Compares labels as text, or by the value of an arithmetic expression, which is parsed and never executed."""

import functools
import math
import re
import sys
from fractions import Fraction
from typing import assert_never

from cotmi_jax.data.example import LabelKind

MAX_CHARACTERS = 1000
MAX_DEPTH = 50

Value = Fraction | float  # a Fraction is exact

_LARGEST = int(sys.float_info.max)  # the limit of both types
_TOKEN = re.compile(r"[ \t\r\n]*([0-9]+\.?[0-9]*|\.[0-9]+|[-+*/()])")


class _Unreadable(ValueError):
    """The text is not an expression with a finite value, or exceeds the limits."""


def evaluate_expression(text: str) -> Value | None:
    """The value of an expression of decimal numbers, + - * /, unary minus and parentheses, like "( 84.0 / 2.0 )".

    It is exact, a Fraction, if every number is whole, "84.0" included. A number like 0.33 may be rounded, so the value
    of an expression that holds one is a float. MAX_CHARACTERS bounds a Fraction to 1000 digits.

    None for anything else: other characters (among them letters, powers, thousands commas, currency and percent signs,
    and digits other than 0-9), an incomplete expression, a division by zero, an overflow of a float, more than
    MAX_CHARACTERS characters, and parentheses and unary minuses nested deeper than MAX_DEPTH.
    """
    return _evaluate(text) if len(text) <= MAX_CHARACTERS else None


@functools.lru_cache(maxsize=1 << 15)  # each measure of every run of a study reads the same texts
def _evaluate(text: str) -> Value | None:
    try:
        return _Parser(text).parse()
    except _Unreadable:
        return None


def equal_values(a: Value | None, b: Value | None) -> bool:
    """Whether two values are equal: Fractions exactly, so that 1000000 is not 1000001; otherwise to a relative 1e-6, or
    an absolute 1e-9 around 0. None (no value) equals nothing.
    """
    if a is None or b is None:
        return False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


class _Parser:
    """Recursive descent: a sum of products of factors.

    Python's `ast` is no substitute: it rejects leading zeros and line ends, drops the parentheses that MAX_DEPTH
    counts, and nests a sum of 500 terms 500 deep, so its value would depend on the depth of the caller's stack.
    """

    def __init__(self, text: str):
        self._tokens = _tokenize(text)
        self._exact = not any(token.partition(".")[2].strip("0") for token in self._tokens)
        self._position = 0
        self._depth = 0

    def parse(self) -> Value:
        value = self._sum()
        if self._next() is not None:
            raise _Unreadable
        return value

    def _next(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self, *wanted: str) -> str | None:
        """Consumes and returns the next token if it is one of `wanted`; else None."""
        token = self._next()
        if token not in wanted:
            return None
        self._position += 1
        return token

    def _sum(self) -> Value:
        value = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            value = _finite(value + right if sign == "+" else value - right)
        return value

    def _product(self) -> Value:
        value = self._factor()
        while sign := self._take("*", "/"):
            right = self._factor()
            if sign == "/" and right == 0:
                raise _Unreadable
            value = _finite(value * right if sign == "*" else value / right)
        return value

    def _factor(self) -> Value:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unreadable
        if self._take("-"):
            value = -self._factor()
        elif self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise _Unreadable
        else:
            value = self._number()
        self._depth -= 1
        return value

    def _number(self) -> Value:
        token = self._next()
        if token is None or token in "+-*/()":
            raise _Unreadable
        self._position += 1
        return _finite(Fraction(int(token.partition(".")[0] or "0")) if self._exact else float(token))


def _tokenize(text: str) -> list[str]:
    text = text.rstrip(" \t\r\n")
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _Unreadable
        tokens.append(match[1])
        position = match.end()
    return tokens


def _finite(value: Value) -> Value:
    if isinstance(value, Fraction):
        finite = abs(value.numerator) <= _LARGEST * value.denominator
    else:
        finite = math.isfinite(value)
    if not finite:
        raise _Unreadable
    return value


def is_correct(prediction: str, label: str, kind: LabelKind) -> bool:
    """Whether a prediction counts as the label.

    Text must be equal but for surrounding whitespace. Equations must have equal values; one without a value is never
    correct, even if prediction and label are the same text.
    """
    match kind:
        case "text":
            return prediction.strip() == label.strip()
        case "equation":
            return equal_values(evaluate_expression(prediction), evaluate_expression(label))
        case _:
            assert_never(kind)
