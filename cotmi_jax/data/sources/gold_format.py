"""What a gold row of the Distilling Step-by-Step release (arXiv 2305.02301) says: the student's input and its label."""

from cotmi_jax.data.sources.rows import Row, text_field
from cotmi_jax.data.vocabulary import EOS_TEXT
from cotmi_jax.errors import UserError

NLI_LABELS = ("entailment", "neutral", "contradiction")
NUM_CHOICES = 5


def read_gold(name: str, row: Row, place: str) -> tuple[str, str]:
    """Input and gold label of a row of a set, asdiv among them; place is "file:line" for messages.

    Raises:
      UserError: a field is missing, blank or of the wrong kind, or the label is none that the set has.
    """
    builders = {"anli1": _nli_gold, "asdiv": _asdiv_gold, "cqa": _cqa_gold, "esnli": _nli_gold, "svamp": _svamp_gold}
    text, label = builders[name](row, place)
    for what, value in (("input", text.replace(EOS_TEXT, "")), ("label", label)):
        if not value.strip():
            raise UserError(f"{place}: the {what} is empty; correct or remove the row")
    return text, label


def _svamp_gold(row: Row, place: str) -> tuple[str, str]:
    return text_field(row, "input", place), text_field(row, "label", place)


def _asdiv_gold(row: Row, place: str) -> tuple[str, str]:
    """SVAMP's fields, or the original ones, where the release takes the first word of the answer ("9 (apples)")."""
    if "Body" not in row:
        return _svamp_gold(row, place)
    text = f"{text_field(row, 'Body', place)}\n{text_field(row, 'Question', place)}"
    return text, text_field(row, "Answer", place).strip().split(" ")[0]


def _cqa_gold(row: Row, place: str) -> tuple[str, str]:
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{place}: choices = {choices!r:.80}; give a list of {NUM_CHOICES} texts")
    label = text_field(row, "answer", place)
    if label not in choices:
        raise UserError(f"{place}: answer = {label!r:.80}; give one of the choices, {', '.join(choices)}")
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    return f"{text_field(row, 'question', place)}\nAnswer Choices:\n{listed}", label


def _nli_gold(row: Row, place: str) -> tuple[str, str]:
    """Premise and hypothesis stand on either side of the end-of-sequence text, as in the release."""
    label = row.get("label")
    if type(label) is not int or not 0 <= label < len(NLI_LABELS):
        named = ", ".join(f"{i} ({text})" for i, text in enumerate(NLI_LABELS))
        raise UserError(f"{place}: label = {label!r}; give one of {named}")
    return f"{text_field(row, 'premise', place)}{EOS_TEXT}{text_field(row, 'hypothesis', place)}", NLI_LABELS[label]
