"""Whether a student's rationale leads to its own label, and whether the steps of its calculation are true.

The label is generated without the rationale, so nothing but training makes the two agree. What a rationale concludes is
read by `read_answer`; a rationale from which nothing is read counts as one that does not agree, and its share is given.
Beside the agreement stands the same share for labels of other examples: what rationales and labels that have nothing
but their distributions in common would reach. Imports no jax.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from cotmi_jax.data.labels import Value, equal_values, evaluate_expression
from cotmi_jax.data.sources.deduction_theories import read_claim, read_label
from cotmi_jax.data.tasks import ANSWER_MARK
from cotmi_jax.evaluation.confidences import cluster_keys
from cotmi_jax.evaluation.scores import Prediction, Score, clustered_share, share_by_cluster

MAX_LABELS = 20  # a set with more different gold labels is not closed: its labels are no candidates

_SIGNS = str.maketrans("×÷−–", "*/--")
_TIMES = re.compile(r"(?<=\d) ?x ?(?=\d)")  # 3 x 4
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_OPERAND = rf"(?:\$ ?)?(?:{_NUMBER}|\([^()=]{{1,100}}\))"
# "12 + 5 = 17", "10 - (3 + 6) = 1": the bounds keep the time linear in the length of the text.
_STEP = re.compile(
    rf"(?<![\d.,])((?:(?<![\d)])(?<![\d)] )-)?{_OPERAND}(?: ?[-+*/] ?{_OPERAND}){{1,20}}) ?= ?(?:\$ ?)?(-?{_NUMBER})"
)
_AFTER_EQUALS = re.compile(rf"= ?(?:\$ ?)?(-?{_NUMBER}|\()([^=a-zA-Z]*)")
_MARK = re.compile(rf"(?:{ANSWER_MARK}|The answer is):?|\bAnswer:", re.IGNORECASE)
_LETTERED = re.compile(r"^\((\w)\) *(.*)$", re.MULTILINE)
_INPUT_CHOICE = re.compile(r"^\((\w)\) (.+)$", re.MULTILINE)  # as CommonsenseQA lists its choices


def _plain(text: str) -> str:
    """The text with operators that `evaluate_expression` reads."""
    return _TIMES.sub(" * ", text.translate(_SIGNS))


def _value(text: str) -> Value | None:
    return evaluate_expression(text.replace(",", "").replace("$", "").strip().rstrip("."))


def read_steps(text: str) -> list[tuple[str, str]]:
    """The steps "a op b = c" of a calculation, in order: left side and result, such as ("12 + 5", "17").

    A side may have several operations and parentheses. Of "2 + 3 = 5 * 4 = 20" both steps are read.
    """
    plain, steps, start = _plain(text), [], 0
    while match := _STEP.search(plain, start):
        steps.append((match[1], match[2]))
        start = match.start(2)  # the result can be the first operand of the next step
    return steps


def is_true(step: tuple[str, str]) -> bool:
    """Whether both sides of a step have the same value."""
    left, result = step
    return equal_values(_value(left), _value(result))


def _is_grounded(steps: Sequence[tuple[str, str]], story: str) -> bool:
    """Whether every operand is a number of the story, written in digits, or the result of an earlier step.

    Signs are left out: of "13 - 91 = -78. -78 + 154 = 76" the second step is grounded.
    """
    known = {_value(number) for number in re.findall(_NUMBER, story)}
    for left, result in steps:
        if not {_value(number) for number in re.findall(_NUMBER, left)} <= known:
            return False
        known.add(_value(result.lstrip("-")))
    return True


def _stated(rationale: str) -> str:
    """The text after the last mark of an answer; "" if there is none."""
    marks = list(_MARK.finditer(rationale))
    return rationale[marks[-1].end() :].partition("\n")[0].strip() if marks else ""


def read_value(rationale: str) -> Value | None:
    """The value that a calculation ends in: that after its last "=", or else of its answer sentence; None: neither."""
    plain = _plain(rationale)
    if endings := list(_AFTER_EQUALS.finditer(plain)):
        number, rest = endings[-1].groups()
        found = _value(number + rest)  # "= 5 + 3 eggs" is 8
        return _value(number) if found is None else found
    return _value(_stated(plain))


def _choices(text: str) -> dict[str, str]:
    """The choices that an input lists, by letter."""
    return {letter: choice.strip() for letter, choice in _INPUT_CHOICE.findall(text)}


def _named(text: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a text names as whole words in any case, if it names one only.

    A candidate within a longer one that is named there ("area" in "wooded area") is not named.
    """
    by_text = {candidate.casefold(): candidate for candidate in candidates if candidate}
    if not by_text:
        return None
    longest_first = sorted(by_text, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    found = set(re.findall(pattern, text.casefold()))
    return by_text[found.pop()] if len(found) == 1 else None


def read_choice(rationale: str, choices: Mapping[str, str]) -> str | None:
    """The choice that a rationale answers with: by its answer sentence, or else the only one it names; None: neither.

    choices: by letter, or by any key that "(key)" in an answer sentence does not match.
    """
    if stated := _stated(rationale):
        letter, text = _LETTERED.findall(stated)[0] if _LETTERED.match(stated) else ("", stated)
        exact = {choice.casefold(): choice for choice in choices.values()}.get(text.rstrip(" .").casefold())
        return exact or choices.get(letter) or _named(text, choices.values())
    return _named(rationale, choices.values())


def _key(value: Value | None) -> Fraction | float | None:
    """The same for values that `equal_values` takes for equal, but for rounding at the limit of its tolerance."""
    if value is None:
        return None
    return value if isinstance(value, Fraction) and value.denominator == 1 else float(f"{float(value):.6g}")


def candidates_of(prediction: Prediction) -> dict[str, str]:
    """The labels that an example can have, by letter where its input lists them, else by themselves; {}: not known."""
    listed, given = _choices(prediction["input"]), prediction.get("choices")
    if not given:
        return listed
    lettered = {letter: choice for letter, choice in listed.items() if choice in given}
    return lettered | {choice: choice for choice in given if choice not in lettered.values()}


class Answers(NamedTuple):
    """Answers to one example, as objects that are equal where they mean the same; None: unreadable."""

    rationale: object  # the answer that the rationale leads to
    label: object  # the student's own
    gold: object


def read_answers(predictions: Sequence[Prediction]) -> list[Answers | None]:
    """The answers of each prediction; None for one without a rationale, or without candidates for its answer.

    A gold label with a value makes the example one of calculation. Another has its own choices, those that its input
    lists, or the gold labels of all, if they are MAX_LABELS at most.
    """
    labels = {prediction["label"].strip() for prediction in predictions}
    closed = {label: label for label in labels} if 1 < len(labels) <= MAX_LABELS else {}
    found: list[Answers | None] = []
    for prediction in predictions:
        rationale, own, gold = prediction["predicted_rationale"], prediction["predicted_label"], prediction["label"]
        if rationale is None:
            found.append(None)
        elif (value := evaluate_expression(gold)) is not None:
            found.append(Answers(_key(read_value(rationale)), _key(evaluate_expression(own)), _key(value)))
        elif choices := candidates_of(prediction) or closed:
            answer, claim = read_choice(rationale, choices), read_claim(prediction["input"])
            if answer is None and claim:
                answer = read_label(rationale, claim)  # a proof, whose last sentence gives the label of the claim
            text = own.strip().casefold() or None
            found.append(Answers(answer and answer.casefold(), text, gold.strip().casefold()))
        else:
            found.append(None)
    return found


def permuted(answers: Sequence[object], labels: Sequence[object], clusters: Sequence[Hashable]) -> Score:
    """The expected share of answers that equal the label of another example, over all pairs of two examples.

    The interval is that of the jackknife for this U-statistic that leaves out one cluster at a time; None for fewer
    than 3 clusters. Raises ValueError for fewer than 3 examples.
    """
    n = len(answers)
    if n < 3:
        raise ValueError(f"a share over pairs of examples needs at least 3 examples, not {n}")
    total = _matching_pairs(answers, labels)
    of_labels, of_answers = Counter(labels), Counter(answers)
    rows_of: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        rows_of.setdefault(cluster, []).append(row)
    left_out = []
    for rows in rows_of.values():
        own, theirs = [answers[row] for row in rows], [labels[row] for row in rows]
        # Pairs with its answers and pairs with its labels; those with both, one example or two, are in either.
        pairs = sum(of_labels[answer] for answer in own if answer is not None)
        pairs += sum(of_answers[label] for label in theirs if label is not None)
        hits = sum(a is not None and a == b for a, b in zip(own, theirs, strict=True))
        rest = total - (pairs - 2 * hits - _matching_pairs(own, theirs))
        left_out.append(rest / ((n - len(rows)) * (n - len(rows) - 1)) if n - len(rows) > 1 else 0.0)
    value, groups = total / (n * (n - 1)), len(left_out)
    if groups < 3:
        return Score(value=value, interval=None, n=n)
    mean = sum(left_out) / groups
    error = math.sqrt((groups - 1) / groups * sum((each - mean) ** 2 for each in left_out))
    interval = (max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))
    return Score(value=value, interval=interval, n=n)


def _matching_pairs(answers: Sequence[object], labels: Sequence[object]) -> int:
    """Ordered pairs of two different examples, of which the answer of the first equals the label of the second."""
    of_labels = Counter(labels)
    pairs = sum(of_labels[answer] for answer in answers if answer is not None)
    return pairs - sum(a is not None and a == b for a, b in zip(answers, labels, strict=True))


class Agreement(NamedTuple):
    """Of each example whether its rationale leads to its own label, to gold, and to no answer; None: it has none."""

    own: list[bool | None]
    gold: list[bool | None]
    no_answer: list[bool | None]

    @classmethod
    def of(cls, found: Sequence[Answers | None]) -> "Agreement":
        """From the answers of `read_answers`. A rationale without a readable answer agrees with no label."""
        return cls(
            [None if each is None else each.rationale is not None and each.rationale == each.label for each in found],
            [None if each is None else each.rationale is not None and each.rationale == each.gold for each in found],
            [None if each is None else each.rationale is None for each in found],
        )


def agreement(predictions: Sequence[Prediction]) -> dict[str, Score]:
    """Shares of rationales, all of which count, with intervals that take clusters of examples as independent.

    agreement: the answer of the rationale is the student's own label; agreement_gold: the gold label;
    agreement_permuted: the own label of another example, in expectation over all other examples; no_answer: no answer
    can be read; it stands alone where none can. Nothing for predictions without rationales or without candidates.
    """
    found = zip(read_answers(predictions), cluster_keys(predictions), strict=True)
    known = [(each, cluster) for each, cluster in found if each is not None]
    if not known:
        return {}
    clusters = [cluster for _, cluster in known]
    hits = Agreement.of([each for each, _ in known])
    no_answer = {"no_answer": share_by_cluster(map(bool, hits.no_answer), clusters)}
    if all(hits.no_answer):
        return no_answer
    scores = {
        name: share_by_cluster(map(bool, each), clusters)
        for name, each in (("agreement", hits.own), ("agreement_gold", hits.gold))
    }
    if len(known) >= 3:
        answers, own, _ = zip(*(each for each, _ in known), strict=True)
        scores["agreement_permuted"] = permuted(answers, own, clusters)
    return scores | no_answer


class Steps(NamedTuple):
    """The steps of a rationale, whether each is true, and whether all are, with operands that are known by then."""

    true: list[bool]
    sound: bool


def check_steps(prediction: Prediction) -> Steps | None:
    """The steps of a prediction's rationale; None without one, or where the gold label has no value."""
    if prediction["predicted_rationale"] is None or evaluate_expression(prediction["label"]) is None:
        return None
    found = read_steps(prediction["predicted_rationale"])
    true = [is_true(step) for step in found]
    return Steps(true, bool(found) and all(true) and _is_grounded(found, prediction["input"]))


def steps(predictions: Sequence[Prediction]) -> dict[str, Score]:
    """The arithmetic of rationales of examples whose gold label has a value; nothing without such rationales.

    Intervals take clusters of examples as independent, not their steps. true_steps: share of steps whose sides are
    equal. sound_rationales: share of rationales that have a step, whose steps are all true, and whose operands are all
    numbers of the input or results of earlier steps. no_steps: share of rationales without a step.
    """
    pairs = zip(map(check_steps, predictions), cluster_keys(predictions), strict=True)
    read = [(found, cluster) for found, cluster in pairs if found is not None]
    if not read:
        return {}
    clusters = [cluster for _, cluster in read]
    scores: dict[str, Score] = {}
    if any(found.true for found, _ in read):
        hits, totals = Counter[str](), Counter[str]()
        for found, cluster in read:
            hits[cluster] += sum(found.true)
            totals[cluster] += len(found.true)
        scores["true_steps"] = clustered_share([hits[cluster] for cluster in totals], [*totals.values()])
    return scores | {
        "sound_rationales": share_by_cluster([found.sound for found, _ in read], clusters),
        "no_steps": share_by_cluster([not found.true for found, _ in read], clusters),
    }
