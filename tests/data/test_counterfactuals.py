"""Counterfactual pairs: other answers of the same input, whose rationale leads to them."""

import dataclasses
import re

import pytest

from cotmi_jax.data import counterfactuals as module
from cotmi_jax.data.counterfactuals import counterfactuals, register_counterfactuals, rules_identity, with_pair
from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.labels import evaluate_expression, is_correct
from cotmi_jax.data.sources.arithmetic import make_arithmetic

STORY = "Eva has 12 red and 5 blue bags. Each holds 3 shells. How many shells has Eva?"
EVA = Example(
    "svamp/train/7",
    STORY,
    "( ( 12.0 + 5.0 ) * 3.0 )",
    "Eva has 12 red and 5 blue bags. So she has 12 + 5 = 17 bags. 17 bags hold 17 * 3 = 51 shells. So Eva has 51.",
    kind="equation",
)
CHOICE = Example(
    "cqa/train/0",
    "Where do people pray?\nAnswer Choices:\n(a) office building\n(b) office\n(c) church\n(d) ice rink\n(e) church",
    "church",
    "People pray in a church. Churches are quiet. A Church is not an office.",
    "church",
)
NLI = Example("esnli/train/0", "A dog runs.</s>A dog sleeps.", "contradiction", "The dog is running, not sleeping.")


def last_value(rationale: str) -> str:
    return re.findall(r"= (\d+)", rationale)[-1]


def equations(rationale: str) -> list[str]:
    return re.findall(r"\d+ [-+*/] \d+ = \d+", rationale)


def test_pairs_differ_from_the_example_and_from_each_other_and_depend_on_id_and_seed_alone() -> None:
    for example in (EVA, CHOICE, NLI):
        pairs = counterfactuals(example, 4, 0)
        assert len(pairs) >= 1 and len(counterfactuals(example, 1, 0)) == 1
        assert counterfactuals(dataclasses.replace(example), 4, 0) == pairs
        contrasted = [Pair(example.label, example.rationale), *pairs]
        for i, pair in enumerate(contrasted):
            for other in contrasted[:i]:
                assert not is_correct(pair.label, other.label, example.kind) and pair.rationale != other.rationale
    assert len({counterfactuals(EVA, 1, seed) for seed in range(20)}) > 4
    assert len({counterfactuals(dataclasses.replace(EVA, id=f"svamp/train/{row}"), 1, 0) for row in range(20)}) > 4
    assert counterfactuals(EVA, 0, 0) == ()


def test_every_step_of_an_exchanged_solution_is_true_and_ends_in_the_value_of_its_label() -> None:
    examples = make_arithmetic(0, 60, 0, 0).splits["train"]
    found = 0
    for example in (EVA, *examples):
        for pair in counterfactuals(example, 4, 0):
            found += 1
            assert is_correct(last_value(pair.rationale), pair.label, "equation"), pair
            assert all(is_correct(*step.split(" = "), "equation") for step in equations(pair.rationale)), pair
            assert len(equations(pair.rationale)) == len(equations(example.rationale))
    agree = [e for e in examples if is_correct(str(e.teacher_label), e.label, "equation")]
    assert len(agree) < len(examples)
    assert all(bool(counterfactuals(e, 1, 0)) == (e in agree) for e in examples)  # errors of the teacher have none
    assert found > 150


def test_an_exchange_is_carried_through_the_steps_the_restated_result_and_its_sentence() -> None:
    by_label = {p.label: p.rationale for seed in range(30) for p in counterfactuals(EVA, 4, seed)}
    assert by_label["( ( 12.0 - 5.0 ) * 3.0 )"] == (
        "Eva has 12 red and 5 blue bags. So she has 12 - 5 = 7 bags. 7 bags hold 7 * 3 = 21 shells. So Eva has 21."
    )
    assert by_label["( ( 3.0 + 5.0 ) * 3.0 )"] == (
        "Eva has 12 red and 5 blue bags. So she has 3 + 5 = 8 bags. 8 bags hold 8 * 3 = 24 shells. So Eva has 24."
    )
    assert "( ( 12.0 + 5.0 ) / 3.0 )" not in by_label  # 17 / 3 is not whole
    assert "( ( 12.0 * 5.0 ) * 3.0 )" not in by_label  # 180 is more than twice the largest number
    # Results of at most the largest number, 51, come before 60 = 12 * 5 and 85 = 17 * 5.
    for seed in range(10):
        pairs = counterfactuals(EVA, 99, seed)
        exceeds = [max(map(int, re.findall(r"= (\d+)", pair.rationale))) > 51 for pair in pairs]
        assert exceeds == sorted(exceeds) and 1 < sum(exceeds) < len(exceeds)


@pytest.mark.parametrize(
    ("rationale", "why"),
    [
        ("Eva has 12 + 5 = 17 bags.", "does not reach the label's last operation"),
        ("Eva has 12 - 5 = 7 bags. 7 * 3 = 21.", "leads to another answer"),
        ("12 + 5 = 17 bags. 17 * 3 = 51 shells. 51 - 12 = 39.", "continues to another answer"),
        ("Eva has 51 shells.", "states no step"),
        ("12 + 5 = 18 bags. 18 * 3 = 51.", "has false steps"),
    ],
)
def test_a_solution_that_does_not_lead_to_the_label_has_no_counterfactual(rationale: str, why: str) -> None:
    assert counterfactuals(dataclasses.replace(EVA, rationale=rationale), 4, 0) == (), why


def test_hostile_texts_take_no_time_and_raise_nothing() -> None:
    for text in (
        "(" * 4000,
        ")1" * 2000,
        "1+" * 2000 + "1",
        "1 + 1 = 2. " * 2000,
        "9" * 4990,
        "1,000" * 400,
        "٣ + ² = 5",
    ):
        for label in ("( 1 + 1 )", "(" * 99 + "1+1" + ")" * 99, "1+" * 99 + "1", "9" * 200, "1 + 1 / 0"):
            example = Example("a/train/0", text[:99], label, f"{text} 1 + 1 = 2", kind="equation")
            assert all(is_correct(last_value(p.rationale), p.label, "equation") for p in counterfactuals(example, 1, 0))


def test_a_number_that_could_be_a_result_or_of_the_story_rules_an_exchange_out() -> None:
    story = "Leo has 6 red pens and 3 blue pens. He uses 9 of his 12 stamps. How many pens?"
    example = Example("svamp/train/0", story, "( 6.0 + 3.0 )", "6 + 3 = 9 pens. So 9.", kind="equation")
    assert counterfactuals(example, 4, 0) == ()  # "So 9" can be the result or the stamps
    clear = dataclasses.replace(example, input=story.replace("9", "8"))
    assert all(re.search(r"= (\d+) pens\. So \1\.", pair.rationale) for pair in counterfactuals(clear, 4, 0))


def test_steps_that_state_operands_in_another_order_stay_true_and_false_steps_are_not_exchanged() -> None:
    swapped = dataclasses.replace(EVA, rationale="Eva has 5 + 12 = 17 bags. They hold 3 * 17 = 51 shells.")
    false = dataclasses.replace(EVA, rationale="Eva has 12 + 5 = 18 bags. They hold 17 * 3 = 51 shells.")
    for seed in range(20):
        for pair in counterfactuals(swapped, 4, seed):
            assert all(is_correct(*step.split(" = "), "equation") for step in equations(pair.rationale)), pair
        assert all(
            "12 + 5 = 18" in p.rationale and "( 12.0 + 5.0 )" in p.label for p in counterfactuals(false, 4, seed)
        )
    assert counterfactuals(swapped, 4, 0)


def test_expressions_in_other_forms_are_matched() -> None:
    story = "Mia pays 1,200 dollars for 4 shares and 5 dollars for a stamp. How many dollars does she pay?"
    rationale = (
        "The 4 shares cost 4*1,200 is $4,800 dollars. So (1,200 * 4) + 5 = 4,805. The answer is ((1,200 * 4) + 5)."
    )
    example = Example("svamp/train/1", story, "((1200 * 4) + 5)", rationale, kind="equation")
    pairs = {p.label: p.rationale for seed in range(20) for p in counterfactuals(example, 9, seed)}
    assert pairs["((1200 * 4) - 5)"] == (
        "The 4 shares cost 4*1,200 is $4,800 dollars. So (1,200 * 4) - 5 = 4,795. The answer is ((1,200 * 4) - 5)."
    )
    assert pairs["((1200 * 5) + 5)"] == (
        "The 5 shares cost 5*1,200 is $6,000 dollars. So (1,200 * 5) + 5 = 6,005. The answer is ((1,200 * 5) + 5)."
    )
    assert all(evaluate_expression(label) is not None for label in pairs)


def test_another_choice_takes_the_place_of_the_label_with_case_plural_and_article() -> None:
    pairs = dict(p[:2] for p in counterfactuals(CHOICE, 9, 0))
    assert pairs == {
        "office building": (
            "People pray in an office building. Office buildings are quiet. An Office building is not an office."
        ),
        "ice rink": "People pray in an ice rink. Ice rinks are quiet. An Ice rink is not an office.",
    }  # "office" is named beside the label, "church" twice among the choices


@pytest.mark.parametrize("choices", [("office", "office building"), ("office building", "office")])
def test_a_choice_within_a_longer_one_is_not_named(choices: tuple[str, str]) -> None:
    listed = "?\nAnswer Choices:\n(a) {}\n(b) {}\n(c) shop".format(*choices)
    example = Example("cqa/train/0", listed, "office", "Only an office building.")
    assert counterfactuals(example, 1, 0) == ()


def test_an_article_is_not_doubled() -> None:
    example = Example("cqa/train/0", "?\nAnswer Choices:\n(a) a tree\n(b) shop", "shop", "Only a shop, the shop.")
    assert counterfactuals(example, 1, 0) == (Pair("a tree", "Only a tree, a tree."),)


@pytest.mark.parametrize(
    "rationale", ["People pray quietly.", "People pray in a churchyard.", "Pray in an office building."]
)
def test_a_choice_that_is_not_named_has_no_counterfactual(rationale: str) -> None:
    assert counterfactuals(dataclasses.replace(CHOICE, rationale=rationale), 1, 0) == ()


def test_the_answer_sentence_is_exchanged_along_and_ends_with_the_answer() -> None:
    choice = dataclasses.replace(CHOICE, answer_text="So the answer is (c) church")
    pairs = {pair.label: pair for pair in counterfactuals(choice, 9, 0)}
    assert pairs["ice rink"].answer_text == "So the answer is (d) ice rink"
    stated = "The answer is (3 * (12 + 5))"
    equation = dataclasses.replace(EVA, teacher_label="(3 * (12 + 5))", answer_text=stated)
    relation = dataclasses.replace(NLI, teacher_label="contradiction", answer_text="Answer: contradiction")
    for example in (choice, equation, relation):
        for pair in counterfactuals(example, 4, 0):
            other = with_pair(example, pair)
            assert (other.label, other.rationale, other.answer_text) == pair and other.teacher_label
            assert pair.answer_text.endswith(other.teacher_label) and other.input == example.input
            assert is_correct(other.teacher_label, pair.label, example.kind) and "answer" not in pair.rationale
    assert counterfactuals(equation, 4, 0)
    # A sentence whose expression is not that of the label cannot be exchanged.
    product = dataclasses.replace(EVA, teacher_label="(36 + 15)", answer_text="The answer is (36 + 15)")
    assert counterfactuals(product, 4, 0) == ()


@pytest.mark.parametrize(
    ("label", "rationale", "expected"),
    [
        (
            "contradiction",
            "The dogs are not asleep.",
            {"entailment": "The dogs are asleep.", "neutral": "The dogs are not necessarily asleep."},
        ),
        ("contradiction", "He runs, not sleeps.", {"neutral": "He runs, not necessarily sleeps."}),
        ("contradiction", "If he runs, he cannot sleep.", {"neutral": "If he runs, he may not sleep."}),
        ("contradiction", "The man is not necessarily a cook.", {}),
        (
            "neutral",
            "The man is not necessarily a cook.",
            {"entailment": "The man is a cook.", "contradiction": "The man is not a cook."},
        ),
        (
            "neutral",
            "He runs, but not necessarily home.",
            {"entailment": "He runs, and home.", "contradiction": "He runs, but not home."},
        ),
        ("neutral", "He could be late.", {}),
        (
            "entailment",
            "A pug is a dog. The pug is out because it is in a pond.",
            {
                "neutral": "A pug is a dog. The pug is not necessarily out because it is in a pond.",
                "contradiction": "A pug is a dog. The pug is not out because it is in a pond.",
            },
        ),
        ("entailment", "The man is not in, so he is out.", {}),
        ("entailment", "Pugs bark.", {}),
    ],
)
def test_the_words_of_the_relation_are_exchanged(label: str, rationale: str, expected: dict[str, str]) -> None:
    example = dataclasses.replace(NLI, label=label, rationale=rationale)
    assert dict(p[:2] for p in counterfactuals(example, 2, 0)) == expected


def test_a_rationale_of_another_answer_has_no_counterfactual_and_label_type_chooses_the_label() -> None:
    erring = dataclasses.replace(CHOICE, teacher_label="office", label="church")
    assert counterfactuals(erring, 4, 0) == ()
    other = dataclasses.replace(CHOICE, teacher_label="church", label="office")
    assert counterfactuals(other, 4, 0) == ()
    assert counterfactuals(other, 4, 0, label_type="llm") == counterfactuals(CHOICE, 4, 0)
    assert counterfactuals(dataclasses.replace(CHOICE, teacher_label=None), 4, 0, label_type="llm") == ()


def test_given_pairs_come_first_and_those_with_the_answer_of_the_example_are_left_out() -> None:
    given = (
        Pair("home", CHOICE.rationale),
        Pair("house", "People pray at home."),
        Pair(" church", "People pray there."),
        Pair("house", "Again."),
    )
    example = dataclasses.replace(CHOICE, counterfactuals=given)
    assert counterfactuals(example, 1, 0)[0].label == "house"
    labels = [p.label for p in counterfactuals(example, 9, 0)]
    assert labels[0] == "house" and sorted(labels[1:]) == ["ice rink", "office building"]
    assert [p.label for p in counterfactuals(example, 9, 0, rules=False)] == ["house"]
    assert counterfactuals(dataclasses.replace(example, rationale=" "), 1, 0) == ()


def test_a_registered_rule_replaces_the_rule_of_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RULES", {})

    before = rules_identity()

    @register_counterfactuals("cqa", version="1")
    def rule(example: Example, label: str, rng: object) -> list[Pair]:
        return [Pair(label, "The same."), Pair("mosque", "People pray in a mosque.")]

    assert counterfactuals(CHOICE, 4, 0) == (Pair("mosque", "People pray in a mosque."),)
    assert len(counterfactuals(dataclasses.replace(CHOICE, id="cqa2/train/0"), 4, 0)) == 2
    named = rules_identity()
    register_counterfactuals("cqa", version="2")(rule)
    assert before != named != rules_identity() != before
