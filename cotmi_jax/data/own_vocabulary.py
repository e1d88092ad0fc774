"""A vocabulary trained on the train rows of a run's data set: config.data.vocabulary = "own:PIECES".

It is for students with random parameters: T5's 32,000 pieces are most of the parameters of a small student, and most of
them do not occur in a small data set.
"""

import atexit
import dataclasses
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

from ml_collections import ConfigDict

from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.example import EOS_TEXT, Example
from cotmi_jax.data.rationale_weights import UNIFORM
from cotmi_jax.data.run_data import find_cache, loading_of
from cotmi_jax.data.sources.base import digest
from cotmi_jax.data.tasks import ANSWER_MARK, EXPLAIN, PREDICT, PREFIX
from cotmi_jax.data.vocabulary import parse_own
from cotmi_jax.data.vocabulary_training import train_unigram
from cotmi_jax.errors import UserError
from cotmi_jax.files import replace_file, user_error_on_write

_VERSION = 1  # Raise it when the same rows give other texts or another model.
# Texts of inputs and rationales from which pieces are learned, evenly spaced where there are more.
_MOST_TEXTS = 200_000
_LONGEST = 1 << 20  # bytes of a text
_NORMALIZATION = "nmt_nfkc"  # that of T5's vocabulary


def find_own_vocabulary(config: ConfigDict) -> Path:
    """The vocabulary's file in the cache (config.data.cache), trained now if it is not there.

    It depends on the data set and the number of pieces alone, so that runs of other objectives and weights share it.

    Raises:
      UserError: data that cannot be used, or a number of pieces that the train rows do not give.
    """
    pieces, loading = parse_own(config.data.vocabulary), _loading(config)
    cache = find_cache(config)
    if cache is None:
        cache = Path(tempfile.mkdtemp(prefix="cotmi-vocabulary-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    path = cache / "vocabularies" / f"{digest(_VERSION, pieces, corpus_fingerprint(loading))[:32]}.model"
    if not path.exists():
        start, examples = time.monotonic(), load_corpus(loading, ("train",)).corpus.splits["train"]
        model = train_own_vocabulary(examples, pieces)
        with user_error_on_write(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, model)
        seconds = time.monotonic() - start
        print(
            f"vocabulary: {pieces} pieces trained on {len(examples)} train examples in {seconds:.0f} s; now {path}",
            file=sys.stderr,
        )
    return path


def train_own_vocabulary(examples: tuple[Example, ...], pieces: int) -> bytes:
    """The SentencePiece model of exactly `pieces` pieces for the texts of train examples: inputs, labels, rationales.

    Every character of these texts is a piece, so that none of them has an unknown token. The same examples give the
    same bytes with the same release of sentencepiece.

    Raises:
      UserError: the texts have more characters than `pieces`, or too few words for so many pieces.
    """
    labels, texts = _texts(examples)
    characters = {character for text in (*labels, *texts) for character in unicodedata.normalize("NFKC", text)}
    step = -(-len(texts) // _MOST_TEXTS)
    try:
        return train_unigram(
            (*labels, *texts[:: max(step, 1)]),
            pieces,
            hard_limit=True,
            required_characters="".join(sorted(each for each in characters if each.isprintable() and each != " ")),
            normalization=_NORMALIZATION,
            longest=_LONGEST,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), pieces, len(examples))) from error


def _loading(config: ConfigDict) -> Loading:
    return dataclasses.replace(
        loading_of(config), empty_rationale="keep", rationale_weights=UNIFORM, needs_rationales=False
    )


def _texts(examples: tuple[Example, ...]) -> tuple[list[str], list[str]]:
    """The labels of all examples, and the distinct inputs, with alternating prefixes, and rationales."""
    labels = [_line(label) for each in examples for label in (each.label, each.teacher_label) if label]
    texts: list[str] = []
    for row, example in enumerate(examples):
        texts += f"{PREFIX[(PREDICT, EXPLAIN)[row % 2]]}{example.input}".split(EOS_TEXT)
        texts += [rationale for rationale, _ in example.rationales]
    # The trainer makes a word a piece only if it occurs in two forms between spaces.
    forms = sorted({f"{word}," for label in set(labels) for word in re.findall(r"[^\W\d_]+", label)})
    return [ANSWER_MARK, *labels, *forms], list(dict.fromkeys(filter(None, map(_line, texts))))


def _line(text: str) -> str:
    """The text with its line ends as spaces, as the normalization reads them; the trainer would split it there."""
    return " ".join(text.split())


def _explain(error: str, pieces: int, rows: int) -> str:
    if match := re.search(r"too high.*<= (\d+)", error):
        return (
            f"config.data.vocabulary own:{pieces}: {rows} train examples give at most {match[1]} pieces: ask for fewer"
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"config.data.vocabulary own:{pieces}: the texts of {rows} train examples have {match[1]} different "
            "characters and special pieces, which are pieces each: ask for more"
        )
    return f"config.data.vocabulary own:{pieces}: no vocabulary can be trained on {rows} train examples: {error}"
