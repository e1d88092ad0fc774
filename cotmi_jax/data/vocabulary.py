"""Vocabularies in T5's convention: pad 0, eos 1; `</s>` in a text is encoded as eos."""

import re
from collections.abc import Iterable, Sequence

from cotmi_jax.data.codecs import (
    BYTES_CLASS,
    EOS_ID,
    PAD_ID,
    SPIECE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    ByteCodec,
    Codec,
    SentencePieceCodec,
    TokenizerCodec,
)
from cotmi_jax.data.example import EOS_TEXT
from cotmi_jax.data.origins import T5_VOCABULARY
from cotmi_jax.data.sources.rows import read_bytes, shown_path
from cotmi_jax.errors import UserError, shown
from cotmi_jax.files import Path, read_json, user_error_on_failure

__all__ = [
    "BYTES",
    "EOS_ID",
    "FILES",
    "PAD_ID",
    "Vocabulary",
    "check_fits",
    "find_tokenizer",
    "has_tokenizer",
    "is_own",
    "parse_own",
]

BYTES = "bytes"  # the value of config.data.vocabulary for the vocabulary without a file
# In a folder the first of these that is there is used; a tokenizer_config.json only if it names the tokenizer of bytes.
FILES = (SPIECE, TOKENIZER, TOKENIZER_CONFIG)
_OWN = re.compile(r"own:([1-9]\d{0,6})")
_REMEDY = "give the tokenizer of a Hugging Face checkpoint"


class Vocabulary:
    """Text ↔ token ids through a SentencePiece model, a tokenizer.json, or the bytes of UTF-8.

    path: the file, of which a run keeps a copy in its workdir.
    size: number of ids; the vocab_size of published checkpoints is larger, since it is padded.
    unk_id: the id of what the vocabulary lacks; None: it lacks nothing.
    fingerprint: a hash of all that the ids depend on.
    """

    def __init__(self, path: Path):
        """path: a .model file, a tokenizer.json, the tokenizer_config.json of a ByT5, or `bytes`.

        Raises UserError for a file that is missing or unusable.
        """
        self.path = path
        self._codec = _open(path)
        self.size, self.unk_id, self.fingerprint = self._codec.size, self._codec.unk_id, self._codec.fingerprint

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without a final eos. `</s>` splits a text and becomes the eos id."""
        pieces = [text.split(EOS_TEXT) for text in texts]
        if self._codec.strips:
            pieces = [_stripped(each) if len(each) > 1 else each for each in pieces]
        encoded = iter(self._codec.encode([sentence for each in pieces for sentence in each]))
        result = []
        for each in pieces:
            ids = list(next(encoded))
            for _ in each[1:]:
                ids += [EOS_ID, *next(encoded)]
            result.append(ids)
        return result

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The characters [start, end) of its text that each token of `encode` stands for."""
        pieces = [text.split(EOS_TEXT) for text in texts]
        read = [_stripped(each) if self._codec.strips and len(each) > 1 else each for each in pieces]
        found = iter(self._codec.spans([sentence for each in read for sentence in each]))
        result = []
        for of_text, read_of_text in zip(pieces, read, strict=True):
            spans: list[tuple[int, int]] = []
            begin = 0
            for piece, sentence in zip(of_text, read_of_text, strict=True):
                if begin:
                    spans.append((begin - len(EOS_TEXT), begin))
                lead = begin + piece.index(sentence)
                spans += [(lead + start, lead + end) for start, end in next(found)]
                begin += len(piece) + len(EOS_TEXT)
            result.append(spans)
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first eos; padding and ids beyond the vocabulary are ignored."""
        kept = []
        for token in ids:
            if token == EOS_ID:
                break
            if PAD_ID != token < self.size:
                kept.append(int(token))
        return self._codec.decode(kept)

    def files(self) -> dict[str, bytes]:
        """The files, by name, from which the vocabulary of a folder is read."""
        return self._codec.files()

    def exported(self, vocab_size: int, model_type: str) -> dict[str, bytes]:
        """These files and those from which transformers' AutoTokenizer reads the vocabulary.

        vocab_size: the number of embeddings. model_type: that of the network; for a umt5 a tokenizer.json is needed.
        """
        return self._codec.exported(vocab_size, model_type == "umt5")


def is_own(vocabulary: str) -> bool:
    """Whether a value of config.data.vocabulary asks for a trained vocabulary."""
    return vocabulary.startswith("own:")


def parse_own(vocabulary: str) -> int:
    """The number of pieces in "own:PIECES". Raises UserError for another form."""
    match = _OWN.fullmatch(vocabulary)
    if match is None:
        raise UserError(
            f"config.data.vocabulary is {shown(vocabulary)}: give own: and a number of pieces, such as own:4000"
        )
    return int(match[1])


def has_tokenizer(directory: Path) -> bool:
    """Whether a folder has a vocabulary's file."""
    return _tokenizer_in(directory) is not None


def find_tokenizer(directory: Path) -> Path:
    """The vocabulary's file in a folder: a workdir, or a Hugging Face checkpoint.

    Raises UserError if the folder has none.
    """
    with user_error_on_failure(f"cannot read {directory}"):
        file = _tokenizer_in(directory)
    if file is None:
        raise UserError(
            f"no vocabulary in {directory}: it has no {SPIECE}, no {TOKENIZER}, and no {TOKENIZER_CONFIG} of a "
            f"{BYTES_CLASS}: restore the file, or set config.data.vocabulary (--vocabulary)"
        )
    return file


def _tokenizer_in(directory: Path) -> Path | None:
    for name in FILES:
        file = directory / name
        if file.is_file() and (
            name != TOKENIZER_CONFIG or read_json(file, _REMEDY).get("tokenizer_class") == BYTES_CLASS
        ):
            return file
    return None


def check_fits(vocabulary: Vocabulary, *, vocab_size: int, pad_id: int, eos_id: int) -> None:
    """Raises UserError if a model has fewer embeddings than the vocabulary has pieces, or other special ids."""
    if (pad_id, eos_id) != (PAD_ID, EOS_ID):
        raise UserError(
            f"the model has pad {pad_id} and eos {eos_id}, vocabulary {vocabulary.path} has {PAD_ID} and {EOS_ID}: "
            "use the model that belongs to the vocabulary"
        )
    if vocabulary.size > vocab_size:
        raise UserError(
            f"vocabulary {vocabulary.path} has {vocabulary.size} pieces but the model has {vocab_size} embeddings: "
            "use the vocabulary the model was trained with, or raise config.model.vocab_size"
        )


def _stripped(sentences: list[str]) -> list[str]:
    """The sentences of a text without the whitespace beside the eos between them."""
    first, *inner, last = sentences
    return [first.rstrip(), *(sentence.strip() for sentence in inner), last.lstrip()]


def _open(path: Path) -> Codec:
    if str(path) == BYTES and not path.exists():
        return ByteCodec()
    if not path.is_file():
        raise UserError(
            f"no vocabulary at {shown_path(path)}: set config.data.vocabulary to a SentencePiece model file "
            f"(that of T5: {T5_VOCABULARY}), a {TOKENIZER}, or {BYTES}"
        )
    if path.name == TOKENIZER_CONFIG:
        if not _is_bytes(path):
            raise UserError(f"{path} names no tokenizer of bytes ({BYTES_CLASS}): give the {TOKENIZER} beside it")
        return ByteCodec()
    if path.name.endswith(".json"):
        return TokenizerCodec(path, read_bytes(path), _special_tokens(path.parent))
    return SentencePieceCodec(path, read_bytes(path))


def _is_bytes(path: Path) -> bool:
    return read_json(path, _REMEDY).get("tokenizer_class") == BYTES_CLASS


def _special_tokens(directory: Path) -> dict[str, str]:
    """The texts of pad and eos that the tokenizer_config.json of a folder states, if it has one, in either form."""
    path, found = directory / TOKENIZER_CONFIG, {}
    for name, token in read_json(path, _REMEDY).items() if path.is_file() else ():
        text = token.get("content") if isinstance(token, dict) else token
        if name in ("pad_token", "eos_token") and isinstance(text, str):
            found[name.removesuffix("_token")] = text
    return found
