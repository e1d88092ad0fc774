"""Trains SentencePiece vocabularies in T5's convention (pad 0, eos 1, unk 2, no bos)."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece


def train_unigram(
    texts: Iterable[str],
    pieces: int,
    *,
    fixed_pieces: Sequence[str] = (),
    required_characters: str = "",
    normalization: str = "identity",
    hard_limit: bool = False,
    longest: int = 0,
) -> bytes:
    """The serialized unigram model (Kudo 2018) of at most `pieces` pieces, with every character of the texts.

    fixed_pieces: pieces in any case, which are matched before all others. normalization: a rule of SentencePiece.
    hard_limit: RuntimeError where the texts do not give exactly so many pieces. longest: bytes of a text; longer ones
    are left out; 0: 4,192, as SentencePiece. Training uses one thread and stores no paths, so that one release of
    sentencepiece always gives the same bytes.
    """
    # The model stores the options that are given: without this one it is that of earlier versions, byte by byte.
    limits: dict[str, Any] = {"max_sentence_length": longest} if longest else {}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=hard_limit,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name=normalization,
        character_coverage=1.0,
        required_chars=required_characters,
        user_defined_symbols=list(fixed_pieces),
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
        **limits,
    )
    return model.getvalue()
