"""The deduction data: labels that follow from the theory, disjoint splits, a teacher that errs at a known rate."""

import hashlib
import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
import sentencepiece

from cotmi_jax.data.example import EOS_TEXT, Corpus, Example
from cotmi_jax.data.sources.deduction import CLAIMS, VOCABULARY_PATH, make_deduction
from cotmi_jax.data.sources.deduction_theories import LABELS, OPPOSITE, Problem, read_label, read_problem
from cotmi_jax.data.sources.generated import GeneratedSource
from cotmi_jax.data.sources.train_vocabulary import train_vocabulary
from cotmi_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_deduction(0, 3000)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY_PATH))


def all_examples(corpus: Corpus) -> list[Example]:
    return [example for split in corpus.splits.values() for example in split]


def problem_of(example: Example) -> Problem:
    problem = read_problem(example.input)
    assert problem is not None
    return problem


def test_shape_of_the_corpus(corpus: Corpus) -> None:
    assert (corpus.name, corpus.label_kind) == ("deduction", "text")
    sizes = {split: len(examples) for split, examples in corpus.splits.items()}
    assert sizes == {"train": 3000, "valid": 600, "test": 600}
    for split, examples in corpus.splits.items():
        assert [example.id for example in examples] == [f"deduction/{split}/{row}" for row in range(len(examples))]
        assert {example.choices for example in examples} == {("true", "false", "unknown")}


def test_same_arguments_give_the_same_text_on_every_machine(corpus: Corpus) -> None:
    rows = [[e.id, e.input, e.label, e.rationale, e.teacher_label] for e in all_examples(corpus)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "aeba08e719c554a579bbe63b3c104035a706335e3f2776ff021f23cd9b6c294c", (
        "the text changed: train the vocabulary again and expect other results of every recipe"
    )
    assert make_deduction(1, 10).splits["train"] != make_deduction(0, 10).splits["train"]


def test_inputs_are_unique_and_the_size_of_train_changes_only_its_end() -> None:
    corpus = make_deduction(3, 8000)
    inputs = [example.input for example in all_examples(corpus)]
    assert len(set(inputs)) == len(inputs) == 9_200
    smaller = make_deduction(3, 100).splits
    assert smaller["valid"] == corpus.splits["valid"]
    assert smaller["test"] == corpus.splits["test"]
    assert [e.input for e in smaller["train"]] == [e.input for e in corpus.splits["train"][:100]]


def entails(problem: Problem, asked: str) -> bool:
    """Whether a property of the claim's person follows classically: by all assignments of the properties."""
    facts = [fact.trait for fact in problem.facts if fact.name == problem.claim.name]
    known = sorted({min(name, OPPOSITE[name]) for name in (*facts, asked, *sum(problem.rules, ()))})
    worlds_WxP = np.array(list(itertools.product([False, True], repeat=len(known))))

    def holds(name: str) -> np.ndarray:
        first = min(name, OPPOSITE[name])
        return worlds_WxP[:, known.index(first)] == (name == first)

    models_W = np.all([holds(fact) for fact in facts], axis=0)
    for rule in problem.rules:
        models_W &= ~holds(rule.premise) | holds(rule.conclusion)
    assert models_W.any(), f"{problem} is contradictory"
    return bool(holds(asked)[models_W].all())


def test_labels_are_those_of_classical_logic(corpus: Corpus) -> None:
    for example in all_examples(corpus)[::7]:
        problem = problem_of(example)
        asked = problem.claim.trait
        expected = "true" if entails(problem, asked) else "false" if entails(problem, OPPOSITE[asked]) else "unknown"
        assert example.label == expected, example


def test_texts_are_parsed_back(corpus: Corpus) -> None:
    for example in all_examples(corpus):
        problem = problem_of(example)
        assert str(problem) == example.input
        assert read_label(example.rationale, problem.claim) == example.teacher_label
        assert not re.search(r"true|false|unknown|[{}]|  ", example.rationale)
    assert read_problem("A man runs.</s>A man moves.") is None
    assert read_problem("The kind are cold. Nobody is both.</s>Bora is cold.") is None


def test_every_theory_has_two_claims_of_each_label(corpus: Corpus) -> None:
    for examples in corpus.splits.values():
        clusters = [{e.cluster for e in examples[i : i + CLAIMS]} for i in range(0, len(examples), CLAIMS)]
        assert all(len(each) == 1 for each in clusters) and len(set.union(*clusters)) == len(clusters)
        for i in range(0, len(examples), CLAIMS):
            of_theory = examples[i : i + CLAIMS]
            assert Counter(e.label for e in of_theory) == dict.fromkeys(LABELS, 2)
            assert len({e.input.partition(EOS_TEXT)[0] for e in of_theory}) == 1


def test_splits_share_neither_names_nor_rules(corpus: Corpus) -> None:
    names, rules = {}, {}
    for split, examples in corpus.splits.items():
        problems = [problem_of(example) for example in examples]
        names[split] = {fact.name for problem in problems for fact in problem.facts}
        rules[split] = {rule for problem in problems for rule in problem.rules}
    for kinds in (names, rules):
        for one, other in itertools.combinations(kinds.values(), 2):
            assert one and other and not one & other


def test_proofs_have_one_to_three_steps_and_theories_have_distractors(corpus: Corpus) -> None:
    train = [e for e in corpus.splits["train"] if e.teacher_label == e.label]
    steps = {label: Counter(e.rationale.count(", so ") for e in train if e.label == label) for label in LABELS}
    for counts in steps.values():
        assert set(counts) == {1, 2, 3} and min(counts.values()) > 0.05 * sum(counts.values())
    problems = [problem_of(example) for example in train[::CLAIMS]]
    assert {len(problem.facts) for problem in problems} == {2, 3}
    conclusions = [[rule.conclusion for rule in problem.rules] for problem in problems]
    opposed = [sum(OPPOSITE[name] in names for name in names) for names in conclusions]
    assert set(opposed) == {0, 2} and 0.4 < np.mean(np.array(opposed) == 2) < 0.6
    assert {len(names) for names in conclusions} == {2, 3, 4, 5}


def naive_bayes(train: list[tuple[list[str], str]], test: list[tuple[list[str], str]]) -> float:
    """Accuracy of multinomial naive Bayes with add-one smoothing."""
    counts = {label: Counter(word for words, gold in train if gold == label for word in words) for label in LABELS}
    known = set().union(*counts.values())
    log_p = {
        label: {word: np.log((each[word] + 1) / (sum(each.values()) + len(known))) for word in known}
        for label, each in counts.items()
    }
    hits = [max(LABELS, key=lambda label: sum(log_p[label].get(w, 0.0) for w in words)) == gold for words, gold in test]
    return float(np.mean(hits))


def claim_words(example: Example) -> list[str]:
    return example.input.partition(EOS_TEXT)[2].split()


def counts_about_the_claim(example: Example) -> list[str]:
    """How often the theory names the claim's person, its length, and the claim's property."""
    problem = problem_of(example)
    name, asked = problem.claim
    return [
        f"name {sum(fact.name == name for fact in problem.facts)}",
        f"length {len(example.input.split())}",
        f"asked {asked}",
    ]


def test_the_rule_that_names_the_property_is_not_enough() -> None:
    """The best guess from whether the theory holds the claim's property and its opposite."""
    splits = make_deduction(0, 4000, 0).splits
    seen: dict[tuple[int, int], Counter] = {}
    for example in splits["train"]:
        seen.setdefault(mentions(example), Counter())[example.label] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}
    accuracy = np.mean([best[mentions(example)] == example.label for example in splits["test"]])
    assert 0.75 < accuracy < 0.85, accuracy


def mentions(example: Example) -> tuple[int, int]:
    words = example.input.partition(EOS_TEXT)[0].replace(".", "").split()
    asked = problem_of(example).claim.trait
    return words.count(asked), words.count(OPPOSITE[asked])


@pytest.mark.parametrize(
    "features",
    [
        lambda e: e.input.split(),
        claim_words,
        counts_about_the_claim,
    ],
    ids=["words", "claim", "counts"],
)
def test_neither_the_claim_nor_the_words_tell_the_label(features: object) -> None:
    corpus = make_deduction(0, 4000, 0)
    train, test = (
        [(features(example), example.label) for example in corpus.splits[split]]  # type: ignore[operator]
        for split in ("train", "test")
    )
    accuracy = naive_bayes(train, test)
    assert abs(accuracy - 1 / 3) < 0.06, accuracy  # 3 standard errors of 600


@pytest.mark.parametrize(("rate", "size", "errors"), [(0.2, 600, 120), (0.25, 10, 2), (0.0, 50, 0), (1.0, 900, 900)])
def test_the_teacher_errs_at_exactly_the_stated_rate(rate: float, size: int, errors: int) -> None:
    corpus = make_deduction(5, size, num_valid=size, num_test=size, teacher_error_rate=rate)
    correct = make_deduction(5, size, num_valid=size, num_test=size, teacher_error_rate=0.0)
    for split, examples in corpus.splits.items():
        wrong = [e.label != e.teacher_label for e in examples]
        assert sum(wrong) == errors
        for is_wrong, example, reference in zip(wrong, examples, correct.splits[split], strict=True):
            assert (example.input, example.label) == (reference.input, reference.label)
            assert (example.rationale != reference.rationale) == is_wrong
    if errors > 500:
        confusions = Counter((e.label, e.teacher_label) for e in corpus.splits["train"])
        assert len(confusions) == 6 and min(confusions.values()) > errors / 9


def test_a_version_changes_the_fingerprint_of_the_data() -> None:
    assert GeneratedSource("deduction", 5).fingerprint() == GeneratedSource("deduction", 5, version=1).fingerprint()
    assert GeneratedSource("deduction", 5).fingerprint() != GeneratedSource("deduction", 6).fingerprint()
    with pytest.raises(UserError, match="version = 2: deduction has the versions 1"):
        GeneratedSource("deduction", 5, version=2).read()
    with pytest.raises(UserError, match="size = 0"):
        GeneratedSource("deduction", 0).read()
    assert set(GeneratedSource("deduction", 0 + 1).read({"test"}).splits) == {"test"}


@pytest.mark.parametrize(
    ("seed", "num_train", "num_test", "rate", "message"),
    [
        (-1, 5, 5, 0.2, "seed = -1"),
        (0, -5, 5, 0.2, "num_train = -5"),
        (0, 5, -1, 0.2, "num_test = -1"),
        (0, 5, 5, 1.5, "teacher_error_rate = 1.5"),
        (0, 5, 5, float("nan"), "teacher_error_rate = nan"),
    ],
)
def test_impossible_arguments_are_refused(seed: int, num_train: int, num_test: int, rate: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_deduction(seed, num_train, num_test=num_test, teacher_error_rate=rate)


def test_the_committed_vocabulary_is_what_the_script_writes() -> None:
    assert train_vocabulary("deduction") == VOCABULARY_PATH.read_bytes(), (
        f"train it again; it was made with sentencepiece 0.2.3, here is {sentencepiece.__version__}"
    )


@pytest.mark.parametrize("seed", [0, 11])
def test_vocabulary_covers_every_text(seed: int, processor: sentencepiece.SentencePieceProcessor) -> None:
    for example in all_examples(make_deduction(seed, 1000)):
        theory, claim = example.input.split(EOS_TEXT)
        for text in (f"predict: {theory}", f"explain: {theory}", claim, example.label, example.rationale):
            ids = processor.encode(text)
            assert processor.unk_id() not in ids
            assert processor.decode(ids) == text
        assert len(processor.encode(example.label)) == 1


def test_pieces_of_names_and_properties_all_occur_in_train(
    corpus: Corpus, processor: sentencepiece.SentencePieceProcessor
) -> None:
    pieces = {
        split: {id for e in examples for id in processor.encode(e.input.replace(EOS_TEXT, " "))}
        for split, examples in corpus.splits.items()
    }
    assert pieces["valid"] | pieces["test"] <= pieces["train"]


def test_texts_are_short(corpus: Corpus, processor: sentencepiece.SentencePieceProcessor) -> None:
    def longest(field: str) -> int:
        return max(len(processor.encode(getattr(example, field))) for example in all_examples(corpus))

    assert longest("input") <= 62
    assert longest("rationale") <= 50
