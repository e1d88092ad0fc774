"""Embedded synthetic data: arithmetic word problems, worked solutions, and a teacher that errs at a known rate.

Everything follows from the seed. A problem is a story told by one of a few templates, whose order of sentences is fixed
while the wording of each sentence varies; now and then a sentence with a number of no use to the solution is told along.
Every number in a problem and every result of a step, right or wrong, is a whole number in 2..99.
"""

import dataclasses
import pathlib

import numpy as np

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.errors import UserError

VOCABULARY_PATH = pathlib.Path(__file__).with_name("arithmetic.spiece.model")

_SMALLEST, _LARGEST = 2, 99
_DISTRACTOR_RATE = 0.35
_OPERATIONS = "+-*/"
_NAMES = (
    ("Tom", "he"),
    ("Mia", "she"),
    ("Ben", "he"),
    ("Ana", "she"),
    ("Leo", "he"),
    ("Eva", "she"),
    ("Omar", "he"),
    ("Lily", "she"),
)
_SMALL = ("marbles", "stickers", "cards", "shells", "stamps", "beads")
_FRUIT = ("apples", "plums", "pears", "lemons")
_BAKED = ("cookies", "muffins", "rolls", "cakes")
_GOODS = ("books", "lamps", "games", "shirts")
_CONTAINERS = (("box", "boxes"), ("bag", "bags"), ("jar", "jars"), ("basket", "baskets"))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One operation: operands are numbers of the story ("a") or results of earlier steps ("#0")."""

    left: str
    operation: str
    right: str
    wordings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Template:
    """A kind of story: ranges of its numbers, wordings of each sentence (question last), steps to the answer.

    The sentence whose wordings hold {x} is the distractor, which may be left out. In a step's wordings {left}, {right}
    and {step} stand for the operands as used and for "left operation right = result".
    """

    things: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]
    sentences: tuple[tuple[str, ...], ...]
    steps: tuple[_Step, ...]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A told story: its text, the numbers in it, its steps, and one chosen wording per step with the names filled in."""

    text: str
    numbers: dict[str, int]
    steps: tuple[_Step, ...]
    wordings: tuple[str, ...]


_TEMPLATES = (
    _Template(
        things=_SMALL,
        ranges={"a": (4, 99), "b": (2, 97)},
        sentences=(
            ("{name} has {a} {things}.", "{name} owns {a} {things}."),
            ("{name} also has {x} {other}.", "{friend} has {x} {other}."),
            ("{name} gives {b} {things} to {friend}.", "{friend} gets {b} {things} from {name}."),
            ("How many {things} does {name} have left?", "How many {things} does {name} still have?"),
        ),
        steps=(
            _Step("a", "-", "b", ("{name} has {left} {things} and gives away {right}, so {step} {things} are left.",)),
        ),
    ),
    _Template(
        things=_SMALL,
        ranges={"a": (4, 99), "b": (2, 12)},
        sentences=(
            ("{name} has {a} {things}.", "{name} buys {a} {things}."),
            ("{He} shares them equally among {b} friends.", "{He} splits them evenly among {b} friends."),
            ("{name} also has {x} {other}.", "{He} keeps {x} {other}."),
            ("How many {things} does each friend get?", "How many {things} will each friend have?"),
        ),
        steps=(
            _Step("a", "/", "b", ("The {left} {things} go to {right} friends, so each friend gets {step} {things}.",)),
        ),
    ),
    _Template(
        things=_SMALL,
        ranges={"a": (2, 95), "b": (2, 60), "c": (2, 95)},
        sentences=(
            ("{name} has {a} {things} in a {box}.", "{name} keeps {a} {things} in a {box}."),
            ("{name} finds {b} more {things}.", "{He} gets {b} more {things} from {friend}."),
            ("{name} is {x} inches taller than {friend}.", "{friend} lives {x} miles away."),
            ("Then {name} loses {c} {things}.", "Later {name} sells {c} {things}."),
            ("How many {things} does {name} have now?", "How many {things} does {name} have left?"),
        ),
        steps=(
            _Step("a", "+", "b", ("{name} has {left} {things} and gets {right} more, which makes {step} {things}.",)),
            _Step("#0", "-", "c", ("Then {right} {things} are gone, so {step} {things} are left.",)),
        ),
    ),
    _Template(
        things=_SMALL,
        ranges={"a": (2, 48), "b": (2, 60)},
        sentences=(
            ("{name} has {a} {things}.", "{name} owns {a} {things}."),
            ("{friend} has {b} more {things} than {name}.", "{friend} has {b} {things} more than {name}."),
            ("{friend} also has {x} {other}.", "{name} also has {x} {other}."),
            ("How many {things} do they have together?", "How many {things} do both have together?"),
        ),
        steps=(
            _Step("a", "+", "b", ("{friend} has {right} more than the {left} of {name}, that is {step} {things}.",)),
            _Step("a", "+", "#0", ("Together they have {step} {things}.",)),
        ),
    ),
    _Template(
        things=_SMALL,
        ranges={"a": (2, 12), "b": (2, 24), "c": (2, 60)},
        sentences=(
            ("{name} buys {a} {boxes} of {things}.", "{name} gets {a} {boxes} of {things}."),
            ("Each {box} holds {b} {things}.", "There are {b} {things} in each {box}."),
            ("Each {box} costs {x} dollars.", "The price of a {box} is {x} dollars."),
            ("{He} already had {c} {things} at home.", "At home {he} already had {c} {things}."),
            ("How many {things} does {name} have now?", "How many {things} does {name} have in all?"),
        ),
        steps=(
            _Step("a", "*", "b", ("The {left} {boxes} hold {right} {things} each, which makes {step} {things}.",)),
            _Step("#0", "+", "c", ("With the {right} {things} at home {name} has {step} {things}.",)),
        ),
    ),
    _Template(
        things=_GOODS,
        ranges={"a": (8, 99), "b": (2, 12), "c": (2, 24)},
        sentences=(
            ("{name} has {a} dollars.", "{name} takes {a} dollars to the shop."),
            ("The shop is {x} miles away.", "The shop also sells {x} {other}."),
            ("{He} buys {b} {things} for {c} dollars each.", "{He} buys {b} {things} that cost {c} dollars each."),
            ("How many dollars does {name} have left?", "How many dollars does {he} still have?"),
        ),
        steps=(
            _Step("b", "*", "c", ("The {left} {things} cost {right} dollars each, which is {step} dollars.",)),
            _Step("a", "-", "#0", ("{name} had {left} dollars, so {step} dollars are left.",)),
        ),
    ),
    _Template(
        things=_BAKED,
        ranges={"a": (8, 99), "b": (2, 90), "c": (2, 12)},
        sentences=(
            ("{name} bakes {a} {things}.", "{name} makes {a} {things}."),
            ("{He} sells {b} of them.", "{name} sells {b} {things}."),
            ("This takes {x} minutes.", "{friend} buys {x} {other}."),
            ("{name} puts the rest equally into {c} {boxes}.", "{name} splits the rest evenly among {c} {boxes}."),
            ("How many {things} are in each {box}?", "How many {things} does each {box} hold?"),
        ),
        steps=(
            _Step("a", "-", "b", ("{name} makes {left} {things} and sells {right}, so {step} {things} are left.",)),
            _Step("#0", "/", "c", ("They go into {right} {boxes}, so each {box} holds {step} {things}.",)),
        ),
    ),
    _Template(
        things=("pages", "poems", "stories", "letters"),
        ranges={"a": (2, 40), "b": (2, 40), "c": (2, 12)},
        sentences=(
            (
                "{name} reads {a} {things} every morning and {b} {things} every evening.",
                "Every day {name} reads {a} {things} in the morning and {b} {things} in the evening.",
            ),
            ("{friend} owns {x} books.", "{name} also has {x} games."),
            ("How many {things} does {name} read in {c} days?", "How many {things} will {he} read in {c} days?"),
        ),
        steps=(
            _Step("a", "+", "b", ("{name} reads {left} and {right} {things} a day, which is {step} {things}.",)),
            _Step("#0", "*", "c", ("In {right} days that makes {step} {things}.",)),
        ),
    ),
    _Template(
        things=_GOODS,
        ranges={"a": (4, 99), "b": (2, 12), "c": (2, 24)},
        sentences=(
            ("{name} buys {b} {things} for {a} dollars.", "{name} pays {a} dollars for {b} {things}."),
            ("The shop also sells {x} {other}.", "The shop is {x} miles away."),
            ("All {things} cost the same.", "All {things} have the same price."),
            ("How many dollars do {c} {things} cost?", "What is the price of {c} {things}?"),
        ),
        steps=(
            _Step("a", "/", "b", ("Since {right} {things} cost {left} dollars, each costs {step} dollars.",)),
            _Step("#0", "*", "c", ("So {right} {things} cost {step} dollars.",)),
        ),
    ),
    _Template(
        things=("show", "game", "movie", "match"),
        ranges={"a": (4, 60), "b": (2, 50), "c": (2, 12)},
        sentences=(
            ("A ticket for the {things} costs {a} dollars.", "Adults pay {a} dollars for the {things}."),
            ("A child pays {b} dollars less.", "Each child pays {b} dollars less."),
            ("The {things} lasts {x} minutes.", "There are {x} seats."),
            ("How many dollars do {c} children pay together?", "How many dollars do {c} children pay in all?"),
        ),
        steps=(
            _Step("a", "-", "b", ("The price is {left} dollars and {right} less for a child, that is {step} dollars.",)),
            _Step("#0", "*", "c", ("Together {right} children pay {step} dollars.",)),
        ),
    ),
    _Template(
        things=_FRUIT,
        ranges={"a": (2, 90), "b": (2, 90), "c": (2, 60), "d": (2, 12)},
        sentences=(
            ("{name} picks {a} {things} and {friend} picks {b}.", "{name} finds {a} {things} and {friend} finds {b}."),
            ("This takes {x} minutes.", "They also find {x} {other}."),
            ("They throw away {c} bad {things}.", "They eat {c} {things}."),
            ("They put the rest equally into {d} {boxes}.", "They split the rest evenly among {d} {boxes}."),
            ("How many {things} are in each {box}?", "How many {things} does each {box} hold?"),
        ),
        steps=(
            _Step("a", "+", "b", ("Together they have {step} {things}.",)),
            _Step("#0", "-", "c", ("Then {right} are gone, so {step} are left.",)),
            _Step("#1", "/", "d", ("Each of the {right} {boxes} holds {step} {things}.",)),
        ),
    ),
    _Template(
        things=_SMALL,
        ranges={"a": (2, 12), "b": (2, 24), "c": (2, 12), "d": (2, 24)},
        sentences=(
            ("{name} buys {a} red {boxes} and {c} blue {boxes}.", "{name} has {a} red {boxes} and {c} blue {boxes}."),
            (
                "A red {box} holds {b} {things} and a blue {box} holds {d}.",
                "There are {b} {things} in each red {box} and {d} in each blue {box}.",
            ),
            ("There are also {x} {other}.", "{friend} has {x} {other}."),
            ("How many {things} does {name} have?", "How many {things} does {name} have in all?"),
        ),
        steps=(
            _Step("a", "*", "b", ("The red {boxes} hold {step} {things}.",)),
            _Step("c", "*", "d", ("The blue {boxes} hold {step} {things}.",)),
            _Step("#0", "+", "#1", ("Together that makes {step} {things}.",)),
        ),
    ),
    _Template(
        things=("coat", "book", "lamp", "shirt"),
        ranges={"a": (2, 24), "b": (2, 24), "c": (2, 90), "d": (2, 12)},
        sentences=(
            ("{name} works {a} hours for {b} dollars an hour.", "{name} works {a} hours and gets {b} dollars an hour."),
            ("The way to work takes {x} minutes.", "{name} works {x} miles away from home."),
            ("{He} spends {c} dollars on a {things}.", "{He} buys a {things} for {c} dollars."),
            ("{He} shares the rest equally among {d} friends.", "{He} splits the rest evenly among {d} friends."),
            ("How many dollars does each friend get?", "How many dollars will each friend have?"),
        ),
        steps=(
            _Step("a", "*", "b", ("The work pays {step} dollars.",)),
            _Step("#0", "-", "c", ("The {things} costs {right} dollars, so {step} dollars are left.",)),
            _Step("#1", "/", "d", ("Each of the {right} friends gets {step} dollars.",)),
        ),
    ),
    _Template(
        things=("bus", "train", "boat", "ship"),
        ranges={"a": (4, 99), "b": (2, 90), "c": (2, 90), "d": (2, 90)},
        sentences=(
            ("There are {a} people on a {things}.", "A {things} leaves with {a} people on it."),
            ("At the first stop {b} get off and {c} get on.", "First {b} people get off and {c} people get on."),
            ("The next stop is {x} miles away.", "The {things} has {x} windows."),
            ("At the next stop {d} people get off.", "Then {d} people get off."),
            ("How many people are on the {things} now?", "How many people does the {things} carry now?"),
        ),
        steps=(
            _Step("a", "-", "b", ("When {right} people get off, {step} are left.",)),
            _Step("#0", "+", "c", ("When {right} get on, there are {step}.",)),
            _Step("#1", "-", "d", ("Then {right} get off, so there are {step} people.",)),
        ),
    ),
)
_OTHER_THINGS = ("pencils", "coins", "buttons", "flowers")


def _pick[T](rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]
