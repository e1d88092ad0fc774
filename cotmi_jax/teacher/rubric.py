"""Rubrics by which a judge scores or compares rationales: TOML files that users edit (docs/judging.md)."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from cotmi_jax.errors import UserError, shown
from cotmi_jax.teacher.prompt import PLACEHOLDER, Message, read_texts, read_toml

_RUBRICS = Path(str(resources.files("cotmi_jax.teacher") / "rubrics"))
BUILT_IN = tuple(sorted(path.stem for path in _RUBRICS.glob("*.toml")))
Mode = Literal["absolute", "pairwise"]
_COMMON = {"input", "gold"}
_RATIONALES: Mapping[Mode, set[str]] = {"absolute": {"rationale"}, "pairwise": {"rationale_1", "rationale_2"}}
_USED_BY: Mapping[Mode, str] = {"absolute": "scores need", "pairwise": "--against needs"}
_KEYS = ("instructions", "question")


@dataclasses.dataclass(frozen=True)
class Rubric:
    """One of the two tables of a rubric: the system message, and the template of the user message."""

    path: Path
    mode: Mode
    instructions: str
    question: str

    def text(self, question: str, gold: str, *rationales: str) -> str:
        """The user message about one rationale or, of a pairwise rubric, two in this order."""
        names = sorted(_RATIONALES[self.mode])
        values = {"input": question, "gold": gold, **dict(zip(names, rationales, strict=True))}
        return PLACEHOLDER.sub(lambda match: values[match[1]], self.question)

    def conversation(self, text: str) -> list[Message]:
        """The messages of a request."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return [*system, {"role": "user", "content": text}]

    @property
    def digest(self) -> str:
        """A hash of the two texts. Comments and the layout of the file do not change it."""
        return hashlib.sha256(json.dumps([self.mode, self.instructions, self.question]).encode()).hexdigest()[:16]


def load_rubric(name: str, mode: Mode) -> Rubric:
    """A table of a built-in rubric by its name (BUILT_IN), or of the file at a path.

    Raises:
      UserError: no such file, no TOML, no such table, a key that is missing or unknown, or a question without one of
        the rationales.
    """
    path = _RUBRICS / f"{name}.toml" if name in BUILT_IN else Path(name).expanduser()
    if not path.exists():
        raise UserError(f"--rubric={name}: no such file, and none of the built-in rubrics ({', '.join(BUILT_IN)})")
    tables = read_toml(path, "copy cotmi_jax/teacher/rubrics/default.toml and edit the copy")
    if unknown := sorted(tables.keys() - _RATIONALES.keys()):
        raise UserError(f"{path}: unknown table {shown(unknown[0])}; a rubric has the tables [absolute] and [pairwise]")
    table = tables.get(mode)
    if not isinstance(table, dict):
        raise UserError(f"{path}: no table [{mode}], which {_USED_BY[mode]}; add it, with instructions and question")
    texts = read_texts(table, _KEYS, f"{path}: [{mode}]")
    question = texts.get("question", "")
    used, known = set(PLACEHOLDER.findall(question)), _COMMON | _RATIONALES[mode]
    for problem, names in (("lacks", _RATIONALES[mode] - used), ("has the unknown placeholder", used - known)):
        if names:
            listed = ", ".join(f"{{{key}}}" for key in sorted(known))
            raise UserError(f"{path}: [{mode}] question {problem} {{{min(names)}}}; its placeholders are {listed}")
    return Rubric(path, mode, texts.get("instructions", ""), question)
