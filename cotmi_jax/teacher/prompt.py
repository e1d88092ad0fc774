"""Few-shot prompts as text files that a researcher edits; the format is described in docs/annotation.md."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from cotmi_jax.data.example import EOS_TEXT
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.rows import read_text
from cotmi_jax.errors import UserError
from cotmi_jax.teacher.answers import RULES, Rule, read_completion

_PROMPTS = Path(str(resources.files("cotmi_jax.teacher") / "prompts"))
BUILT_IN = tuple(sorted(path.stem for path in _PROMPTS.glob("*.txt")))
Message = dict[str, str]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_KNOWN = {"input", "premise", "hypothesis", "answer"}
_PARTS = ("completion", "answer")


@dataclasses.dataclass(frozen=True)
class WorkedExample:
    """A worked example: a question, what the teacher is to say, and the answer that is read off it."""

    input: str
    completion: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the teacher is shown before a question, and the rule that reads its completion."""

    path: Path
    rule: Rule
    instructions: str
    question: str
    hint: str | None
    examples: tuple[WorkedExample, ...]

    def text(self, question: str, place: str, answer: str | None = None) -> str:
        """The turn that asks a question; with an answer, the one that gives it away as a hint.

        Raises:
          UserError: the question has no `</s>` between premise and hypothesis, or the prompt no hint section.
        """
        return _fill(self._template(answer is not None), question, answer or "", place)

    def conversation(self, text: str, *, hinted: bool) -> list[Message]:
        """Instructions, worked examples (with their hints where the question comes with one), and the question."""
        return [*(self._hinted if hinted else self._plain), {"role": "user", "content": text}]

    @functools.cached_property
    def _plain(self) -> list[Message]:
        return self._shown(hinted=False)

    @functools.cached_property
    def _hinted(self) -> list[Message]:
        return self._shown(hinted=True)

    def _shown(self, *, hinted: bool) -> list[Message]:
        shown = [{"role": "system", "content": self.instructions}] if self.instructions else []
        for example in self.examples:
            text = _fill(self._template(hinted), example.input, example.answer, str(self.path))
            shown.append({"role": "user", "content": text})
            shown.append({"role": "assistant", "content": example.completion})
        return shown

    def _template(self, hinted: bool) -> str:
        if not hinted:
            return self.question
        if self.hint is None:
            raise UserError(f"{self.path}: no '=== hint' section, which --rationalize asks with; add one")
        return self.hint

    @property
    def digest(self) -> str:
        """Changes with everything that is sent along with a question, but not with comments or the parsing rule."""
        shown = [self.instructions, self.question, [[worked.input, worked.completion] for worked in self.examples]]
        return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def load_prompt(name: str) -> Prompt:
    """A shipped prompt by its name (BUILT_IN), or the file at a path.

    Raises:
      UserError: with file and line, what is wrong with the file.
    """
    if name in BUILT_IN:
        return parse_prompt(_PROMPTS / f"{name}.txt")
    path = Path(name)
    if not path.exists():
        raise UserError(f"--prompt={name}: no such file, and none of the shipped prompts ({', '.join(BUILT_IN)})")
    return parse_prompt(path)


def parse_prompt(path: Path) -> Prompt:
    """Reads and checks a prompt file; every worked example has to parse to its own answer. UserError otherwise."""
    rule: Rule | None = None
    texts: dict[str, tuple[int, str]] = {}
    examples = []
    for line, name, body in _sections(path):
        place = f"{path}:{line}"
        if name == "":
            rule = _rule(body, path)
        elif name == "example":
            examples.append((line, body))
        elif name not in ("instructions", "question", "hint"):
            raise UserError(f"{place}: unknown section {name!r}; there are instructions, question, hint and example")
        elif name in texts:
            raise UserError(f"{place}: a second {name!r} section; the first begins at line {texts[name][0]}")
        else:
            texts[name] = line, body.strip()
    if rule is None:
        raise UserError(f"{path}:1: no 'parse: RULE' line; give one of {', '.join(RULES)}")
    if "question" not in texts:
        raise UserError(f"{path}:1: no '=== question' section; give one that holds {{input}}")
    templates = {name: texts[name] for name in ("question", "hint") if name in texts}
    for name, (line, template) in templates.items():
        _check_template(name, line, template, path)
    return Prompt(
        path=path,
        rule=rule,
        instructions=texts.get("instructions", (0, ""))[1],
        question=texts["question"][1],
        hint=texts["hint"][1] if "hint" in texts else None,
        examples=tuple(_worked(line, body, rule, templates.values(), path) for line, body in examples),
    )


def _sections(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name, text) of each section; the head of the file comes first, without a name."""
    line, name, body = 1, "", list[str]()
    for i, text in enumerate(read_text(path).split("\n"), start=1):
        if text.startswith("==="):
            yield line, name, "\n".join(body)
            line, name, body = i, text.removeprefix("===").strip() or "===", []
        else:
            body.append(text)
    yield line, name, "\n".join(body)


def _rule(head: str, path: Path) -> Rule | None:
    """The parsing rule that the head of the file names; comments stand there too."""
    rule = None
    for i, text in enumerate(head.split("\n"), start=1):
        key, colon, value = (part.strip() for part in text.partition(":"))
        if not text.strip() or text.startswith("#"):
            continue
        if key != "parse" or not colon:
            raise UserError(f"{path}:{i}: {text!r:.50} before the first '=== …' line; begin comments with #")
        if value not in RULES:
            raise UserError(f"{path}:{i}: unknown rule {value!r}; choose one of {', '.join(RULES)}")
        rule = RULES[value]
    return rule


def _check_template(name: str, line: int, template: str, path: Path) -> None:
    held = set(_PLACEHOLDER.findall(template))
    known = _KNOWN if name == "hint" else _KNOWN - {"answer"}
    if unknown := sorted(held - known):
        listed = ", ".join(f"{{{key}}}" for key in sorted(known))
        raise UserError(f"{path}:{line}: unknown placeholder {{{unknown[0]}}} in {name!r}; there are {listed}")
    if not ("input" in held or {"premise", "hypothesis"} <= held):
        raise UserError(
            f"{path}:{line}: {name!r} lacks the question; write {{input}}, or {{premise}} and {{hypothesis}}"
        )
    if name == "hint" and "answer" not in held:
        raise UserError(f"{path}:{line}: 'hint' lacks the answer it gives away; write {{answer}}")


def _worked(line: int, body: str, rule: Rule, templates: Iterable[tuple[int, str]], path: Path) -> WorkedExample:
    place = f"{path}:{line}"
    text, *rest = re.split(r"^---(.*)$", body, flags=re.MULTILINE)
    parts = {name.strip(): value.strip() for name, value in zip(rest[::2], rest[1::2], strict=True)}
    if tuple(parts) != _PARTS or len(rest) != 2 * len(_PARTS) or not text.strip() or not all(parts.values()):
        raise UserError(f"{place}: an example is a question, '--- completion' with a text and '--- answer' with a text")
    worked = WorkedExample(text.strip(), parts["completion"], parts["answer"])
    rationale, answer = read_completion(worked.completion, rule)
    if answer is None or not is_correct(answer, worked.answer, rule.kind):
        raise UserError(f"{place}: the rule reads the answer {answer!r} off the completion, not {worked.answer!r}")
    if not rationale:
        raise UserError(f"{place}: the completion gives an answer but no rationale before it")
    for _, template in templates:
        _fill(template, worked.input, worked.answer, place)
    return worked


def _fill(template: str, text: str, answer: str, place: str) -> str:
    values = {"input": text, "answer": answer}
    if "{premise}" in template or "{hypothesis}" in template:
        premise, mark, hypothesis = text.partition(EOS_TEXT)
        if not mark:
            raise UserError(f"{place}: no {EOS_TEXT} between premise and hypothesis, which the prompt asks for; add it")
        values |= {"premise": premise.strip(), "hypothesis": hypothesis.strip()}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)
