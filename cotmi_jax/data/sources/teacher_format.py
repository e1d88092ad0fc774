"""What a teacher's raw completion says: its rationale and its label, by the rules of Distilling Step-by-Step.

The teacher was prompted with a few worked problems, so a completion is a rationale, a marker, a label, and often a
made-up next problem. The rules that take it apart are those of the release (arXiv 2305.02301), with two differences.
Where the release writes a blank for a label it cannot read, the label here is None. Where the marker is missing or
repeated the release blanks the rationale too (or stops); here it is the text up to the first marker, or all of it
without one, so that it never holds the label. Both ends of rationales and labels are stripped.
"""

import re


def parse_cqa(completion: str) -> tuple[str, str | None]:
    """CommonsenseQA: "… So the answer is (d) a cork." → text between "(d)" and the next "(x)", final "." dropped.

    A teacher that names two choices thus leaves half of its answer ("a cork or"), which equals no choice.
    """
    rationale, answer = _split_at(completion.split("Q:")[0], "So the answer is")
    _, *named = re.split(r"\(.\)", answer)
    return rationale, (named[0].strip().removesuffix(".") or None) if named else None


def parse_equation(completion: str) -> tuple[str, str | None]:
    """SVAMP and ASDiv: "… The answer is (6 * 7) * 2." → the widest "(…)" on one line, here "(6 * 7)"."""
    rationale, answer = _split_at(completion.split("Q:")[0], "The answer is")
    widest = re.search(r"\(.*\)", answer)
    return rationale, widest[0] if widest else None


def parse_esnli(completion: str) -> tuple[str, str | None]:
    """e-SNLI: "…\\nAnswer: neutral\\n\\nPremise: …" → what stands between "Answer: " and "Premise".

    Completions end after a fixed number of tokens: labels such as "entail" are cut off there and kept as they are.
    """
    rationale, _, answer = completion.partition("Answer:")
    label = answer.split("Premise")[0].strip() if answer.startswith(" ") else ""
    return rationale.strip(), label or None


def parse_anli(completion: str, teacher: str) -> tuple[str, str | None]:
    """ANLI: "… So the answer is neutral.\\n\\nPremise: …" → the answer without its last character.

    teacher "gpt-neox" also writes "The answer is".
    """
    said = completion.split("Premise:")[0]
    marker = "So the answer is"
    if teacher == "gpt-neox" and marker not in said:
        marker = "The answer is"
    rationale, answer = _split_at(said, marker)
    return rationale, answer[:-1] or None


def _split_at(said: str, marker: str) -> tuple[str, str]:
    """Rationale and answer; the answer is empty, that is unreadable, unless the marker occurs exactly once."""
    rationale, *answers = said.split(marker)
    return rationale.strip(), answers[0].strip() if len(answers) == 1 else ""
