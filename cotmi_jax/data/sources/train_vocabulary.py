"""Trains the SentencePiece vocabulary of a generated data set.

    python -m cotmi_jax.data.sources.train_vocabulary --dataset=deduction [--output=PATH]

The results are committed in this folder; run the command again after a change of the templates.
"""

import pathlib
import re
import string

from absl import app, flags

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import make_arithmetic
from cotmi_jax.data.sources.deduction import make_deduction
from cotmi_jax.data.sources.deduction_theories import FIRST_SYLLABLES, LABELS, OPPOSITE, SECOND_SYLLABLES
from cotmi_jax.data.sources.generated import VOCABULARIES
from cotmi_jax.data.vocabulary_training import train_unigram

_MOST_PIECES = 512  # The text gives fewer; a model can have more embeddings than the vocabulary has pieces.
_NUM_TRAIN = 2000
_SPACE = "\u2581"  # SentencePiece's character for a space.
_MAKE = {"arithmetic": make_arithmetic, "deduction": make_deduction}
# Integers, operators and parentheses; properties, labels and the syllables of names, of which the second follow no
# space.
_FIXED_PIECES = {
    "arithmetic": [_SPACE + piece for piece in (*(str(n) for n in range(100)), *"()+-*/=")],
    "deduction": [*(_SPACE + word for word in (*OPPOSITE, *LABELS, *FIRST_SYLLABLES)), *SECOND_SYLLABLES],
}


def train_vocabulary(dataset: str = "arithmetic") -> bytes:
    """The serialized model, trained on the training split of seed 0, in which _FIXED_PIECES are one piece each."""
    examples = _MAKE[dataset](0, num_train=_NUM_TRAIN, num_valid=0, num_test=0).splits["train"]
    texts = [text for example in examples for text in _texts(example)]
    # The trainer makes a word a piece only if it occurs in two forms ("shop" and "shop,") between spaces.
    texts += [f"{word}," for word in sorted({word for text in texts for word in re.findall("[A-Za-z]+", text)})]
    characters = string.ascii_letters + string.digits + string.punctuation
    return train_unigram(texts, _MOST_PIECES, fixed_pieces=_FIXED_PIECES[dataset], required_characters=characters)


def _texts(example: Example) -> tuple[str, ...]:
    """Everything of an example that a model reads or writes."""
    return (f"predict: {example.input}", f"explain: {example.input}", example.label, example.rationale)


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}: give the file as --output=PATH")
    dataset = flags.FLAGS.dataset
    output = pathlib.Path(flags.FLAGS.output or VOCABULARIES[dataset])
    if not output.parent.is_dir():
        raise app.UsageError(f"--output={output}: no folder {output.parent}")
    output.write_bytes(train_vocabulary(dataset))


if __name__ == "__main__":
    # Not at module level: absl's flags are global, and importers of this module may define --output too.
    flags.DEFINE_enum("dataset", "arithmetic", sorted(VOCABULARIES), "The generated data set.")
    flags.DEFINE_string("output", None, "Where to write the model; default: the file in the package.")
    app.run(main)
