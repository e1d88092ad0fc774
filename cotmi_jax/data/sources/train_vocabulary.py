"""Trains the SentencePiece vocabulary of the arithmetic data.

    python -m cotmi_jax.data.sources.train_vocabulary [--output=PATH]

The result is committed in this folder; run the command again after a change of the templates.
"""

import io
import pathlib
import re
import string

import sentencepiece
from absl import app, flags

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic

_MOST_PIECES = 512  # The text gives fewer; a model can have more embeddings than the vocabulary has pieces.
_SPACE = "\u2581"  # SentencePiece's character for a space.
_FIXED_PIECES = tuple(_SPACE + piece for piece in (*(str(n) for n in range(100)), *"()+-*/="))


def train_vocabulary() -> bytes:
    """The serialized unigram model (pad 0, eos 1, unk 2, no bos), trained on the training split of seed 0.

    After a space, the integers 0..99, operators and parentheses are one piece each. Training uses one thread and stores
    no paths, so that one release of sentencepiece always gives the same bytes.
    """
    examples = make_arithmetic(0, num_train=2000, num_valid=0, num_test=0).splits["train"]
    texts = [text for example in examples for text in _texts(example)]
    # The trainer makes a word a piece only if it occurs in two forms ("shop" and "shop,") between spaces.
    texts += [f"{word}," for word in sorted({word for text in texts for word in re.findall("[A-Za-z]+", text)})]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=_MOST_PIECES,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        user_defined_symbols=list(_FIXED_PIECES),
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def _texts(example: Example) -> tuple[str, ...]:
    """Everything of an example that a model reads or writes."""
    return (f"predict: {example.input}", f"explain: {example.input}", example.label, example.rationale)


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}: give the file as --output=PATH")
    output = pathlib.Path(flags.FLAGS.output)
    if not output.parent.is_dir():
        raise app.UsageError(f"--output={output}: no folder {output.parent}")
    output.write_bytes(train_vocabulary())


if __name__ == "__main__":
    # Not at module level: absl's flags are global, and importers of this module may define --output too.
    flags.DEFINE_string("output", str(VOCABULARY_PATH), "Where to write the model.")
    app.run(main)
