"""Counterfactuals of equation labels: one operation or one number of one step is exchanged, and carried through.

The label is an expression of numbers of the story, "( ( 12 + 5 ) * 3 )". Its rationale computes it in steps, "12 + 5 =
17 … 17 * 3 = 51". Each operation of the label is matched with the expressions of the rationale that compute it. After
an exchange in the label, the matched numbers and operations of the rationale are replaced by the new ones.
"""

import ast
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction

import numpy as np

from cotmi_jax.data.example import Example, Pair

# Longer ones, in characters, have no counterfactual: time grows with the square of the number of steps.
_MAX_LABEL, _MAX_RATIONALE = 200, 5000
_MAX_NEW_NUMBER = 1000  # in an input: larger ones are as good, and drawing one takes time in proportion
_Value = int | Fraction  # whole numbers as int, whose arithmetic is faster
_OPERATIONS: dict[str, Callable[[_Value, _Value], _Value]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: Fraction(a, b) if a % b else a // b,
}
_SIGN = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
# Of at most 30 digits, since Python refuses to convert thousands. Not within a word, nor a part of a longer number.
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,30})(?:\.[0-9]{1,30})?"
_NUMBERS = re.compile(rf"(?<![\w.,]){_NUMBER}(?!\w|[.,]\d)")
_EXPRESSION = re.compile(rf"(?<![\w.,-]){_NUMBER}(?:[ )]*[-+*/][ (]*{_NUMBER})+(?!\w|[.,]\d)")
_RESULT = re.compile(rf"[ )]*(?:=|is|equals) *\$? *(-?{_NUMBER})(?!\w|[.,]\d)")
_SENTENCE_END = re.compile(r"[.!?]\s+|\n|\0")

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
    """A number, or an operation on two nodes. span: of the number, or of the operation's sign, in its text."""

    value: _Value
    span: Span
    sign: str = ""
    operands: tuple["_Node", ...] = ()

    def nodes(self) -> Iterator["_Node"]:
        """All nodes, operands before the operations on them."""
        for operand in self.operands:
            yield from operand.nodes()
        yield self


@dataclasses.dataclass(frozen=True)
class _Step:
    """An expression of a text, with its place, and the number that the text gives as its result."""

    tree: _Node
    span: Span
    result: _Value | None
    result_span: Span | None

    @property
    def is_true(self) -> bool:
        return self.result is None or self.result == self.tree.value


Bound = dict[Span, _Node]  # place in the rationale of a number or sign → node of the label
Values = Mapping[_Node, _Value]


@dataclasses.dataclass(frozen=True)
class _Edit:
    """An exchange in the label: of the sign of an operation, or of a number."""

    node: _Node
    sign: str = ""
    value: _Value = 0


def exchange_step(example: Example, label: str, rng: np.random.Generator) -> Iterator[Pair]:
    """One operation of the label, or one of its numbers by another number of the story, exchanged and carried through.

    It is one that the rationale states as a step. In the rationale the exchange reaches every expression that is
    matched with the label, results that it restates, and mentions of the exchanged number in the sentence of its step.
    All steps that were true stay true. So that size alone does not give a counterfactual away, results are whole if
    those of the label are, at least 2 unless one of the label's is less, and at most twice the largest number of the
    example; those that exceed that number come last.

    There is no counterfactual where the last step of the rationale is not the label's last operation: then the
    rationale leads to another answer, or to none.
    """
    label, text = label.strip(), example.rationale
    tree = _parse(label) if len(label) <= _MAX_LABEL and len(text) <= _MAX_RATIONALE else None
    steps = _steps(text)
    if tree is None or not tree.operands or not steps:
        return
    bound: Bound = {}
    matched = {i: node for i, step in enumerate(steps) if (node := _match_step(step, tree, bound))}
    equations = [i for i, step in enumerate(steps) if step.result is not None]
    if not equations or matched.get(equations[-1]) is not tree:
        return
    story = {_number(match[0]) for match in _NUMBERS.finditer(example.input)}
    limits = _Limits.of(tree, story)
    stated = {node for span, node in bound.items() if text[slice(*span)] in _OPERATIONS}
    edits = [(edit, values) for edit in _edits(stated, story, rng) if (values := _evaluate(tree, edit)) is not None]
    for exceeds in (False, True):
        for edit, values in edits:
            if values[tree] == tree.value or not limits.allow(tree, values) or limits.exceeded(tree, values) != exceeds:
                continue
            rewritten = _rewrite(text, steps, bound, edit, values, story)
            if rewritten is not None and _stays_true(rewritten, steps, matched, values):
                yield Pair(_rewrite_label(label, edit), rewritten)


def change_number(example: Example, rng: np.random.Generator) -> Iterator[Example]:
    """The example with another number in its input, and with the gold label that follows; in random order.

    The number stands once in the input, in digits, and is an operand of the label, in which it changes wherever it
    occurs. The new one is whole, of 2 to the largest number of the input, and none of its others. Results stay within
    the limits of `exchange_step`, and none exceeds the largest number of the example, so that the new problem is one of
    the same kind. Rationale and teacher's label are those of the old input.
    """
    label = example.label.strip()
    tree = _parse(label) if len(label) <= _MAX_LABEL else None
    if tree is None or not tree.operands:
        return
    places: dict[_Value, list[Span]] = {}
    for match in _NUMBERS.finditer(example.input):
        places.setdefault(_number(match[0]), []).append(match.span())
    leaves: dict[_Value, list[Span]] = {}
    for node in tree.nodes():
        if not node.operands:
            leaves.setdefault(node.value, []).append(node.span)
    limits = _Limits.of(tree, places)
    changeable = [value for value, spans in places.items() if len(spans) == 1 and value in leaves]
    top = min(int(max(places, default=0)), _MAX_NEW_NUMBER)
    edits = [(old, new) for old in changeable for new in range(2, top + 1) if new not in places]
    for i in rng.permutation(len(edits)):
        old, new = edits[i]
        written = label
        for start, end in sorted(leaves[old], reverse=True):
            written = written[:start] + _like(written[start:end], new) + written[end:]
        changed = _parse(written)
        if changed is None or changed.value == tree.value:
            continue
        values = {node: node.value for node in changed.nodes()}
        if limits.allow(changed, values) and not limits.exceeded(changed, values):
            start, end = places[old][0]
            text = example.input[:start] + _like(example.input[start:end], new) + example.input[end:]
            yield dataclasses.replace(example, input=text, label=written)


def _number(text: str) -> _Value:
    whole, _, fraction = text.replace(",", "").replace("_", "").partition(".")
    return Fraction(f"{whole}.{fraction}") if fraction.strip("0") else int(whole)


def _parse(text: str) -> _Node | None:
    """The tree of an expression of decimal numbers, + - * / and parentheses; None for anything else."""
    if not re.fullmatch(r"[0-9.,+\-*/() ]+", text):
        return None
    source = text.replace(",", "_")  # Python's separator of thousands, of the same length
    try:
        return _tree(ast.parse(source, mode="eval").body, source)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError, ValueError):
        return None


def _tree(node: ast.expr, text: str) -> _Node:
    """Raises ValueError for what is no such expression."""
    assert node.end_col_offset is not None
    if isinstance(node, ast.Constant):
        span = node.col_offset, node.end_col_offset
        return _Node(_number(text[slice(*span)]), span)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _SIGN:
        raise ValueError(text)
    left, right, sign = _tree(node.left, text), _tree(node.right, text), _SIGN[type(node.op)]
    at = text.index(sign, node.left.end_col_offset)
    return _Node(_OPERATIONS[sign](left.value, right.value), (at, at + 1), sign, (left, right))


def _steps(text: str) -> list[_Step]:
    """The expressions of a text that have at least one operation, in order."""
    steps = []
    for match in _EXPRESSION.finditer(text):
        start, end = _balance(text, *match.span())
        tree = _parse(text[start:end])
        if tree is not None:
            given = _RESULT.match(text, end)
            result = None if given is None else _number(given[1])
            shifted = _shift(tree, start)
            steps.append(_Step(shifted, (start, end), result, given.span(1) if given else None))
    return steps


def _balance(text: str, start: int, end: int) -> Span:
    """The place of an expression, extended by the parentheses that it lacks, where the text has them."""
    while text.count("(", start, end) > text.count(")", start, end) and text[end:].lstrip(" ").startswith(")"):
        end = text.index(")", end) + 1
    while text.count(")", start, end) > text.count("(", start, end) and text[:start].rstrip(" ").endswith("("):
        start = text.rindex("(", 0, start)
    return start, end


def _shift(node: _Node, by: int) -> _Node:
    operands = tuple(_shift(operand, by) for operand in node.operands)
    return _Node(node.value, (node.span[0] + by, node.span[1] + by), node.sign, operands)


def _match_step(step: _Step, tree: _Node, bound: Bound) -> _Node | None:
    """The operation of the label that a step computes, whose numbers and signs are added to `bound`; None if none."""
    if not step.is_true:
        return None
    for node in tree.nodes():
        found = _match(step.tree, node) if node.operands else None
        if found is not None:
            bound |= found | ({step.result_span: node} if step.result_span else {})
            return node
    return None


def _match(part: _Node, node: _Node) -> Bound | None:
    """Pairs the numbers and signs of an expression with the nodes of the label; a number can stand for a result."""
    if not part.operands:
        return {part.span: node} if part.value == node.value else None
    if part.sign != node.sign:
        return None
    orders = [node.operands, node.operands[::-1]] if part.sign in "+*" else [node.operands]
    for order in orders:
        found = [_match(*pair) for pair in zip(part.operands, order, strict=True)]
        if all(each is not None for each in found):
            joined: Bound = {part.span: node}
            for each in found:
                joined |= each or {}
            return joined
    return None


def _edits(stated: Collection[_Node], story: set[_Value], rng: np.random.Generator) -> list[_Edit]:
    """All exchanges of one sign, or of one number by another of the story, in operations that the rationale states.

    In random order, but those that give an operation the same number twice, "7 * 7", come last: few stories do.
    """
    operations = sorted(stated, key=lambda node: node.span)
    edits = [_Edit(node, sign=sign) for node in operations for sign in _OPERATIONS if sign != node.sign]
    last: list[_Edit] = []
    for node in operations:
        for operand, other in zip(node.operands, node.operands[::-1], strict=True):
            for value in sorted(story - {operand.value}) if not operand.operands else []:
                (last if value == other.value else edits).append(_Edit(operand, value=value))
    return [group[i] for group in (edits, last) for i in rng.permutation(len(group))]


def _evaluate(tree: _Node, edit: _Edit) -> dict[_Node, _Value] | None:
    """The value of every node after an exchange; None for a division by zero."""
    values: dict[_Node, _Value] = {}
    for node in tree.nodes():
        if not node.operands:
            values[node] = edit.value if node is edit.node else node.value
            continue
        left, right = (values[operand] for operand in node.operands)
        sign = edit.sign if node is edit.node else node.sign
        if sign == "/" and right == 0:
            return None
        values[node] = _OPERATIONS[sign](left, right)
    return values


@dataclasses.dataclass(frozen=True)
class _Limits:
    """What results may be: whole, at least `low`. largest: the largest number of the example."""

    whole: bool
    low: _Value
    largest: _Value

    @classmethod
    def of(cls, tree: _Node, numbers: Collection[_Value]) -> "_Limits":
        """Those of an example with this label and these numbers."""
        results = [node.value for node in tree.nodes() if node.operands]
        return cls(all(value.denominator == 1 for value in results), min([2, *results]), max([*numbers, *results]))

    def allow(self, tree: _Node, values: Values) -> bool:
        results = _results(tree, values)
        exact = all((value if self.whole else 100 * value).denominator == 1 for value in results)
        return exact and all(self.low <= value <= 2 * self.largest for value in results)

    def exceeded(self, tree: _Node, values: Values) -> bool:
        return max(_results(tree, values)) > self.largest


def _results(tree: _Node, values: Values) -> list[_Value]:
    return [values[node] for node in tree.nodes() if node.operands]


def _rewrite(
    text: str, steps: list[_Step], bound: Bound, edit: _Edit, values: Values, story: set[_Value]
) -> str | None:
    """The text after an exchange; None where a number in it could be a changed result or a number of the story."""
    written: dict[Span, str] = {}
    first: dict[_Node, int] = {}  # where a changed result is first stated
    sentences: list[Span] = []  # with a step that holds the exchanged number
    for span, node in sorted(bound.items(), key=lambda item: item[0]):
        old = text[slice(*span)]
        if old in _OPERATIONS:
            written[span] = edit.sign if edit.sign and node is edit.node else old
            continue
        written[span] = _like(old, values[node])
        if node.operands and values[node] != node.value:
            first.setdefault(node, span[0])
        if node is edit.node:
            sentences.append(_sentence(text, span[0]))
    for match in _NUMBERS.finditer(text):
        if match.span() in bound:
            continue
        value = _number(match[0])
        changed = {values[node] for node, start in first.items() if node.value == value and start < match.start()}
        if edit.node.value == value and not edit.sign and any(a <= match.start() < b for a, b in sentences):
            changed.add(edit.value)
        elif changed and value in story:
            return None
        if len(changed) > 1:
            return None
        for new in changed:
            written[match.span()] = _like(match[0], new)
    for (start, end), new_text in sorted(written.items(), reverse=True):
        text = text[:start] + new_text + text[end:]
    return text


def _sentence(text: str, at: int) -> Span:
    """The place of the sentence that holds a character."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return max((end for end in ends if end <= at), default=0), min((end for end in ends if end > at), default=len(text))


def _like(old: str, value: _Value) -> str:
    """A number, written in the format of another: with ".0", or with separators of thousands."""
    if value.denominator == 1:
        fraction = ".0" if re.fullmatch(r".*\.0", old) else ""
        return f"{int(value):{',' if ',' in old else ''}}{fraction}"
    return f"{float(value):.2f}".rstrip("0")


def _rewrite_label(label: str, edit: _Edit) -> str:
    start, end = edit.node.span
    return label[:start] + (edit.sign or _like(label[start:end], edit.value)) + label[end:]


def _stays_true(text: str, steps: list[_Step], matched: Mapping[int, _Node], values: Values) -> bool:
    """Whether every step that was true is true in the new text, and those of the label have the new values."""
    after = _steps(text)
    return len(after) == len(steps) and all(
        (new.is_true or not old.is_true) and (i not in matched or new.tree.value == values[matched[i]])
        for i, (old, new) in enumerate(zip(steps, after, strict=False))
    )
