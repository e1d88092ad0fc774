"""Embedded synthetic data: claims about a few facts and rules, with proofs, and a teacher that errs at a known rate.

The seed determines everything. A theory is about two people, of whom one fact each starts a chain of one to three
rules. Half of the theories have a further fact, and half a rule from a premise that nobody has to the opposite of a
conclusion of a chain. A claim is true or false if the chain of its person reaches it or its opposite. Of unknown claims
half are about the chain of the other person, and half about a property of which the theory says nothing. So one theory
gives claims of all labels, and neither the claim nor the words of the input predict them. Whether the theory holds the
property of a claim or its opposite predicts most of the labels; the rest needs the proof. Names, and rules (pairs of
premise and conclusion), of a split are in no other split; properties are in all.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.sources.base import check_generated, cluster_key
from cotmi_jax.data.sources.deduction_theories import (
    FALSE,
    FIRST_SYLLABLES,
    LABELS,
    OPPOSITE,
    SECOND_SYLLABLES,
    UNKNOWN,
    Fact,
    Problem,
    Rule,
    change_proof,
    prove,
)

VOCABULARY_PATH = pathlib.Path(__file__).with_name("deduction.spiece.model")

HELD_OUT = 600  # examples of valid and of test in the data set that runs use: 100 theories each
CLAIMS = 6  # of a theory, two of each label
VERSIONS = (1,)
_SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}  # of all names, and of all rules
_HOPS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # rules in the chain of each person
_OPPOSED = 0.5  # probability of a rule to the opposite of a conclusion of a chain, from a premise that nobody has
_FURTHER = 0.5  # probability of a fact that starts no chain
_NEAR = 0.5  # probability that such a fact about a person is the opposite of the other person's first
_IN_ORDER = 0.5  # probability that the sentences of a chain are together and in order
_Item = TypeVar("_Item")


class _Pool(NamedTuple):
    """What the theories of one split are made of: names, the conclusions of each premise, and the reverse."""

    names: list[str]
    conclusions: dict[str, list[str]]
    premises: dict[str, list[str]]


def make_deduction(
    seed: int,
    num_train: int,
    num_valid: int | None = None,
    num_test: int | None = None,
    teacher_error_rate: float = 0.2,
    version: int = 1,
) -> Corpus:
    """Makes the data set: the same arguments give the same examples on every machine.

    num_valid, num_test: HELD_OUT where they are not given.

    Inputs are unique over all splits. CLAIMS examples in a row share their theory, which is their cluster, and have
    each label twice; a split whose size is no multiple ends within a theory. A shorter split is the beginning of a
    longer one, but for the examples on which the teacher errs; valid and test do not depend on num_train. The teacher
    errs on exactly round(teacher_error_rate * n) of the n examples of each split: one step of its proof is wrong, and
    what follows from it gives teacher_label, which is not the label. version: 1.

    Raises:
      UserError: a negative seed or size, a rate outside [0, 1], or an unknown version.
    """
    held_out = {"valid": num_valid, "test": num_test}
    sizes = {"train": num_train} | {key: HELD_OUT if size is None else size for key, size in held_out.items()}
    check_generated("deduction", seed, sizes, teacher_error_rate, version, VERSIONS)
    pools = _make_pools(np.random.default_rng([seed, len(SPLITS)]))
    splits: dict[str, tuple[Example, ...]] = {}
    for stream, split in enumerate(SPLITS):  # Names differ by split, so no theory of one is in another.
        problems = _make_problems(np.random.default_rng([seed, stream, 0]), sizes[split], pools[split])
        rng = np.random.default_rng([seed, stream, 1])
        wrong = set(rng.permutation(len(problems))[: round(teacher_error_rate * len(problems))].tolist())
        splits[split] = tuple(
            _annotate(rng, problem, f"deduction/{split}/{row}", row in wrong) for row, problem in enumerate(problems)
        )
    return Corpus("deduction", splits)


def _make_pools(rng: np.random.Generator) -> dict[str, _Pool]:
    """Divides names and rules among the splits.

    Rules are divided by the distance of premise and conclusion in a circle of the pairs of opposites, and by whether
    both are on the same side of their pairs. So every property has as many rules as any other, in each split: else the
    property of a claim would predict its label.
    """
    names = _divide(rng, [first + second for first in FIRST_SYLLABLES for second in SECOND_SYLLABLES])
    properties = list(OPPOSITE)  # opposites are neighbours
    pairs = [properties[i : i + 2] for i in range(0, len(properties), 2)]
    circle = [pairs[i] for i in rng.permutation(len(pairs))]
    kinds = _divide(rng, list(itertools.product(range(1, len(circle)), (0, 1))))
    pools = {}
    for split in SPLITS:
        pool = _Pool(names[split], {name: [] for name in OPPOSITE}, {name: [] for name in OPPOSITE})
        for (distance, turn), start, side in itertools.product(kinds[split], range(len(circle)), (0, 1)):
            premise, conclusion = circle[start][side], circle[(start + distance) % len(circle)][side ^ turn]
            pool.conclusions[premise].append(conclusion)
            pool.premises[conclusion].append(premise)
        pools[split] = pool
    return pools


def _divide(rng: np.random.Generator, items: Sequence[_Item]) -> dict[str, list[_Item]]:
    shuffled = [items[i] for i in rng.permutation(len(items))]
    ends = np.cumsum([round(share * len(items)) for share in _SHARES.values()])[:-1].tolist()
    return {
        split: shuffled[start:end] for split, start, end in zip(_SHARES, (0, *ends), (*ends, len(items)), strict=True)
    }


def _pick(rng: np.random.Generator, options: Sequence[_Item]) -> _Item:
    return options[int(rng.integers(len(options)))]


def _make_problems(rng: np.random.Generator, count: int, pool: _Pool) -> list[Problem]:
    """Makes `count` problems with different texts: CLAIMS of each theory but the last."""
    problems: list[Problem] = []
    seen: set[tuple[Fact | Rule, ...]] = set()
    while len(problems) < count:
        of_theory = _make_claims(rng, pool)
        if of_theory[0].theory not in seen:
            seen.add(of_theory[0].theory)
            problems += of_theory
    return problems[:count]


def _make_claims(rng: np.random.Generator, pool: _Pool) -> list[Problem]:
    """A theory with its claims."""
    names = [pool.names[i] for i in rng.permutation(len(pool.names))[:2]]
    hops = _pick(rng, _HOPS)
    drawn = None
    while drawn is None:
        drawn = _draw_rules(rng, pool, hops)
    chains, opposed = drawn
    theory = _state(rng, names, chains, opposed)
    followed = [(person, name) for person, chain in enumerate(chains) for name in chain[1:]]
    named = {word for sentence in theory for word in sentence}
    silent = [name for name in OPPOSITE if not {name, OPPOSITE[name]} & named]
    claims = []
    for label in LABELS:
        for number, i in enumerate(rng.permutation(len(followed))[: CLAIMS // len(LABELS)]):
            person, name = followed[i]
            if label == UNKNOWN:
                name = _pick(rng, silent) if number else _pick(rng, (name, OPPOSITE[name]))
                person = 1 - person
            claims.append(Fact(names[person], OPPOSITE[name] if label == FALSE else name))
    return [Problem(theory, claims[i]) for i in rng.permutation(len(claims))]


def _draw_rules(
    rng: np.random.Generator, pool: _Pool, hops: Sequence[int]
) -> tuple[list[list[str]], list[Rule]] | None:
    """Properties of a chain of rules for each number of hops, and at most one rule that concludes the opposite.

    None where no rule of the pool continues a chain with a property that is not used yet.
    """
    chains: list[list[str]] = []
    used: set[str] = set()

    def take(options: Sequence[str]) -> str | None:
        free = [name for name in options if name not in used]
        if not free:
            return None
        name = _pick(rng, free)
        used.update((name, OPPOSITE[name]))
        return name

    for length in hops:
        name = take(list(OPPOSITE))
        chain: list[str] = []
        while name is not None and len(chain) < length:
            chain.append(name)
            name = take(pool.conclusions[name])
        if name is None:
            return None
        chains.append([*chain, name])
    if rng.random() >= _OPPOSED:
        return chains, []
    conclusion = OPPOSITE[_pick(rng, [name for chain in chains for name in chain[1:]])]
    premise = take(pool.premises[conclusion])
    return None if premise is None else (chains, [Rule(premise, conclusion)])


def _state(
    rng: np.random.Generator, names: Sequence[str], chains: Sequence[Sequence[str]], opposed: Sequence[Rule]
) -> tuple[Fact | Rule, ...]:
    """The sentences of a theory: those of a chain together and in order, or all in random order."""
    groups: list[list[Fact | Rule]] = [
        [Fact(name, chain[0]), *(Rule(*pair) for pair in itertools.pairwise(chain))]
        for name, chain in zip(names, chains, strict=True)
    ]
    if rng.random() < _FURTHER:
        person = int(rng.integers(len(names)))
        used = {name for chain in chains for name in chain} | {rule.premise for rule in opposed}
        free = [name for name in OPPOSITE if not {name, OPPOSITE[name]} & used]
        near = rng.random() < _NEAR or len(free) <= 2  # one pair is left for claims of which the theory says nothing
        groups.append([Fact(names[person], OPPOSITE[chains[1 - person][0]] if near else _pick(rng, free))])
    groups += [[rule] for rule in opposed]
    if rng.random() >= _IN_ORDER:
        groups = [[sentence] for group in groups for sentence in group]
    return tuple(sentence for i in rng.permutation(len(groups)) for sentence in groups[i])


def _annotate(rng: np.random.Generator, problem: Problem, name: str, is_wrong: bool) -> Example:
    proof = of_teacher = prove(problem)
    if is_wrong:
        changed = change_proof(proof, _pick(rng, [label for label in LABELS if label != proof.label]), rng)
        assert changed is not None  # every chain has a step
        of_teacher = changed
    return Example(
        id=name,
        input=str(problem),
        label=proof.label,
        rationale=str(of_teacher),
        teacher_label=of_teacher.label,
        choices=LABELS,
        cluster=cluster_key("deduction", " ".join(map(str, problem.theory))),
    )
