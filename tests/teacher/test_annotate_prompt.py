"""Prompt files, built in and invalid ones; the rules that read completions; questions."""

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
parse = "generic"
instructions = "Answer."
question = "Q: {input}"
hint = "Q: {input} It is {answer}."

[[example]]
input = "Who?"
completion = "Nobody came. So the answer is nobody."
answer = "nobody"
"""
# What the journals of runs with the built-in prompts record: another digest would refuse to resume them.
DIGESTS = {
    "anli1": "e62f0337960d41fd",
    "asdiv": "406c801620400f9c",
    "cqa": "e01439cc1140c79b",
    "esnli": "2f6cdd16ea088777",
    "generic": "f045a02c8469a501",
    "json": "bee0c3d17b1b6d96",
    "svamp": "a90ae00102384cd8",
}


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_journals_of_built_in_prompts_stay_valid():
    assert {name: load_prompt(name).digest for name in BUILT_IN} == DIGESTS


def test_the_layout_of_the_file_does_not_change_the_digest(tmp_path):
    written_otherwise = """question = '''

      Q: {input}
    '''
example = [{ answer = "nobody", completion = "Nobody came. So the answer is nobody.", input = "Who? " }]
instructions = "Answer."
parse = "anli"
"""
    digest = parse_prompt(write(tmp_path, OWN)).digest
    assert parse_prompt(write(tmp_path, written_otherwise)).digest == digest
    for text in ("Answer.", "Q: ", "Who?", "came"):
        assert parse_prompt(write(tmp_path, OWN.replace(text, "Else " + text))).digest != digest, text


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
def test_examples_have_the_format_of_their_set(name):
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
    if name in ("esnli", "anli1", "cqa"):  # no answer or letter is so frequent that the teacher would prefer it
        completions = [example.completion if name == "cqa" else example.answer for example in prompt.examples]
        letters = [text.partition("So the answer is (")[2][:1] or text for text in completions]
        assert max(letters.count(letter) for letter in letters) <= 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_built_in_example_is_a_question_of_the_released_sets(name, data_root):
    if name not in ("cqa", "svamp", "esnli"):
        return
    released = {question.input for question in read_released(str(data_root), name, "train")}
    assert not released & {example.input for example in load_prompt(name).examples}


def test_a_conversation_is_instructions_examples_and_question(tmp_path):
    prompt = parse_prompt(write(tmp_path, OWN))
    context = [("system", "Answer."), ("user", "Q: Who?"), ("assistant", "Nobody came. So the answer is nobody.")]
    asked = prompt.conversation(prompt.text("Why {input}?", "f:1"), hinted=False)
    assert [(turn["role"], turn["content"]) for turn in asked] == [*context, ("user", "Q: Why {input}?")]
    hinted = prompt.conversation(prompt.text("Why?", "f:1", "so"), hinted=True)
    assert [turn["content"] for turn in hinted[1::2]] == ["Q: Who? It is nobody.", "Q: Why? It is so."]


def test_premise_and_hypothesis_are_separated_by_the_mark():
    prompt = load_prompt("esnli")
    assert prompt.text("A dog runs.</s>It sleeps.", "f:1") == "Premise: A dog runs.\nHypothesis: It sleeps."
    with pytest.raises(UserError, match="f:7: no </s> between premise and hypothesis"):
        prompt.text("A dog runs.", "f:7")


def test_a_prompt_without_instructions_or_examples_is_one_message(tmp_path):
    prompt = parse_prompt(write(tmp_path, 'parse = "generic"\nquestion = "{input}"'))
    assert prompt.conversation(prompt.text("Who?", "f:1"), hinted=False) == [{"role": "user", "content": "Who?"}]
    with pytest.raises(UserError, match="own.toml: no hint"):
        prompt.text("Who?", "f:1", "me")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('parse = "generic"', "", "own.toml: no key parse; give one of"),
        ("generic", "guess", "own.toml: unknown rule 'guess'"),
        ('"generic"', '["generic", "guess"]', "own.toml: unknown rule 'guess'; set parse to one of anli, "),
        ('"generic"', "[]", "own.toml: parse = []; give a text in quotes, or a list of them"),
        ('"generic"', "7", "own.toml: parse = 7; give a text in quotes, or a list of them"),
        ('"generic"', '"generic"\nkind = "number"', "own.toml: kind = 'number'; choose one of text, equation"),
        ('"generic"', '"generic"\nmarks = ["So"]', "own.toml: marks is used by the rule mark only; add it to parse"),
        ('"generic"', '"mark"\nmarks = [""]', "own.toml: marks = ['']; give a text in quotes"),
        ('"generic"', '"json"\nfields = ["a"]', "own.toml: fields = ['a']; give two names"),
        ("# A comment.", "A comment.", "own.toml: not TOML: Expected '=' after a key in a key/value pair (at line 1"),
        ('question = "Q: {input}"\n', "", "own.toml: no key question"),
        ("Q: {input}", "Q: ", "own.toml: 'question' lacks the question"),
        ("Q: {input}", "", "own.toml: 'question' lacks the question"),
        ("Q: {input}", "Q: {premise}", "own.toml: 'question' lacks the question"),
        ("Q: {input}", "{input} {text}", "own.toml: unknown placeholder {text} in 'question'"),
        ("Q: {input}", "{input} {answer}", "own.toml: unknown placeholder {answer} in 'question'"),
        ("It is {answer}", "It is", "own.toml: 'hint' lacks the answer"),
        ("hint =", "hints =", "own.toml: unknown key 'hints'; choose from parse, "),
        ("[[example]]", "[[examples]]", "own.toml: unknown key 'examples'"),
        ("[[example]]", "[example]", "own.toml: begin every worked example with the line [[example]]"),
        ("Q: {input} It", "{premise} {hypothesis} It", "own.toml: example 1: no </s> between premise and hypothesis"),
        ("hint =", "question =", "own.toml: not TOML: Cannot overwrite a value (at line 5"),
        ('answer = "nobody"', "", "own.toml: example 1: answer is missing or empty"),
        ('answer = "nobody"', 'answer = " "', "own.toml: example 1: answer is missing or empty"),
        ('answer = "nobody"', "answer = 4", "own.toml: example 1: answer = 4 is not a text; put it in quotes"),
        ("completion =", "completions =", "own.toml: example 1: unknown key 'completions'"),
        ('"Who?"', '""', "own.toml: example 1: input is missing or empty"),
        ('answer = "nobody"', 'answer = "somebody"', "own.toml: example 1: the rule reads the answer 'nobody'"),
        ("So the answer is nobody", "It is nobody", "own.toml: example 1: the rule reads the answer None"),
        ("Nobody came. So", "So", "own.toml: example 1: the completion has an answer but no rationale"),
    ],
)
def test_an_invalid_prompt_is_refused_with_the_key_or_line(tmp_path, old, new, message):
    assert old in OWN
    with pytest.raises(UserError) as raised:
        parse_prompt(write(tmp_path, OWN.replace(old, new, 1)))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_prompt_in_the_format_of_earlier_versions_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"own.toml: prompts are TOML now; write each '=== name' section as a key"):
        parse_prompt(write(tmp_path, "parse: generic\n\n=== question\nQ: {input}\n"))


def test_a_prompt_states_rules_marks_fields_and_kind(tmp_path):
    stated = (
        'parse = ["json", "mark"]\nmarks = ["So the answer is", "Result"]\nfields = ["why", "what"]\nkind = "equation"'
    )
    prompt = parse_prompt(write(tmp_path, OWN.replace('parse = "generic"', stated).replace("nobody", "2 + 2")))
    assert read_completion('{"why": "Two pairs.", "what": "(2 + 2)"}', prompt.rule) == ("Two pairs.", "(2 + 2)")
    assert read_completion("Two pairs. RESULT: 2 * 2", prompt.rule) == ("Two pairs.", "2 * 2")
    assert read_completion("Two pairs. Result: four", prompt.rule)[1] is None
    assert prompt.rule.kind == "equation"
    assert list(prompt.schema()["json_schema"]["schema"]["properties"]) == ["why", "what"]
    same_texts = parse_prompt(write(tmp_path, OWN.replace("nobody", "2 + 2")))
    assert prompt.digest == same_texts.digest  # a journal can be read by another rule


def test_an_unknown_prompt_is_refused_with_the_known_names():
    with pytest.raises(UserError, match="no such file, and none of the built-in prompts .*generic"):
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
def test_rules_split_completions(rule, completion, rationale, answer):
    assert read_completion(completion, RULES[rule]) == (rationale, answer)


@pytest.mark.parametrize(
    ("line", "kind", "message"),
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
def test_an_invalid_question_is_refused_with_its_line(tmp_path, line, kind, message):
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "First?"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_questions(path, kind)


def test_questions_keep_their_order_and_ids(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"input": "B?", "id": 7, "label": null}\n\n{"input": "A?", "label": "x"}\n')
    first, second = read_questions(path, "text")
    assert first == ("7", "B?", None, f"{path}:1", {}) and second == ("q/1", "A?", "x", f"{path}:3", {})
    path.write_text("\n")
    with pytest.raises(UserError, match="q.jsonl: has no question"):
        read_questions(path, "text")


def test_the_prompt_in_the_documentation_is_valid(tmp_path):
    page = (REPOSITORY / "docs/annotation.md").read_text(encoding="utf-8")
    block = page.partition("This is a complete one:\n\n")[2].partition("\n|")[0]
    prompt = parse_prompt(write(tmp_path, textwrap.dedent(block)))
    assert len(prompt.examples) == 1 and prompt.hint is not None


def test_every_flag_in_the_documentation_exists():
    page = (REPOSITORY / "docs/annotation.md").read_text(encoding="utf-8")
    sources = ("cotmi_jax/annotate.py", "cotmi_jax/teacher/request_flags.py")
    shell = "".join((REPOSITORY / source).read_text(encoding="utf-8") for source in sources)
    documented = {name for name in re.findall(r"--([a-z_]+)", page)} - {"config", "workdir", "port"}
    assert documented and not {name for name in documented if f'"{name}"' not in shell}


def test_questions_of_a_released_set_are_its_gold_rows(tmp_path):
    (tmp_path / "asdiv").mkdir()
    rows = [{"Body": "A jar holds 9 nuts.", "Question": "How many nuts?", "Answer": "9 (nuts)"}]
    (tmp_path / "asdiv" / "asdiv_train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (question,) = read_released(str(tmp_path), "asdiv", "train")
    assert question[:3] == ("asdiv/train/0", "A jar holds 9 nuts.\nHow many nuts?", "9")
    assert question.place.endswith("asdiv_train.json:1")
    with pytest.raises(UserError, match="asdiv_test.json"):
        read_released(str(tmp_path), "asdiv", "test")
