"""Answers in the formats of models: thinking, Markdown, boxes, JSON, other marks; and hostile texts."""

import json
import time

import pytest

from cotmi_jax.teacher.answers import RULE_NAMES, RULES, make_rule, read_completion, read_sample
from cotmi_jax.teacher.consistency import Policy, annotate_question
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.prompt import load_prompt
from cotmi_jax.teacher.questions import Question
from cotmi_jax.teacher.thinking import split_thinking

ANSWER = "Both are red. So the answer is red."


@pytest.mark.parametrize(
    ("completion", "thinking"),
    [
        (f"<think>Hm, blue?</think>{ANSWER}", "Hm, blue?"),
        (f"<think>\nHm, blue?\n</think>\n\n{ANSWER}", "Hm, blue?"),
        (f"<THINKING>Hm, blue?</THINKING> {ANSWER}", "Hm, blue?"),
        (f"Hm, blue?\n</think>\n{ANSWER}", "Hm, blue?"),  # the chat template holds the opening mark
        (f"<think></think>{ANSWER}", ""),
        (f"<think>a<think>b</think>{ANSWER}", "a b"),
        (f"<think>a<think>b</think>c</think>{ANSWER}", "a b\n\nc"),
        (f"<think>a</think><think>b</think>{ANSWER}", "a\n\nb"),
        (f"[THINK]Hm, blue?[/THINK]{ANSWER}", "Hm, blue?"),
        (f"◁think▷Hm, blue?◁/think▷{ANSWER}", "Hm, blue?"),
        (f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}", "Hm."),
        (f"<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>", "Hm."),
        (f"<|begin_of_thought|>Hm.<|end_of_thought|>{ANSWER}", "Hm."),
        (f"<seed:think>Hm.</seed:think>{ANSWER}", "Hm."),
        (ANSWER, ""),
    ],
)
def test_thinking_is_separated_from_the_completion(completion, thinking):
    assert split_thinking(completion) == (thinking, ANSWER)


def test_a_completion_that_is_cut_while_thinking_has_no_answer():
    cut = f"<think>First I thought: {ANSWER} But then"
    assert split_thinking(cut) == (cut.removeprefix("<think>"), "")
    assert read_sample(Choice(cut, "length"), RULES["generic"]) == ("", None)


@pytest.mark.parametrize(
    "sample",
    [
        Choice(f"<think>So the answer is blue. No.</think>{ANSWER}", "stop"),
        Choice(ANSWER, "stop", "So the answer is blue. No."),
    ],
    ids=["in the text", "in a field"],
)
def test_the_rationale_is_the_completion_or_the_thinking(sample):
    rule = RULES["generic"]
    assert read_sample(sample, rule) == ("Both are red.", "red")
    assert read_sample(sample, rule._replace(source="thinking")) == ("So the answer is blue. No.", "red")


def test_without_thinking_there_is_no_rationale_to_take():
    rule = RULES["generic"]._replace(source="thinking")
    one = annotate_question(Question("q", "?", "red", "f:1"), [Choice(ANSWER, "stop")], [], rule, Policy("drop", 1, 1))
    assert one.rationales == () and one.counts["empty"] == 1


@pytest.mark.parametrize(
    ("rule", "completion", "rationale", "answer"),
    [
        ("generic", "Two. **So the answer is 12.**", "Two.", "12"),
        ("generic", "Two. So the answer is **12**.", "Two.", "12"),
        ("generic", "Two. **So the answer is:** 12", "Two.", "12"),
        ("generic", "**Two** and ten. So the answer is `x`.", "**Two** and ten.", "x"),
        ("generic", r"Two. So the answer is $\boxed{\text{red}}$.", "Two.", "red"),
        ("generic", "Two. So the answer is $5 or $6.", "Two.", "$5 or $6"),
        ("generic", "Two. So the answer is __init__.", "Two.", "__init__"),
        ("generic", "Two. So the answer is x**2**y.", "Two.", "x**2**y"),
        ("generic", "Two. So the answer is **kwargs.", "Two.", "**kwargs"),
        ("generic", "Two. So the answer is $ $.", "Two.", None),
        ("cqa", "Near. **So the answer is (b) a cork.**", "Near.", "a cork"),
        ("anli", "It says so. So the answer is **neutral**.", "It says so.", "neutral"),
        ("esnli", "They sleep.\n\n**Answer:** neutral", "They sleep.", "neutral"),
        ("equation", "Both. **The answer is (3 * 4).**", "Both.", "(3 * 4)"),
        ("equation", "Both. The answer is **(3 ** 4)**.", "Both.", None),
        ("mark", "Two.\n\n### Final Answer\n12", "Two.", "12"),
        ("mark", "Two.\n**Final Answer:** 12.", "Two.", "12"),
        ("mark", "Two. Therefore, the final answer is: 12.\nBye", "Two.", "12"),
        ("mark", "Two.\n\n**Final answer**\n\\[\n\\boxed{12}\n\\]", "Two.", "12"),
        ("mark", "Two. Final answer: 12\nFinal answer: 12", "Two.", "12"),
        ("mark", "Two. Final answer: 12\nFinal answer: 13", "Two.", None),
        ("mark", "Two.", "Two.", None),
        ("mark", "Two. Final answer:", "Two.", None),
        ("boxed", r"Two. Adding gives 3. The answer is $\boxed{12}$.", "Two. Adding gives 3.", "12"),
        ("boxed", "Two.\n\\[ \\boxed{\\frac{3}{4}} \\]", "Two.", r"\frac{3}{4}"),
        ("boxed", r"It is \boxed{1}, no, \boxed{\text{red}}", "It is", "red"),
        ("boxed", r"Two. \boxed{12", "Two.", None),
        ("esnli", "A man is outside.\nAnswer: neutral.", "A man is outside.", "neutral"),
        ("esnli", "A man is outside.\nAnswer: neutral\n\nExplanation: two.", "A man is outside.", "neutral"),
        ("boxed", "Two.", "Two.", None),
        ("json", '{"rationale": "Two.", "answer": "12"}', "Two.", "12"),
        ("json", 'Sure!\n```json\n{"rationale": ["Two.", "Ten."], "answer": 12.50}\n```', "Two. Ten.", "12.50"),
        ("json", '{"rationale": "Two.", "answer": true}', "Two.", "true"),
        ("json", '{"rationale": "Two.", "answer": null}', "Two.", None),
        ("json", '{"rationale": 7, "answer": {"x": 1}}', "7", None),
        ("json", '["Two.", "12"]', '["Two.", "12"]', None),
        ("json", '{"rationale": "Two.", "ans', '{"rationale": "Two.", "ans', None),
    ],
)
def test_rules_read_the_formats_of_models(rule, completion, rationale, answer):
    assert read_completion(completion, make_rule([rule])) == (rationale, answer)


def test_rules_are_tried_in_order_and_the_first_gives_the_rationale():
    rule = make_rule(["json", "boxed", "generic"])
    assert read_completion('{"rationale": "A.", "answer": "x"}', rule) == ("A.", "x")
    assert read_completion(r"B. \boxed{y} So the answer is z.", rule) == ("B.", "y")
    assert read_completion("C. So the answer is z.", rule) == ("C.", "z")
    assert read_completion("Neither", make_rule(["generic", "json"])) == ("Neither", None)


def test_a_rule_of_equations_skips_an_answer_without_value():
    rule = make_rule(["mark", "boxed"], "equation")
    assert read_completion(r"A. Final answer: 3 apples. So: \boxed{3}", rule)[1] == "3"
    assert read_completion("A. Final answer: 3 apples", rule)[1] is None


def test_own_marks_are_read_in_any_case_and_the_longest_first():
    rule = make_rule(["mark"], marks=["Result", "Result is surely"])
    assert read_completion("A. RESULT is surely 4.", rule) == ("A.", "4")


def test_the_generic_prompt_reads_what_models_write_all_the_same():
    rule = load_prompt("generic").rule
    for text in ("A. So the answer is 4.", "A. **So the answer is 4**.", "A.\n\n**Final answer: 4**", r"A. \boxed{4}"):
        assert read_completion(text, rule) == ("A.", "4"), text
    assert read_completion("Four. So the answer is 4. So the answer is 5.", rule)[1] is None


HOSTILE = {
    "brackets": "[" * 200_000,
    "parentheses": "The answer is " + "(" * 200_000,
    "objects": '{"a":' * 50_000,
    "digits": '{"rationale": "A.", "answer": ' + "9" * 5_000 + "}",
    "boxes": "\\boxed{" * 50_000,
    "closed boxes": "\\boxed{" * 50_000 + "}" * 50_000,
    "bold": "**So the answer is " + "**a " * 100_000,
    "asterisks": "So the answer is " + "*" * 200_000,
    "spaces": "So the answer is x" + "\n" + " " * 200_000 + "y",
    "marks": "Final answer " * 20_000,
    "fences": "```json\n" * 50_000,
    "thinking": "<think>" * 50_000,
    "thoughts": "<think></think>" * 20_000,
    "choices": "So the answer is " + "(a)" * 100_000,
    "nothing": "",
    "null": "\0" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_completion_takes_long_or_raises(text):
    """Each rule takes below a tenth of a second; in quadratic time it would take minutes."""
    for name in RULE_NAMES:
        start = time.process_time()
        read_sample(Choice(text, "stop"), make_rule([name]))
        assert time.process_time() - start < 1.0, name


def test_digits_are_taken_as_they_are_written():
    assert read_completion(HOSTILE["digits"], make_rule(["json"])) == ("A.", "9" * 5_000)
    assert read_completion(json.dumps({"rationale": "", "answer": "x"}), make_rule(["json"])) == ("", "x")
