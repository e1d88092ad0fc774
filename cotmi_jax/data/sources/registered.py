"""Data sets that a user registers by name, as functions that return examples, in a module of config.extensions."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.sources.base import digest
from cotmi_jax.data.token_weights import parse_spans
from cotmi_jax.errors import UserError

ReadExamples = Callable[[], Mapping[str, Iterable[Example]]]  # split → examples


@dataclasses.dataclass(frozen=True)
class RegisteredSource:
    """A registered data set. version: a text that its author changes whenever the examples change, or ""."""

    name: str
    examples: ReadExamples
    version: str = ""

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """Those of `splits` that there are. UserError if train is asked for and missing, or for an unusable example."""
        given = self.examples()
        read = {
            split: tuple(self._checked(split, given[split])) for split in SPLITS if split in splits and split in given
        }
        if given.keys() - set(SPLITS) or ("train" in splits and not read.get("train")):
            raise UserError(
                f"source {self.name} returns the splits {', '.join(given) or 'none'}: it needs a train split with "
                "examples, and can have valid and test"
            )
        return Corpus(self.name, read)

    def fingerprint(self) -> str:
        """Digest of the version if the source states one, else of all its examples."""
        if self.version:
            return digest("registered", self.name, self.version)
        return digest(
            "registered",
            self.name,
            *(
                # As of other sources, the place does not count.
                (split, repr(dataclasses.replace(example, place="")), *_additions(example))
                for split, examples in self.read().splits.items()
                for example in examples
            ),
        )

    def _checked(self, split: str, examples: Iterable[Example]) -> Iterator[Example]:
        seen: set[str] = set()
        for example in examples:
            if not example.id.startswith(f"{self.name}/{split}/") or example.id in seen:
                raise UserError(
                    f"source {self.name}: id {example.id!r} in split {split}: give every example a unique id that "
                    f"begins with {self.name}/{split}/"
                )
            if not example.input.strip() or not example.label.strip():
                raise UserError(f"source {self.name}: input or label of {example.id} is blank: leave the example out")
            _check_token_weights(example, f"source {self.name}: token_weights of {example.id}")
            seen.add(example.id)
            yield dataclasses.replace(example, place=example.place or f"source {self.name}")


def _check_token_weights(example: Example, place: str) -> None:
    if example.token_weights and len(example.token_weights) != len(example.rationales):
        raise UserError(f"{place}: {len(example.token_weights)} for {len(example.rationales)} rationales; give as many")
    for spans, (text, _) in zip(example.spans, example.rationales, strict=True):
        parse_spans([list(span) for span in spans], text, place)


def _additions(example: Example) -> Iterator[object]:
    """What identifies an example beside its repr."""
    if example.answer_text:
        yield ("answer_text", example.answer_text)
    if example.choices:
        yield ("choices", *example.choices)
    if example.cluster:
        yield ("cluster", example.cluster)
    if example.token_weights:
        yield ("token_weights", *example.token_weights)
    yield from example.counterfactuals


SOURCES: dict[str, RegisteredSource] = {}


def register_source(name: str, examples: ReadExamples, *, version: str = "") -> None:
    """Make a data set available as config.data.dataset=name, alone or in a mixture.

    Args:
      name: letters, digits, "_" and "-". Registering it again replaces the earlier source.
      examples: returns {split: examples}, the same at every call and on every host. The id of an example begins with
        "{name}/{split}/".
      version: identifies the examples in the cache of prepared tokens; "": they are identified by reading all of them.

    Raises:
      UserError: the name has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"source {name!r}: a name consists of letters, digits, _ and -")
    SOURCES[name] = RegisteredSource(name, examples, version)
