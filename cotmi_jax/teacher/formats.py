"""Formats of an answer that no released set has: a mark of the user's choice, a box, JSON; and Markdown around answers.

Each reader splits a completion into rationale and answer, in time linear in its length. The answer is None where it
finds none; a rationale never holds the mark of the answer.
"""

import json
import re
from collections.abc import Sequence

from cotmi_jax.data.sources.released_sets import ParseCompletion

DEFAULT_MARKS = ("Final answer",)
DEFAULT_FIELDS = ("rationale", "answer")
_BOX = "\\boxed{"
# Emphasis, but no power: x**2**y has a letter or digit on the outer sides.
_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])((?:[^*\n]|\*(?!\*))*)(?<=[^\s*])\*\*(?![\w*])")
_WRAPPERS = (("**", "**"), ("`", "`"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?]\s|\n")
_LEAD_IN = re.compile(r"(?:\b(?:so|thus|hence|therefore|and|the|my)\b,?\s*)+\Z", re.IGNORECASE)
_LEAD_IN_CHARACTERS = 40  # the words are sought in so many, since to seek them in a long text takes quadratic time
_MAX_WRAPPED = 1000  # a longer text is no answer, and its nested delimiters would take quadratic time


def tolerate_markdown(parse: ParseCompletion, mark: str) -> ParseCompletion:
    """The reader `parse` for a completion in Markdown, such as "**So the answer is 12.**" where `mark` is its mark.

    Emphasis that includes the mark or follows it is removed, as are the delimiters around the complete answer and a
    heading's "#" before the mark.
    """

    def parse_plain(completion: str) -> tuple[str, str | None]:
        start = completion.find(mark)
        if start < 0:
            return parse(completion)
        rationale, answer = parse(_without_bold(completion, start))
        return _without_heading(rationale), unwrap(answer) or None if answer else None

    return parse_plain


def read_marked(marks: Sequence[str]) -> ParseCompletion:
    """A reader of "Final answer: X", for any of several marks, in any case: X is the first line that follows the mark.

    The mark may be repeated if the answers are the same.
    """
    longest_first = sorted(marks, key=len, reverse=True)
    mark = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)

    def parse(completion: str) -> tuple[str, str | None]:
        first = mark.search(completion)
        if first is None:
            return completion.strip(), None
        plain = _without_bold(completion, first.start())
        before, *segments = mark.split(plain)
        rationale = before[:-_LEAD_IN_CHARACTERS] + _LEAD_IN.sub("", before[-_LEAD_IN_CHARACTERS:])
        answers = [_first_line(segment) for segment in segments]
        same = all(answer == answers[0] for answer in answers)
        return _without_heading(rationale), (answers[0] or None) if same else None

    return parse


def read_boxed(completion: str) -> tuple[str, str | None]:
    r"""The last "\boxed{X}", as mathematics is answered. The rationale ends before the sentence of the first box.

    If there is no earlier sentence, it is the text before the box.
    """
    first, last = completion.find(_BOX), completion.rfind(_BOX)
    if first < 0:
        return completion.strip(), None
    content = _braced(completion, last + len(_BOX))
    before = completion[:first].rstrip("$*([\\ \t\n")
    ends = [match.end() for match in _SENTENCE_END.finditer(before)]
    rationale = before if before.endswith((".", "!", "?")) or not ends else before[: ends[-1]]
    answer = None if content is None else unwrap(content.strip())
    return rationale.strip(), answer or None


def read_json(fields: Sequence[str]) -> ParseCompletion:
    """A reader of a JSON object with the rationale and the answer in the two `fields`, also in a Markdown code block.

    A number is taken as it is written. A list of texts, as the rationale, is joined with spaces.
    """
    rationale_field, answer_field = fields

    def parse(completion: str) -> tuple[str, str | None]:
        row = json_object(completion)
        if row is None:
            return completion.strip(), None
        return _as_text(row.get(rationale_field)) or "", _as_text(row.get(answer_field)) or None

    return parse


def unwrap(answer: str) -> str:
    r"""An answer without delimiters around all of it: code, bold, mathematics, `\boxed{}` and `\text{}`."""
    changed = len(answer) <= _MAX_WRAPPED
    while changed:
        changed = False
        for opening, closing in _WRAPPERS:
            inner = answer[len(opening) : -len(closing)]
            if answer.startswith(opening) and answer.endswith(closing) and inner and closing not in inner:
                answer, changed = inner.strip(), True
        for inner in filter(None, (_unboxed(answer), _untexted(answer))):
            answer, changed = inner, True
            break
        if changed:
            answer = answer.removesuffix(".").rstrip()
    return answer


def _unboxed(answer: str) -> str | None:
    if not answer.startswith(_BOX) or not answer.endswith("}"):
        return None
    content = _braced(answer, len(_BOX))
    return content.strip() if content is not None and len(_BOX) + len(content) + 1 == len(answer) else None


def _untexted(answer: str) -> str | None:
    match = _TEXT_COMMAND.fullmatch(answer)
    return match[1].strip() if match else None


def _braced(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes the one before it; None if there is none."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start : match.start()]
    return None


def _without_bold(text: str, start: int) -> str:
    """The text without the marks of bold spans that end after `start`."""
    return _BOLD.sub(lambda match: match[1] if match.end() > start else match[0], text)


def _without_heading(rationale: str) -> str:
    """The rationale without a last line of "#", ">" or "*", which belongs to the mark that follows."""
    before, _, last = rationale.rpartition("\n")
    return (rationale if last.strip(" \t#>*") else before).strip()


def _first_line(text: str) -> str:
    """The answer after a mark: a box or, without one, the rest of the line; if that is empty, the next line."""
    if boxed := read_boxed(text)[1]:
        return boxed
    answer = re.sub(r"\A\s*(?:is\b)?\s*:?", "", text).strip().partition("\n")[0]
    return unwrap(answer.strip().removesuffix(".").strip())


def json_object(completion: str) -> dict[str, object] | None:
    """The JSON object that a completion is, or that its last code block is."""
    texts = [completion.strip(), *(block.strip() for block in reversed(_FENCE.findall(completion)))]
    for text in filter(lambda text: text.startswith("{"), texts):
        try:
            row = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError):  # not JSON, or nested too deeply: another of the texts may be an answer
            continue
        if isinstance(row, dict):
            return row
    return None


def _as_text(value: object) -> str | None:
    """A text, stripped; a boolean as JSON writes it; the texts of a list joined; None for any other value."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(item.strip() for item in value)
    return None
