"""Templates of the arithmetic word problems: words, sentences and solutions."""

import dataclasses

NAMES = (
    *((name, "he") for name in ("Tom", "Ben", "Leo", "Omar", "Max", "Paul")),
    *((name, "she") for name in ("Mia", "Ana", "Eva", "Lily", "Nora", "Kate")),
)
_SMALL = ("marbles", "stickers", "cards", "shells", "stamps", "beads", "stones", "badges")
_FRUIT = ("apples", "plums", "pears", "lemons", "melons", "oranges")
_BAKED = ("cookies", "muffins", "rolls", "cakes")
_GOODS = ("books", "lamps", "games", "shirts", "hats", "cups")
OTHER_THINGS = ("pencils", "coins", "buttons", "flowers", "ribbons", "feathers")
CONTAINERS = (("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("crate", "crates"))


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation: operands are numbers of the story ("a") or results of earlier steps ("#0").

    wording holds {left} and {right}, the values of the operands, and {step}, "left operation right = result".
    """

    left: str
    operation: str
    right: str
    wording: str


@dataclasses.dataclass(frozen=True)
class Template:
    """A kind of story: its nouns, ranges of its numbers, sentences (the question last), and steps to the answer.

    [this|that] is a random choice of words. The sentence with {x} is the distractor, which some stories leave out.
    """

    things: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]
    sentences: tuple[str, ...]
    steps: tuple[Step, ...]


TEMPLATES = (
    Template(
        things=_SMALL,
        ranges={"a": (4, 99), "b": (2, 97)},
        sentences=(
            "{name} [has|owns|collects] {a} {thing}.",
            "[{name} also|{friend}] has {x} {other}.",
            "[{name} gives {b} {thing} to {friend}|{friend} gets {b} {thing} from {name}].",
            "How many {thing} does {name} [have left|still have]?",
        ),
        steps=(Step("a", "-", "b", "{name} has {left} {thing} and gives away {right}, so {step} {thing} are left."),),
    ),
    Template(
        things=_SMALL,
        ranges={"a": (4, 99), "b": (2, 12)},
        sentences=(
            "{name} [has|buys|finds] {a} {thing}.",
            "{He} [shares|splits] them [equally|evenly] among {b} friends.",
            "{name} also [has|keeps] {x} {other}.",
            "How many {thing} [does|will] each friend get?",
        ),
        steps=(Step("a", "/", "b", "The {left} {thing} go to {right} friends, so each friend gets {step} {thing}."),),
    ),
    Template(
        things=_SMALL,
        ranges={"a": (2, 95), "b": (2, 60), "c": (2, 95)},
        sentences=(
            "{name} [has|keeps] {a} {thing} in a {box}.",
            "{name} [finds|buys|gets] {b} more {thing}.",
            "[{name} also has {x} {other}|{friend} lives {x} miles away].",
            "[Then|Later] {name} [loses|sells] {c} {thing}.",
            "How many {thing} does {name} have [now|left]?",
        ),
        steps=(
            Step("a", "+", "b", "{name} has {left} {thing} and gets {right} more, which makes {step} {thing}."),
            Step("#0", "-", "c", "Then {right} {thing} are gone, so {step} {thing} are left."),
        ),
    ),
    Template(
        things=_SMALL,
        ranges={"a": (2, 48), "b": (2, 60)},
        sentences=(
            "{name} [has|owns] {a} {thing}.",
            "{friend} has {b} [more {thing}|{thing} more] than {name}.",
            "[{name}|{friend}] also has {x} {other}.",
            "How many {thing} do [they|{name} and {friend}] have [together|in all]?",
        ),
        steps=(
            Step("a", "+", "b", "{name} has {left} and {friend} {right} more, so {friend} has {step} {thing}."),
            Step("a", "+", "#0", "Together they have {step} {thing}."),
        ),
    ),
    Template(
        things=_SMALL,
        ranges={"a": (2, 12), "b": (2, 24), "c": (2, 60)},
        sentences=(
            "{name} [buys|gets] {a} {boxes} of {thing}.",
            "[Each {box} holds {b} {thing}|There are {b} {thing} in each {box}].",
            "[Each {box} costs|The price of a {box} is] {x} dollars.",
            "[{name} already had {c} {thing} at home|At home {name} already had {c} {thing}].",
            "How many {thing} does {name} have [now|in all]?",
        ),
        steps=(
            Step("a", "*", "b", "The {left} {boxes} hold {right} {thing} each, which makes {step} {thing}."),
            Step("#0", "+", "c", "With the {right} {thing} at home {name} has {step} {thing}."),
        ),
    ),
    Template(
        things=_GOODS,
        ranges={"a": (8, 99), "b": (2, 12), "c": (2, 24)},
        sentences=(
            "{name} [has {a} dollars|takes {a} dollars to the shop].",
            "The shop [is {x} miles away|opens in {x} minutes].",
            "{name} buys {b} {thing} [for|that cost] {c} dollars each.",
            "How many dollars [does {name} have|are] left?",
        ),
        steps=(
            Step("b", "*", "c", "The {left} {thing} cost {right} dollars each, which is {step} dollars."),
            Step("a", "-", "#0", "{name} had {left} dollars, so {step} dollars are left."),
        ),
    ),
    Template(
        things=_GOODS,
        ranges={"a": (12, 99), "b": (2, 12), "c": (2, 24), "d": (2, 60)},
        sentences=(
            "{name} [has|takes] {a} dollars for a trip.",
            "The trip [takes {x} minutes|ends in {x} days].",
            "{name} [buys|pays for] {b} {thing} at {c} dollars each and a map for {d} dollars.",
            "How many dollars [does {name} have|are] left?",
        ),
        steps=(
            Step("b", "*", "c", "The {left} {thing} cost {step} dollars."),
            Step("a", "-", "#0", "After that {step} dollars are left."),
            Step("#1", "-", "d", "The map costs {right}, so {step} dollars are left."),
        ),
    ),
    Template(
        things=_BAKED,
        ranges={"a": (8, 99), "b": (2, 90), "c": (2, 12)},
        sentences=(
            "{name} [bakes|makes] {a} {thing}.",
            "{name} [sells|gives away] {b} [{thing}|of them].",
            "[This takes {x} minutes|{friend} has {x} {other}].",
            "{name} [puts the rest equally into|splits the rest evenly among] {c} {boxes}.",
            "How many {thing} [are in each {box}|does each {box} hold]?",
        ),
        steps=(
            Step("a", "-", "b", "Of the {left} {thing} {right} are gone, so {step} are left."),
            Step("#0", "/", "c", "They go into {right} {boxes}, so each {box} holds {step} {thing}."),
        ),
    ),
    Template(
        things=("pages", "poems", "stories", "letters"),
        ranges={"a": (2, 40), "b": (2, 40), "c": (2, 12)},
        sentences=(
            "[Every|Each] day {name} reads {a} {thing} in the morning and {b} {thing} in the evening.",
            "{friend} [has|owns] {x} {other}.",
            "How many {thing} [does|will] {name} read in {c} days?",
        ),
        steps=(
            Step("a", "+", "b", "{name} reads {left} and {right} {thing} a day, which is {step} {thing}."),
            Step("#0", "*", "c", "In {right} days that makes {step} {thing}."),
        ),
    ),
    Template(
        things=_GOODS,
        ranges={"a": (4, 99), "b": (2, 12), "c": (2, 24)},
        sentences=(
            "{name} [buys {b} {thing} for {a} dollars|pays {a} dollars for {b} {thing}].",
            "[The shop is {x} miles away|{name} also has {x} {other}].",
            "All {thing} [cost the same|have the same price].",
            "How many dollars [do {c} {thing} cost|must {friend} pay for {c} {thing}]?",
        ),
        steps=(
            Step("a", "/", "b", "Since {right} {thing} cost {left} dollars, each costs {step} dollars."),
            Step("#0", "*", "c", "So {right} {thing} cost {step} dollars."),
        ),
    ),
    Template(
        things=("show", "film", "match", "concert"),
        ranges={"a": (4, 60), "b": (2, 50), "c": (2, 12)},
        sentences=(
            "[Adults pay {a} dollars for the {thing}|The price of the {thing} for adults is {a} dollars].",
            "[A|Each] child pays {b} dollars less.",
            "[The {thing} lasts {x} minutes|There are {x} seats].",
            "How many dollars do {c} children pay [together|in all]?",
        ),
        steps=(
            Step("a", "-", "b", "Adults pay {left} dollars and a child {right} less, which is {step} dollars."),
            Step("#0", "*", "c", "Together {right} children pay {step} dollars."),
        ),
    ),
    Template(
        things=("children", "players", "pupils", "singers"),
        ranges={"a": (2, 12), "b": (2, 24), "c": (2, 12)},
        sentences=(
            "A [school|club|camp] has {a} groups of {b} {thing}.",
            "They [own|have] {x} {other}.",
            "[They|The {thing}] [form|make] {c} equal teams.",
            "How many {thing} [are|will be] [in|on] each team?",
        ),
        steps=(
            Step("a", "*", "b", "The {left} groups of {right} make {step} {thing}."),
            Step("#0", "/", "c", "Each of the {right} teams has {step} {thing}."),
        ),
    ),
    Template(
        things=_FRUIT,
        ranges={"a": (2, 90), "b": (2, 90), "c": (2, 60), "d": (2, 12)},
        sentences=(
            "{name} [picks|buys|finds] {a} {thing} and {friend} {b}.",
            "[This takes {x} minutes|They also have {x} {other}].",
            "They [throw away {c} bad|eat {c} of the|sell {c} of the] {thing}.",
            "They [put the rest equally into|split the rest evenly among] {d} {boxes}.",
            "How many {thing} [are in each {box}|does each {box} hold]?",
        ),
        steps=(
            Step("a", "+", "b", "Together they have {step} {thing}."),
            Step("#0", "-", "c", "Then {right} are gone, so {step} are left."),
            Step("#1", "/", "d", "Each of the {right} {boxes} holds {step} {thing}."),
        ),
    ),
    Template(
        things=_SMALL,
        ranges={"a": (2, 12), "b": (2, 24), "c": (2, 12), "d": (2, 24)},
        sentences=(
            "{name} [has|buys|gets] {a} red {boxes} and {c} blue {boxes}.",
            "Each red {box} holds {b} {thing} and each blue {box} [|holds ]{d}.",
            "[{name} also|{friend}] has {x} {other}.",
            "How many {thing} does {name} have [now|in all]?",
        ),
        steps=(
            Step("a", "*", "b", "The red {boxes} hold {step} {thing}."),
            Step("c", "*", "d", "The blue {boxes} hold {step} {thing}."),
            Step("#0", "+", "#1", "Together that makes {step} {thing}."),
        ),
    ),
    Template(
        things=("coat", "desk", "phone", "bike"),
        ranges={"a": (2, 24), "b": (2, 24), "c": (2, 90), "d": (2, 12)},
        sentences=(
            "{name} works {a} hours [for|and gets] {b} dollars an hour.",
            "[The way to work takes {x} minutes|{friend} lives {x} miles away].",
            "{name} [buys a {thing} for {c} dollars|spends {c} dollars on a {thing}].",
            "{name} [shares|splits] the rest [equally|evenly] among {d} friends.",
            "How many dollars [does|will] each friend get?",
        ),
        steps=(
            Step("a", "*", "b", "The work pays {step} dollars."),
            Step("#0", "-", "c", "The {thing} costs {right} dollars, so {step} dollars are left."),
            Step("#1", "/", "d", "Each of the {right} friends gets {step} dollars."),
        ),
    ),
    Template(
        things=("bus", "train", "boat", "ship"),
        ranges={"a": (4, 99), "b": (2, 90), "c": (2, 90), "d": (2, 90)},
        sentences=(
            "[There are {a} people on a {thing}|A {thing} leaves with {a} people on it].",
            "[At the first stop|First] {b} people get off and {c} [|people ]get on.",
            "[The next stop is {x} miles away|The {thing} has {x} windows].",
            "[At the next stop|Then] {d} people get off.",
            "How many people are on the {thing} [now|then]?",
        ),
        steps=(
            Step("a", "-", "b", "When {right} people get off, {step} are left."),
            Step("#0", "+", "c", "When {right} get on, there are {step}."),
            Step("#1", "-", "d", "Then {right} get off, so there are {step} people."),
        ),
    ),
)
