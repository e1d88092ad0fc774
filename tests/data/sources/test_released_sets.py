"""The table of released data sets, and the rules that split their completions into rationale and label."""

import re

import pytest
from paths import REPOSITORY

from cotmi_jax.data.grammar import parse_dataset
from cotmi_jax.data.sources import released_sets
from cotmi_jax.data.sources.released_sets import RELEASED
from cotmi_jax.errors import UserError
from cotmi_jax.teacher.answers import RULES
from cotmi_jax.teacher.prompt import load_prompt


@pytest.mark.parametrize(
    ("completion", "rationale", "label"),
    [
        ("It floats. So the answer is (d) a cork.\n\nQ: Next?\nSo the answer is (a) no.", "It floats.", "a cork"),
        ("It floats. So the answer is (b) corks!\n\n", "It floats.", "corks!"),
        ("Both. So the answer is either (a) a cork or (e) a raft.", "Both.", "a cork or"),
        ("None. So the answer is none of them.\n\n", "None.", None),
        ("None. So the answer is (c)\n", "None.", None),
        ("None. So the answer is (c).", "None.", None),
        ("  Corks float, stones", "Corks float, stones", None),
        ("Cork. So the answer is (a) cork. So the answer is (b) raft.", "Cork.", None),
        ("Q: What?", "", None),
        ("", "", None),
    ],
)
def test_parse_cqa(completion, rationale, label):
    assert released_sets.parse_cqa(completion) == (rationale, label)


@pytest.mark.parametrize(
    ("completion", "rationale", "label"),
    [
        ("He has 5 - 2 = 3. The answer is (5 - 2).\n\nQ: And?\nThe answer is (9).", "He has 5 - 2 = 3.", "(5 - 2)"),
        ("Sum.\nThe answer is ((1 + 2) * (3 + 4)).", "Sum.", "((1 + 2) * (3 + 4))"),
        ("Product. The answer is (6 * 7) * 2.", "Product.", "(6 * 7)"),
        ("Cut. The answer is ((4 - 3) - (2", "Cut.", "((4 - 3)"),
        ("Cut. The answer is (4 -\n3) and (2 + 1).", "Cut.", "(2 + 1)"),
        ("Cut. The answer is (4 - ", "Cut.", None),
        ("Plain. The answer is 12.", "Plain.", None),
        ("He has (5 - 2) left. And so on.\n\n", "He has (5 - 2) left. And so on.", None),
        ("One. The answer is (1). The answer is (2).", "One.", None),
    ],
)
def test_parse_equation(completion, rationale, label):
    assert released_sets.parse_equation(completion) == (rationale, label)


@pytest.mark.parametrize(
    ("completion", "rationale", "label"),
    [
        ("Humming is no song.\nAnswer: neutral\n\nPremise: A\nAnswer: entailment", "Humming is no song.", "neutral"),
        ("Same.\nAnswer: entail", "Same.", "entail"),
        ("Same.\nAnswer: entailment\n\nPre", "Same.", "entailment\n\nPre"),
        ("\nAnswer:\n\nPremise: A boy.\nAnswer: neutral", "", None),
        ("Same.\nAnswer:", "Same.", None),
        ("Same.\nAnswer:neutral", "Same.", None),
        ("Same.\nAnswer: Premise: A", "Same.", None),
        ("They hum and hum and", "They hum and hum and", None),
    ],
)
def test_parse_esnli(completion, rationale, label):
    assert released_sets.parse_esnli(completion) == (rationale, label)


@pytest.mark.parametrize(
    ("completion", "teacher", "rationale", "label"),
    [
        ("No hint. So the answer is neutral.\n\nPremise: B. So the answer is no.", "palm", "No hint.", "neutral"),
        ("No hint. So the answer is neutral", "palm", "No hint.", "neutra"),
        ("No hint. The answer is neutral.", "palm", "No hint. The answer is neutral.", None),
        ("No hint. So the answer is", "palm", "No hint.", None),
        ("No hint. So the answer is x. So the answer is y.", "palm", "No hint.", None),
        (" No hint. The answer is neutral.", "gpt-neox", "No hint.", "neutral"),
        ("The answer is open. So the answer is neutral.", "gpt-neox", "The answer is open.", "neutral"),
        ("\nNo hint at all.\nPremise: B. The answer is neutral.", "gpt-neox", "No hint at all.", None),
    ],
)
def test_parse_anli(completion, teacher, rationale, label):
    assert RELEASED["anli1"].parser(teacher)(completion) == (rationale, label)


@pytest.mark.parametrize("name", RELEASED)
def test_every_data_set_is_a_component_or_extends_one_and_has_a_prompt_with_its_rule(name):
    released = RELEASED[name]
    if released.extends is None:
        for written in (name, f"tfds:dss/{name}"):
            assert parse_dataset(written)[0].written == written
    else:
        assert RELEASED[released.extends].extends is None
        with pytest.raises(UserError, match="choose one of"):
            parse_dataset(name)
    rule, prompt = RULES[released.rule], load_prompt(name)
    assert prompt.rule.kind == rule.kind == released.kind
    for example in prompt.examples:
        reading = prompt.rule.parse(example.completion)
        assert reading == rule.parse(example.completion)
        if name != "anli1":  # for which annotate tolerates a missing full stop
            assert reading == released.parse(example.completion)


def test_the_entry_in_the_documentation_can_be_used():
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r'^    "gsm": (ReleasedSet\(.*\)),$', page, flags=re.MULTILINE)
    released = eval(entry, vars(released_sets))
    assert released.read_gold({"input": "1 + 2?", "label": "3"}, "gsm_train.json:1") == ("1 + 2?", "3")
    assert released.parser("palm")("Three. The answer is (1 + 2).") == ("Three.", "(1 + 2)")
    assert RULES[released.rule].kind == released.kind == "equation"
