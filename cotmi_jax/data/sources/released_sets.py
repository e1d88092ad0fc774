"""The data sets of the Distilling Step-by-Step release (arXiv 2305.02301), one entry of RELEASED each.

To add a data set in the layout of the release (see `released`), add its entry here, with a function that reads its gold
rows and one that splits its completions where none of those below fits. Training, TensorFlow Datasets and `annotate`
then accept its name.

The teacher was prompted with a few worked problems, so a completion is a rationale, a marker, a label, and often an
invented next problem. Completions are split by the rules of the release, with two differences. Where the release gives
a blank for a label it cannot read, the label here is None. Where the marker is missing or repeated the release blanks
the rationale too (or stops); here it is the text up to the first marker, or all of it without one, so that it never
holds the label. Rationales and labels are stripped.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from cotmi_jax.data.example import EOS_TEXT, Example, LabelKind
from cotmi_jax.data.sources.base import cluster_key
from cotmi_jax.data.sources.rows import Row, check_text, text_field
from cotmi_jax.errors import UserError, one_line, shown

NLI_LABELS = ("entailment", "neutral", "contradiction")
NUM_CHOICES = 5
# A mark of the answer and what may precede the label behind it: words, or the letter of a choice.
_ANSWER_START = r"\s*(?:So the answer is|The answer is|Answer:)[^\n(]*(?:\(.\)\s*)?"
TEACHERS = ("palm", "gpt-neox")
_CHOICES_MARK = "Answer Choices:\n"
CHOICE_LINE = re.compile(r"^\(([a-z])\) (.+)$", re.MULTILINE)

ReadRow = Callable[[Row, str], tuple[str, str]]
ParseCompletion = Callable[[str], tuple[str, str | None]]


@dataclasses.dataclass(frozen=True)
class ReleasedSet:
    """How one data set of the release is read.

    read_row: (gold row, place) → input and gold label; place is "file:line" for messages.
    parse: completion → rationale and label, the label None where it cannot be read.
    kind: how labels are compared.
    rule: the name of `parse` and `kind` in a prompt of `annotate` (its key `parse`); data sets can share one.
    parse_for_teacher: parsers for those of TEACHERS whose completions differ from what `parse` reads.
    extends: the data set whose train split this one can extend (config.data.augment_asdiv); None for a data set that
      config.data.dataset can name.
    choices: input → the labels that it can have; () if they are open.
    shared: input → the text that dependent examples have in common.
    """

    read_row: ReadRow
    parse: ParseCompletion
    kind: LabelKind
    rule: str
    parse_for_teacher: Mapping[str, ParseCompletion] = dataclasses.field(default_factory=dict)
    extends: str | None = None
    choices: Callable[[str], tuple[str, ...]] = lambda text: ()
    shared: Callable[[str], str] = lambda text: text

    def related(self, example: Example, source: str) -> Example:
        """The example with its choices and its cluster among the examples of a source."""
        cluster = cluster_key(source, self.shared(example.input))
        return dataclasses.replace(example, choices=self.choices(example.input), cluster=cluster)

    def read_gold(self, row: Row, place: str) -> tuple[str, str]:
        """Input and gold label of a row.

        Raises:
          UserError: a field is missing, blank or of the wrong type, or the data set has no such label.
        """
        text, label = self.read_row(row, place)
        for what, value in (("input", text.replace(EOS_TEXT, "")), ("label", label)):
            if not value.strip():
                raise UserError(f"{place}: the {what} is empty; correct or remove the row")
        return text, label

    def parser(self, teacher: str) -> ParseCompletion:
        """The function that splits the completions of one of TEACHERS."""
        return self.parse_for_teacher.get(teacher, self.parse)


def _read_svamp(row: Row, place: str) -> tuple[str, str]:
    return text_field(row, "input", place), text_field(row, "label", place)


def _read_asdiv(row: Row, place: str) -> tuple[str, str]:
    """SVAMP's fields, or the original ones, where the release takes the first word of the answer ("9 (apples)")."""
    if "Body" not in row:
        return _read_svamp(row, place)
    text = f"{text_field(row, 'Body', place)}\n{text_field(row, 'Question', place)}"
    return text, text_field(row, "Answer", place).strip().split(" ")[0]


def _read_cqa(row: Row, place: str) -> tuple[str, str]:
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{place}: choices = {shown(choices)}; give a list of {NUM_CHOICES} texts")
    for choice in choices:
        check_text(choice, "choices", place)
    label = text_field(row, "answer", place)
    if label not in choices:
        raise UserError(f"{place}: answer = {shown(label)}; give one of the choices, {one_line(', '.join(choices))}")
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    return f"{text_field(row, 'question', place)}\n{_CHOICES_MARK}{listed}", label


def _read_nli(row: Row, place: str) -> tuple[str, str]:
    """The end-of-sequence text separates premise and hypothesis, as in the release."""
    label = row.get("label")
    if type(label) is not int or not 0 <= label < len(NLI_LABELS):
        named = ", ".join(f"{i} ({text})" for i, text in enumerate(NLI_LABELS))
        raise UserError(f"{place}: label = {shown(label)}; give one of {named}")
    return f"{text_field(row, 'premise', place)}{EOS_TEXT}{text_field(row, 'hypothesis', place)}", NLI_LABELS[label]


def find_choices(text: str) -> dict[str, str]:
    """Letter → choice of an input in the format of CommonsenseQA, "… Answer Choices:\\n(a) park\\n(b) …"; else {}."""
    _, mark, listed = text.partition(_CHOICES_MARK)
    return {letter: choice.strip() for letter, choice in CHOICE_LINE.findall(listed)} if mark else {}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(find_choices(text).values()))


def _relations(text: str) -> tuple[str, ...]:
    return NLI_LABELS


def _question(text: str) -> str:
    """The question of CommonsenseQA, which can occur with several lists of choices."""
    return text.partition(_CHOICES_MARK)[0].strip()


def _premise(text: str) -> str:
    return text.partition(EOS_TEXT)[0].strip()


def _opening(text: str) -> str:
    """The first three words of an arithmetic problem, such as "jack received emails".

    SVAMP's problems are variants of about a hundred, with other numbers, questions and sentences; the release does not
    say of which. In train and test these words find 68% of the pairs that share half of their content words, and 99% of
    the pairs that they find do.
    """
    return " ".join(re.findall(r"[a-z']+", text.lower())[:3])


def parse_cqa(completion: str) -> tuple[str, str | None]:
    """CommonsenseQA: "… So the answer is (d) a cork." → text between "(d)" and the next "(x)", final "." dropped.

    Of a teacher that names two choices the label is half the answer ("a cork or"), which equals no choice.
    """
    rationale, answer = _split_at(completion.split("Q:")[0], "So the answer is")
    _, *named = re.split(r"\(.\)", answer)
    return rationale, (named[0].strip().removesuffix(".") or None) if named else None


def parse_equation(completion: str) -> tuple[str, str | None]:
    """SVAMP and ASDiv: "… The answer is (6 * 7) * 2." → the widest "(…)" on one line, here "(6 * 7)"."""
    rationale, answer = _split_at(completion.split("Q:")[0], "The answer is")
    # Not re.search(r"\(.*\)"), whose time is quadratic in the number of unclosed parentheses.
    ends = ((line, line.find("("), line.rfind(")")) for line in answer.split("\n"))
    return rationale, next((line[start : end + 1] for line, start, end in ends if 0 <= start < end), None)


def parse_esnli(completion: str) -> tuple[str, str | None]:
    """e-SNLI: "…\\nAnswer: neutral\\n\\nPremise: …" → the text between "Answer: " and "Premise".

    Completions end after a fixed number of tokens: a label cut off there, such as "entail", is kept as it is.
    """
    rationale, _, answer = completion.partition("Answer:")
    label = answer.split("Premise")[0].strip() if answer.startswith(" ") else ""
    return rationale.strip(), label or None


def parse_anli(completion: str) -> tuple[str, str | None]:
    """ANLI: "… So the answer is neutral.\\n\\nPremise: …" → the answer without its last character."""
    return _before_last_character(completion, "So the answer is")


def parse_anli_gpt_neox(completion: str) -> tuple[str, str | None]:
    """The same; the marker is "The answer is" where the completion has no "So the answer is"."""
    marker = "So the answer is"
    return _before_last_character(completion, marker if marker in completion.split("Premise:")[0] else "The answer is")


def answer_sentence(completion: str, rationale: str, label: str | None) -> str:
    """The sentence behind the rationale of a completion that states the label, up to the label; "" without one."""
    if not label:
        return ""
    start = completion.find(rationale) + len(rationale)
    match = re.compile(_ANSWER_START + re.escape(label)).match(completion, start)
    return match[0].strip() if match else ""


def _before_last_character(completion: str, marker: str) -> tuple[str, str | None]:
    rationale, answer = _split_at(completion.split("Premise:")[0], marker)
    return rationale, answer[:-1] or None


def _split_at(completion: str, marker: str) -> tuple[str, str]:
    """Rationale and answer; the answer is empty, that is unreadable, unless the marker occurs exactly once."""
    rationale, *answers = completion.split(marker)
    return rationale.strip(), answers[0].strip() if len(answers) == 1 else ""


RELEASED: dict[str, ReleasedSet] = {
    "anli1": ReleasedSet(
        _read_nli,
        parse_anli,
        kind="text",
        rule="anli",
        parse_for_teacher={"gpt-neox": parse_anli_gpt_neox},
        choices=_relations,
        shared=_premise,
    ),
    "cqa": ReleasedSet(_read_cqa, parse_cqa, kind="text", rule="cqa", choices=_listed, shared=_question),
    "esnli": ReleasedSet(_read_nli, parse_esnli, kind="text", rule="esnli", choices=_relations, shared=_premise),
    "svamp": ReleasedSet(_read_svamp, parse_equation, kind="equation", rule="equation", shared=_opening),
    "asdiv": ReleasedSet(
        _read_asdiv, parse_equation, kind="equation", rule="equation", extends="svamp", shared=_opening
    ),
}
# The data sets that config.data.dataset can name.
RELEASED_NAMES = tuple(name for name, released in RELEASED.items() if released.extends is None)
