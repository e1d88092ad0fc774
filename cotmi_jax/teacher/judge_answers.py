"""Reads a judge's answer: a score of 1 to 5, or which of two rationales is better. None where it states neither.

An answer is read if it follows the rubric ("Score: 4" in the last line) and in the other forms that models write:
"4/5", "Score: four", JSON also in a code block, a box, "Bewertung: 4 von 5". A wrong reading is worse than none: an
answer that states several scores, a range or a number outside the scale is not read.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

from cotmi_jax.evaluation.judgments import SCALE
from cotmi_jax.teacher.formats import json_object
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.thinking import split_thinking

_Answer = TypeVar("_Answer", int, str)
_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_BOX = re.compile(r"\\boxed\{([^{}]{0,40})\}")
_MARKDOWN = re.compile(r"[*_`#\[\]$]")
_OF = r"(?:/|out of|of|von|sur|de|di|su|из|z)"
_NUMBER = rf"(?P<value>\d+(?:[.,]\d+)?|{'|'.join(_WORDS)})"
_SCALE = rf" ?{_OF} ?(?P<of>\d+)"
_END = r"(?![\w.,/]*\d| ?%| ?(?:-|–|to|or|bis) ?\d)"  # else it is part of a longer number, of a percentage or a range
_VALUE = rf"{_NUMBER}(?:{_SCALE})?{_END}"
_SCORE_MARK = r"\b(?:score|rating|grade)(?: is| of)?(?: ?[:=]| -)? ?"
_MARKED_SCORE = re.compile(_SCORE_MARK + _VALUE)
_FRACTION = re.compile(rf"(?<![\w./]){_NUMBER}{_SCALE}{_END}")
# A last line that is a score, with up to 40 characters before a colon in any language: "Bewertung: 4", "评分:4分".
_LAST_SCORE = re.compile(rf"(?:[^\d:]{{0,40}}: ?|{_SCORE_MARK})?{_VALUE} ?[^\W\d]{{0,6}}[.!]?")

_NOUN = r"(?:rationale|explanation|answer|response|option|assistant|the|no\.?|number)"
_CHOICES = {"1": "1", "a": "1", "first": "1", "2": "2", "b": "2", "second": "2"}
_TIES = ("tie", "tied", "draw", "equal", "equally good", "both", "neither", "same", "the same")
_LETTER = r"[ab](?! (?!is |are )\w)"  # not the article
_CHOICE = rf"(?P<choice>1|2|{_LETTER}|first|second|{'|'.join(_TIES)})\b(?! ?(?:-|–|or|and|/|oder) ?[\dab]\b)"
_NAMED_CHOICE = rf"(?:{_NOUN} ){{0,3}}{_CHOICE}(?: (?:one|{_NOUN}))?"
_CHOICE_MARK = (
    r"\b(?:better|best|winner|preferred|preference|verdict|choice)(?: (?:one|rationale))?(?: is)?(?: ?[:=]| -)? ?"
)
_MARKED_CHOICE = re.compile(_CHOICE_MARK + _NAMED_CHOICE)
_BETTER = re.compile(rf"(?<!\w){_NAMED_CHOICE} (?:is|are) (?:the )?(?:clearly |much )?(?:better|best)\b")
_LAST_CHOICE = re.compile(rf"(?:[^\d:]{{0,40}}: ?|{_CHOICE_MARK})?{_NAMED_CHOICE}(?: (?:is|are) better)?[.!]?")


def read_score(answer: Choice) -> int | None:
    """The score, one of SCALE."""
    text = _plain(answer)
    given = _of_json(answer, ("score", "rating", "grade"))
    if given is not None:
        return _score(_LAST_SCORE.fullmatch(given))
    if (last := _LAST_SCORE.fullmatch(_last_line(text))) is not None:
        return _score(last)
    return _only(_score, _MARKED_SCORE.finditer(text)) or _only(_score, _FRACTION.finditer(text))


def read_choice(answer: Choice) -> str | None:
    """Which of two rationales is better in the order of their presentation: "1", "2" or "tie"."""
    text = _plain(answer)
    given = _of_json(answer, ("better", "winner", "choice", "preferred", "verdict"))
    if given is not None:
        return _choice(_LAST_CHOICE.fullmatch(given))
    if (last := _LAST_CHOICE.fullmatch(_last_line(text))) is not None:
        return _choice(last)
    return _only(_choice, _MARKED_CHOICE.finditer(text)) or _only(_choice, _BETTER.finditer(text))


def _plain(answer: Choice) -> str:
    """The answer without thinking, boxes and Markdown, in lower case; digits and marks of any width become ASCII."""
    text = _BOX.sub(r"\1", split_thinking(answer.text)[1])
    return _simplified(text)


def _simplified(text: str) -> str:
    lines = _MARKDOWN.sub("", unicodedata.normalize("NFKC", text)).casefold().split("\n")
    return "\n".join(line for line in (" ".join(line.split()) for line in lines) if line)


def _last_line(text: str) -> str:
    return text.rpartition("\n")[2]


def _of_json(answer: Choice, names: Iterable[str]) -> str | None:
    """The value that a JSON object has for one of the names, or its only value; None: the answer is no JSON object."""
    row = json_object(split_thinking(answer.text)[1])
    if row is None:
        return None
    fields = {name.casefold(): value for name, value in row.items()}
    found = [fields[name] for name in names if name in fields] or (list(fields.values()) if len(fields) == 1 else [])
    return _simplified(found[0]) if len(found) == 1 and isinstance(found[0], str) else ""


def _only(read: Callable[[re.Match[str]], _Answer | None], matches: Iterable[re.Match[str]]) -> _Answer | None:
    """What all matches state; None where they differ or one states nothing."""
    found = {read(match) for match in matches}
    return found.pop() if len(found) == 1 else None


def _score(match: re.Match[str] | None) -> int | None:
    if match is None or match["of"] not in (None, str(SCALE[-1])):
        return None
    value = match["value"].replace(",", ".")
    number = float(_WORDS.get(value, 0) or value)
    return int(number) if number in SCALE else None


def _choice(match: re.Match[str] | None) -> str | None:
    return None if match is None else _CHOICES.get(match["choice"], "tie")
