"""Embedded synthetic data: claims about a few facts and rules, with proofs, and a teacher that errs at a known rate.

The seed determines everything. A theory is about two people, of whom one fact each starts a chain of one to three
rules; another fact and another rule, whose conclusion is the opposite of one in a chain, lead nowhere. A claim is true
or false if the chain of its person reaches it or its opposite, and unknown if it is about the chain of the other
person. So one theory gives claims of all labels, and neither the claim nor the words of the input tell them apart; the
sentence that names the property of a claim separates most true claims from most false ones, but not from unknown ones.
Names, and rules (the pair of premise and conclusion), of a split are in no other split; properties are in all.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.sources.base import cluster_key, digest
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
from cotmi_jax.errors import UserError

VOCABULARY_PATH = pathlib.Path(__file__).with_name("deduction.spiece.model")

HELD_OUT = 600  # examples of valid and of test in the data set that runs use: 100 theories each
CLAIMS = 6  # of a theory, two of each label
VERSIONS = (1,)
_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}  # of all names, and of all rules
_MAX_HOPS = 3
_OPPOSED = 1  # rules to the opposite of a conclusion of a chain, from a premise that nobody has
_TRAP = 0.5  # probability that the further fact about a person is the opposite of the other person's first
_IN_ORDER = 0.5  # probability that the sentences of a chain are together and in order
_Item = TypeVar("_Item")


class _Pool(NamedTuple):
    """What the theories of one split are made of: names, the conclusions of each premise, and the reverse."""

    names: list[str]
    conclusions: dict[str, list[str]]
    premises: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class DeductionSource:
    """The data set as runs use it, with a fixed seed, so that all runs have the same valid and test splits.

    size: number of train examples, at least 1.
    version: as for `make_deduction`.
    """

    size: int
    version: int = 1
    name: str = "deduction"

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        if self.size < 1:
            raise UserError(f"size = {self.size}: give the number of train examples, at least 1")
        num_train = self.size if "train" in splits else 0
        corpus = make_deduction(0, num_train, version=self.version)
        return Corpus(corpus.name, {split: corpus.splits[split] for split in SPLITS if split in splits})

    def fingerprint(self) -> str:
        return digest(self.name, self.size, self.version)


def make_deduction(
    seed: int,
    num_train: int,
    num_valid: int = HELD_OUT,
    num_test: int = HELD_OUT,
    teacher_error_rate: float = 0.2,
    version: int = 1,
) -> Corpus:
    """Makes the data set: the same arguments give the same examples on every machine.

    Inputs are unique over all splits. CLAIMS examples in a row share their theory, which is their cluster, and have
    each label twice; a split whose size is no multiple ends within a theory. A shorter split is the beginning of a
    longer one, but for the examples on which the teacher errs; valid and test do not depend on num_train. The teacher
    errs on exactly round(teacher_error_rate * n) of the n examples of each split: one step of its proof is wrong, and
    what follows from it gives teacher_label, which is not the label. version: 1.

    Raises:
      UserError: a negative seed or size, a rate outside [0, 1], or an unknown version.
    """
    sizes = {"train": num_train, "valid": num_valid, "test": num_test}
    for key, value in {"seed": seed, **{f"num_{split}": size for split, size in sizes.items()}}.items():
        if value < 0:
            raise UserError(f"{key} = {value}: give a number of at least 0")
    if not 0 <= teacher_error_rate <= 1:
        raise UserError(f"teacher_error_rate = {teacher_error_rate}: give a fraction between 0 and 1")
    if version not in VERSIONS:
        raise UserError(f"version = {version}: deduction has the versions {', '.join(map(str, VERSIONS))}")
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
    """Divides names and rules among the splits."""
    names = _divide(rng, [first + second for first in FIRST_SYLLABLES for second in SECOND_SYLLABLES])
    rules = _divide(rng, [pair for pair in itertools.permutations(OPPOSITE, 2) if pair[1] != OPPOSITE[pair[0]]])
    pools = {}
    for split in SPLITS:
        pool = _Pool(names[split], {name: [] for name in OPPOSITE}, {name: [] for name in OPPOSITE})
        for premise, conclusion in rules[split]:
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
    hops = rng.integers(1, _MAX_HOPS + 1, len(names)).tolist()
    drawn = None
    while drawn is None:
        drawn = _draw_rules(rng, pool, hops)
    chains, opposed = drawn
    theory = _state(rng, names, chains, opposed)
    followed = [(person, name) for person, chain in enumerate(chains) for name in chain[1:]]
    claims = []
    for label in LABELS:
        for i in rng.permutation(len(followed))[: CLAIMS // len(LABELS)]:
            person, name = followed[i]
            opposite = label == FALSE or (label == UNKNOWN and rng.random() < 0.5)
            about = names[1 - person if label == UNKNOWN else person]
            claims.append(Fact(about, OPPOSITE[name] if opposite else name))
    return [Problem(theory, claims[i]) for i in rng.permutation(len(claims))]


def _draw_rules(
    rng: np.random.Generator, pool: _Pool, hops: Sequence[int]
) -> tuple[list[list[str]], list[Rule]] | None:
    """Properties of a chain of rules for each number of hops, and _OPPOSED further rules, which conclude the opposite.

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
    conclusions = [OPPOSITE[name] for chain in chains for name in chain[1:]]
    opposed = []
    for i in rng.permutation(len(conclusions))[:_OPPOSED]:
        premise = take(pool.premises[conclusions[i]])
        if premise is None:
            return None
        opposed.append(Rule(premise, conclusions[i]))
    return chains, opposed


def _state(
    rng: np.random.Generator, names: Sequence[str], chains: Sequence[Sequence[str]], opposed: Sequence[Rule]
) -> tuple[Fact | Rule, ...]:
    """The sentences of a theory: those of a chain together and in order, or all in random order."""
    groups: list[list[Fact | Rule]] = [
        [Fact(name, chain[0]), *(Rule(*pair) for pair in itertools.pairwise(chain))]
        for name, chain in zip(names, chains, strict=True)
    ]
    person = int(rng.integers(len(names)))
    used = {name for chain in chains for name in chain} | {rule.premise for rule in opposed}
    further = [name for name in OPPOSITE if not {name, OPPOSITE[name]} & used]
    trap = rng.random() < _TRAP or not further
    groups.append([Fact(names[person], OPPOSITE[chains[1 - person][0]] if trap else _pick(rng, further))])
    groups += [[rule] for rule in opposed]
    if rng.random() >= _IN_ORDER:
        groups = [[sentence] for group in groups for sentence in group]
    return tuple(sentence for i in rng.permutation(len(groups)) for sentence in groups[i])


def _annotate(rng: np.random.Generator, problem: Problem, name: str, is_wrong: bool) -> Example:
    proof = told = prove(problem)
    if is_wrong:
        changed = change_proof(proof, _pick(rng, [label for label in LABELS if label != proof.label]), rng)
        assert changed is not None  # every chain has a step
        told = changed
    return Example(
        id=name,
        input=str(problem),
        label=proof.label,
        rationale=str(told),
        teacher_label=told.label,
        choices=LABELS,
        cluster=cluster_key("deduction", " ".join(map(str, problem.theory))),
    )
