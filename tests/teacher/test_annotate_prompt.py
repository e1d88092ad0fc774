"""Prompt files: those that come with the package, what is wrong with others, and the rules that read completions."""

import json
import re
import textwrap
from pathlib import Path

import pytest
from paths import REPOSITORY

from cotmi_jax.data.labels import is_correct
from cotmi_jax.errors import UserError
from cotmi_jax.teacher.answers import RULES, read_completion
from cotmi_jax.teacher.prompt import BUILT_IN, load_prompt, parse_prompt
from cotmi_jax.teacher.questions import read_questions, read_released

OWN = """# A comment.
parse: generic

=== instructions
Answer.

=== question
Q: {input}

=== hint
Q: {input} It is {answer}.

=== example
Who?
--- completion
Nobody came. So the answer is nobody.
--- answer
nobody
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_worked_examples_parse_to_their_own_labels(name):
    prompt = load_prompt(name)
    assert 5 <= len(prompt.examples) <= 8
    assert prompt.hint is not None and prompt.instructions
    for example in prompt.examples:
        rationale, answer = prompt.rule.parse(example.completion)
        assert answer is not None and is_correct(answer, example.answer, prompt.rule.kind)
        assert rationale and rationale in example.completion and "answer" not in rationale.lower()
    inputs = [example.input for example in prompt.examples]
    assert len(set(inputs)) == len(inputs)


@pytest.mark.parametrize("name", BUILT_IN)
def test_examples_are_written_like_the_questions_of_their_set(name):
    prompt = load_prompt(name)
    for example in prompt.examples:
        if name in ("esnli", "anli1"):
            assert example.input.count("</s>") == 1
            assert example.answer in ("entailment", "neutral", "contradiction")
        if name == "cqa":
            assert example.input.split("\n")[1] == "Answer Choices:"
            assert [line[:4] for line in example.input.split("\n")[2:]] == ["(a) ", "(b) ", "(c) ", "(d) ", "(e) "]
            assert example.answer in [line[4:] for line in example.input.split("\n")[2:]]
        if name in ("svamp", "asdiv"):
            assert example.input.count("\n") == 1
    if name in ("esnli", "anli1", "cqa"):  # no answer or letter that the teacher could learn to prefer
        said = [example.completion if name == "cqa" else example.answer for example in prompt.examples]
        letters = [text.partition("So the answer is (")[2][:1] or text for text in said]
        assert max(letters.count(letter) for letter in letters) <= 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_prompt_shows_no_question_of_the_real_sets(name, data_root):
    if name not in ("cqa", "svamp", "esnli"):
        return
    real = {question.input for question in read_released(str(data_root), name, "train")}
    assert not real & {example.input for example in load_prompt(name).examples}


def test_a_conversation_shows_the_examples_and_asks(tmp_path):
    prompt = parse_prompt(write(tmp_path, OWN))
    shown = [("system", "Answer."), ("user", "Q: Who?"), ("assistant", "Nobody came. So the answer is nobody.")]
    asked = prompt.conversation(prompt.text("Why {input}?", "f:1"), hinted=False)
    assert [(turn["role"], turn["content"]) for turn in asked] == [*shown, ("user", "Q: Why {input}?")]
    hinted = prompt.conversation(prompt.text("Why?", "f:1", "so"), hinted=True)
    assert [turn["content"] for turn in hinted[1::2]] == ["Q: Who? It is nobody.", "Q: Why? It is so."]


def test_premise_and_hypothesis_are_the_sides_of_the_mark():
    prompt = load_prompt("esnli")
    assert prompt.text("A dog runs.</s>It sleeps.", "f:1") == "Premise: A dog runs.\nHypothesis: It sleeps."
    with pytest.raises(UserError, match="f:7: no </s> between premise and hypothesis"):
        prompt.text("A dog runs.", "f:7")


def test_a_prompt_without_instructions_or_examples_is_one_question(tmp_path):
    prompt = parse_prompt(write(tmp_path, "parse: generic\n=== question\n{input}\n"))
    assert prompt.conversation(prompt.text("Who?", "f:1"), hinted=False) == [{"role": "user", "content": "Who?"}]
    with pytest.raises(UserError, match="own.txt: no '=== hint' section"):
        prompt.text("Who?", "f:1", "me")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("parse: generic", "", "own.txt:1: no 'parse: RULE' line"),
        ("parse: generic", "parse: guess", "own.txt:2: unknown rule 'guess'"),
        ("# A comment.", "A comment.", "own.txt:1: 'A comment.' before the first"),
        ("=== question\nQ: {input}\n", "", "own.txt:1: no '=== question' section"),
        ("Q: {input}\n\n", "Q: \n\n", "own.txt:7: 'question' lacks the question"),
        ("Q: {input}\n\n", "Q: {premise}\n\n", "own.txt:7: 'question' lacks the question"),
        ("Q: {input}\n\n", "{input} {text}\n\n", "own.txt:7: unknown placeholder {text} in 'question'"),
        ("Q: {input}\n\n", "{input} {answer}\n\n", "own.txt:7: unknown placeholder {answer} in 'question'"),
        ("It is {answer}", "It is", "own.txt:10: 'hint' lacks the answer"),
        ("=== hint", "=== hints", "own.txt:10: unknown section 'hints'"),
        ("=== hint", "===", "own.txt:10: unknown section '==='"),
        ("Q: {input} It", "{premise} {hypothesis} It", "own.txt:13: no </s> between premise and hypothesis"),
        ("=== hint", "=== question", "own.txt:10: a second 'question' section; the first begins at line 7"),
        ("--- answer\nnobody", "", "own.txt:13: an example is a question"),
        ("--- answer\nnobody", "--- answer\n", "own.txt:13: an example is a question"),
        ("--- completion", "--- completions", "own.txt:13: an example is a question"),
        ("Who?", "", "own.txt:13: an example is a question"),
        ("--- answer\nnobody", "--- answer\nsomebody", "own.txt:13: the rule reads the answer 'nobody'"),
        ("So the answer is nobody", "It is nobody", "own.txt:13: the rule reads the answer None"),
        ("Nobody came. So", "So", "own.txt:13: the completion gives an answer but no rationale"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, old, new, said):
    assert old in OWN
    with pytest.raises(UserError) as raised:
        parse_prompt(write(tmp_path, OWN.replace(old, new, 1)))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_an_unknown_prompt_is_told_with_the_known_ones():
    with pytest.raises(UserError, match="no such file, and none of the shipped prompts .*generic"):
        load_prompt("gsm")


@pytest.mark.parametrize(
    ("rule", "completion", "rationale", "answer"),
    [
        ("generic", "Two and two. So the answer is 4.", "Two and two.", "4"),
        ("generic", "Two. So the answer is: Mr. Four\n\nHope it helps!", "Two.", "Mr. Four"),
        ("generic", "It is 4.", "It is 4.", None),
        ("generic", "A. So the answer is 4. So the answer is 5.", "A.", None),
        ("generic", "A. So the answer is .", "A.", None),
        ("anli", "It says so. So the answer is entailment.", "It says so.", "entailment"),
        ("anli", "It says so. So the answer is entailment", "It says so.", "entailment"),
        ("anli", "Open. So the answer is neutral.\n\nPremise: A man", "Open.", "neutral"),
        ("equation", "Both. The answer is (3 + 4).\n\nQ: More", "Both.", "(3 + 4)"),
        ("equation", "Both. The answer is (3 apples).", "Both.", None),
        ("equation", "Both. The answer is (3 / 0).", "Both.", None),
        ("cqa", "Near. So the answer is (b) a cork.", "Near.", "a cork"),
        ("esnli", "They sleep.\nAnswer: neutral", "They sleep.", "neutral"),
    ],
)
def test_rules(rule, completion, rationale, answer):
    assert read_completion(completion, RULES[rule]) == (rationale, answer)


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ('{"input": " "}', "text", "q.jsonl:2: the input is empty"),
        ('{"question": "Who?"}', "text", "q.jsonl:2: field 'input' holds no text"),
        ('{"input": "Who?", "id": "q/0"}', "text", "q.jsonl:2: id 'q/0' is taken by .*q.jsonl:1"),
        ('{"input": "Who?", "id": [1]}', "text", r"q.jsonl:2: id = \[1\]"),
        ('{"input": "Who?", "label": 3}', "text", "q.jsonl:2: field 'label' holds no text"),
        ('{"input": "Who?", "label": ""}', "text", "q.jsonl:2: the label is empty"),
        ('{"input": "Who?", "label": "x + 1"}', "equation", "q.jsonl:2: label 'x \\+ 1' has no value"),
        ('{"input": "Who?"', "text", "q.jsonl:2: broken JSON"),
    ],
)
def test_what_is_wrong_with_a_question_is_told_with_its_line(tmp_path, line, kind, said):
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "First?"}\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        read_questions(path, kind)


def test_questions_keep_their_order_and_ids(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "B?", "id": 7, "label": null}\n\n{"input": "A?", "label": "x"}\n')
    first, second = read_questions(path, "text")
    assert first == ("7", "B?", None, f"{path}:1") and second == ("q/1", "A?", "x", f"{path}:3")
    path.write_text("\n")
    with pytest.raises(UserError, match="q.jsonl: holds no question"):
        read_questions(path, "text")


def test_the_prompt_in_the_documentation_is_whole(tmp_path):
    page = (REPOSITORY / "docs/annotation.md").read_text(encoding="utf-8")
    block = page.partition("This is a whole one:\n\n")[2].partition("\n|")[0]
    prompt = parse_prompt(write(tmp_path, textwrap.dedent(block)))
    assert len(prompt.examples) == 1 and prompt.hint is not None


def test_every_flag_in_the_documentation_exists():
    page = (REPOSITORY / "docs/annotation.md").read_text(encoding="utf-8")
    shell = (REPOSITORY / "cotmi_jax/annotate.py").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"--([a-z_]+)", page)} - {"config", "workdir", "port"}
    assert named and not {name for name in named if f'"{name}"' not in shell}


def test_gold_rows_of_a_released_set_are_questions_without_its_completions(tmp_path):
    (tmp_path / "asdiv").mkdir()
    rows = [{"Body": "A jar holds 9 nuts.", "Question": "How many nuts?", "Answer": "9 (nuts)"}]
    (tmp_path / "asdiv" / "asdiv_train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (question,) = read_released(str(tmp_path), "asdiv", "train")
    assert question[:3] == ("asdiv/train/0", "A jar holds 9 nuts.\nHow many nuts?", "9")
    assert question.place.endswith("asdiv_train.json:1")
    with pytest.raises(UserError, match="asdiv_test.json"):
        read_released(str(tmp_path), "asdiv", "test")
