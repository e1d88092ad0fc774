"""Few-shot prompts as TOML files that users edit; docs/annotation.md describes the keys."""

import dataclasses
import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from cotmi_jax.data.example import EOS_TEXT, LabelKind
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.rows import read_text
from cotmi_jax.errors import UserError
from cotmi_jax.teacher.answers import RULE_NAMES, RationaleSource, Rule, make_rule, read_completion

_PROMPTS = Path(str(resources.files("cotmi_jax.teacher") / "prompts"))
BUILT_IN = tuple(sorted(path.stem for path in _PROMPTS.glob("*.toml")))
Message = dict[str, str]  # role and content, as the chat protocol defines them

LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
PLACEHOLDER = re.compile(r"\{(\w+)\}")
_PLACEHOLDERS = {"input", "premise", "hypothesis", "answer"}
_KEYS = ("parse", "kind", "marks", "fields", "instructions", "question", "hint", "example")
_LIST_KEYS = ("parse", "marks", "fields")
_EXAMPLE_KEYS = ("input", "completion", "answer")


@dataclasses.dataclass(frozen=True)
class WorkedExample:
    """A question, the completion that the teacher is shown for it, and the answer that the rule reads off it."""

    input: str
    completion: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The conversation that precedes a question, and the rule that reads the completion."""

    path: Path
    rule: Rule
    instructions: str
    question: str
    hint: str | None
    examples: tuple[WorkedExample, ...]

    def text(self, question: str, place: str, answer: str | None = None) -> str:
        """The user message that asks a question; with an answer, the message of the hint, which states the answer.

        Raises:
          UserError: the question has no `</s>` between premise and hypothesis, or the prompt has no hint.
        """
        return _fill(self._template(answer is not None), question, answer or "", place)

    def conversation(self, text: str, *, hinted: bool) -> list[Message]:
        """Instructions, worked examples (with their answers stated if `hinted`), and the question's message."""
        return [*(self._hinted_context if hinted else self._plain_context), {"role": "user", "content": text}]

    def with_source(self, source: RationaleSource) -> "Prompt":
        """This prompt, with rationales from the completion or from the thinking that precedes it."""
        return dataclasses.replace(self, rule=self.rule._replace(source=source))

    def schema(self) -> dict[str, object]:
        """The `response_format` by which a server returns JSON with the rationale first, so that it is not an excuse.

        Raises:
          UserError: the prompt's rules do not include json.
        """
        if self.rule.fields is None:
            raise UserError(
                f"--structured: {self.path} reads no JSON; pass --prompt=json, or add json to its parse and write the "
                "instructions and worked examples for JSON"
            )
        properties = {name: {"type": "string"} for name in self.rule.fields}
        required = {"required": list(self.rule.fields), "additionalProperties": False}
        schema = {"type": "object", "properties": properties, **required}
        return {
            "type": "json_schema",
            "json_schema": {"name": "rationale_and_answer", "strict": True, "schema": schema},
        }

    @functools.cached_property
    def _plain_context(self) -> list[Message]:
        return self._context(hinted=False)

    @functools.cached_property
    def _hinted_context(self) -> list[Message]:
        return self._context(hinted=True)

    def _context(self, *, hinted: bool) -> list[Message]:
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        for example in self.examples:
            text = _fill(self._template(hinted), example.input, example.answer, str(self.path))
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": example.completion})
        return messages

    def _template(self, hinted: bool) -> str:
        if not hinted:
            return self.question
        if self.hint is None:
            raise UserError(f"{self.path}: no hint, which --rationalize sends; add the key hint")
        return self.hint

    @property
    def digest(self) -> str:
        """A hash of the instructions, the question's template and the examples, which journals record.

        Comments, the layout of the file and the rule do not change it. The texts are stripped before they are hashed.
        """
        content = [self.instructions, self.question, [[example.input, example.completion] for example in self.examples]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def load_prompt(name: str) -> Prompt:
    """A built-in prompt by its name (BUILT_IN), or the file at a path.

    Raises:
      UserError: no such file, or the file is not a valid prompt.
    """
    if name in BUILT_IN:
        return parse_prompt(_PROMPTS / f"{name}.toml")
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"--prompt={name}: no such file, and none of the built-in prompts ({', '.join(BUILT_IN)})")
    return parse_prompt(path)


def parse_prompt(path: Path) -> Prompt:
    """Reads and checks a prompt file. The rule must read the stated answer off the completion of every worked example.

    Raises:
      UserError: the file is not TOML, a key is missing, unknown or not a text, or a worked example does not parse.
    """
    fields = read_toml(path, "docs/annotation.md shows a prompt file")
    tables = fields.pop("example", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: begin every worked example with the line [[example]]")
    texts = read_texts({name: value for name, value in fields.items() if name not in _LIST_KEYS}, _KEYS, str(path))
    rule = _read_rule(fields, texts.get("kind"), path)
    if "question" not in texts:
        raise UserError(f"{path}: no key question; give a text that contains {{input}}")
    templates = {name: texts[name] for name in ("question", "hint") if name in texts}
    for name, template in templates.items():
        _check_template(name, template, path)
    examples = [
        _worked_example(table, f"{path}: example {i}", rule, templates.values()) for i, table in enumerate(tables, 1)
    ]
    return Prompt(path, rule, texts.get("instructions", ""), texts["question"], texts.get("hint"), tuple(examples))


def read_toml(path: Path, remedy: str) -> dict[str, object]:
    """The tables of a TOML file. Raises UserError, with the remedy, where it is none."""
    content = read_text(path)
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        if re.search("^===", content, re.MULTILINE):  # the format of earlier versions, which is never valid TOML
            raise UserError(
                f"{path}: prompts are TOML now; write each '=== name' section as a key, each '=== example' as a table "
                "[[example]] (docs/annotation.md); the journal of a prompt with the same texts stays valid"
            ) from None
        raise UserError(f"{path}: not TOML: {error}; {remedy}") from None


def _read_rule(fields: Mapping[str, object], kind: str | None, path: Path) -> Rule:
    """The rule of the keys parse, kind, marks and fields. UserError where one is missing, unknown or unused."""
    if "parse" not in fields:
        raise UserError(f"{path}: no key parse; give one of {', '.join(RULE_NAMES)}, or a list of them")
    names = _read_list(fields, "parse", path)
    if unknown := [name for name in names if name not in RULE_NAMES]:
        raise UserError(f"{path}: unknown rule {unknown[0]!r:.50}; set parse to one of {', '.join(RULE_NAMES)}")
    if kind is not None and kind not in LABEL_KINDS:
        raise UserError(f"{path}: kind = {kind!r:.50}; choose one of {', '.join(LABEL_KINDS)}")
    settings: dict[str, Any] = {"kind": kind}
    for key, user in (("marks", "mark"), ("fields", "json")):
        if key in fields:
            if user not in names:
                raise UserError(f"{path}: {key} is used by the rule {user} only; add it to parse, or remove the key")
            settings[key] = _read_list(fields, key, path)
    if len(settings.get("fields", "12")) != 2:
        raise UserError(f"{path}: fields = {fields['fields']!r:.50}; give two names, those of rationale and answer")
    return make_rule(names, **settings)


def _read_list(fields: Mapping[str, object], key: str, path: Path) -> tuple[str, ...]:
    """A text or a list of texts, stripped. UserError for anything else, and for an empty list or text."""
    value = fields[key]
    items: list[Any] = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise UserError(f"{path}: {key} = {value!r:.50}; give a text in quotes, or a list of them")
    return tuple(item.strip() for item in items)


def read_texts(fields: Mapping[str, object], known: Iterable[str], place: str) -> dict[str, str]:
    """The values of a table, stripped. UserError for an unknown key and a value that is not a text."""
    texts = {}
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"{place}: unknown key {name!r}; choose from {', '.join(known)}")
        if not isinstance(value, str):
            raise UserError(f"{place}: {name} = {value!r:.50} is not a text; put it in quotes")
        texts[name] = value.strip()
    return texts


def _check_template(name: str, template: str, path: Path) -> None:
    used = set(PLACEHOLDER.findall(template))
    known = _PLACEHOLDERS if name == "hint" else _PLACEHOLDERS - {"answer"}
    if unknown := sorted(used - known):
        listed = ", ".join(f"{{{key}}}" for key in sorted(known))
        raise UserError(f"{path}: unknown placeholder {{{unknown[0]}}} in {name!r}; choose from {listed}")
    if not ("input" in used or {"premise", "hypothesis"} <= used):
        raise UserError(f"{path}: {name!r} lacks the question; write {{input}}, or {{premise}} and {{hypothesis}}")
    if name == "hint" and "answer" not in used:
        raise UserError(f"{path}: 'hint' lacks the answer; write {{answer}}")


def _worked_example(fields: Mapping[str, object], place: str, rule: Rule, templates: Iterable[str]) -> WorkedExample:
    texts = read_texts(fields, _EXAMPLE_KEYS, place)
    if missing := [name for name in _EXAMPLE_KEYS if not texts.get(name)]:
        raise UserError(f"{place}: {missing[0]} is missing or empty; give {', '.join(_EXAMPLE_KEYS)}")
    example = WorkedExample(**texts)
    rationale, answer = read_completion(example.completion, rule)
    if answer is None or not is_correct(answer, example.answer, rule.kind):
        raise UserError(
            f"{place}: the rule reads the answer {answer!r} off the completion, not {example.answer!r}; correct one"
        )
    if not rationale:
        raise UserError(f"{place}: the completion has an answer but no rationale before it; write one")
    for template in templates:
        _fill(template, example.input, example.answer, place)
    return example


def _fill(template: str, text: str, answer: str, place: str) -> str:
    values = {"input": text, "answer": answer}
    if "{premise}" in template or "{hypothesis}" in template:
        premise, separator, hypothesis = text.partition(EOS_TEXT)
        if not separator:
            raise UserError(f"{place}: no {EOS_TEXT} between premise and hypothesis, which the prompt needs; add it")
        values |= {"premise": premise.strip(), "hypothesis": hypothesis.strip()}
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)
