"""The three ways from text to token ids: a SentencePiece model, a tokenizer.json, and the bytes of UTF-8 (ByT5).

All follow T5's convention: pad 0, eos 1. A codec encodes sentences without a final eos and decodes ids without special
ones; `Vocabulary` adds what they share.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

import sentencepiece

from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import Path, parse_json

PAD_ID = 0
EOS_ID = 1
SPIECE, TOKENIZER, TOKENIZER_CONFIG = "spiece.model", "tokenizer.json", "tokenizer_config.json"
BYTES_CLASS = "ByT5Tokenizer"  # transformers' tokenizer for bytes, which tokenizer_config.json names
_MAX_GROWTH = 10_000  # of a text by the steps of a tokenizer.json; published ones have 18
_SENTINELS = 100  # <extra_id_0> … of T5's pretraining, with the ids after the vocabulary's pieces


class Codec(Protocol):
    """Sentences ↔ token ids.

    size: number of ids. unk_id: the id of what the vocabulary lacks; None: it lacks nothing. fingerprint: a hash of all
    that the ids depend on. strips: whether whitespace beside an eos within a text is dropped.
    """

    size: int
    unk_id: int | None
    fingerprint: str
    strips: bool

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Ids of each sentence, without eos."""

    def spans(self, sentences: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The characters [start, end) of its sentence that each token of `encode` stands for."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids below size, without pad and eos."""

    def files(self) -> dict[str, bytes]:
        """The files, by name, from which the codec of a folder is read."""

    def exported(self, vocab_size: int, fast: bool) -> dict[str, bytes]:
        """`files`, and those that transformers' AutoTokenizer reads; fast: it reads nothing but a tokenizer.json."""


class SentencePieceCodec:
    """A SentencePiece model (Kudo and Richardson 2018)."""

    strips = False  # it drops whitespace at the ends of a sentence itself

    def __init__(self, path: Path, model: bytes):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, UnicodeDecodeError) as error:  # the second where the message quotes a broken piece
            raise UserError(f"{path} is not a SentencePiece model") from error
        if not model:  # an empty file raises no error in the library
            raise UserError(f"{path} is not a SentencePiece model: it is empty")
        ids = (self._processor.pad_id(), self._processor.eos_id())
        if ids != (PAD_ID, EOS_ID):
            raise UserError(f"{path}: a T5 vocabulary has pad 0 and eos 1, this one has pad {ids[0]} and eos {ids[1]}")
        self._path, self._model = path, model
        self.size: int = self._processor.get_piece_size()
        unk_id: int = self._processor.unk_id()
        self.unk_id = unk_id if unk_id >= 0 else None
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(sentences))

    def spans(self, sentences: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [each["offsets"] for each in self._processor.encode(list(sentences), return_type="offset_mapping")]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(list(ids))

    def _has_bytes(self) -> bool:
        return any(self._processor.is_byte(token) for token in range(self.size))

    def files(self) -> dict[str, bytes]:
        return {SPIECE: self._model}

    def exported(self, vocab_size: int, fast: bool) -> dict[str, bytes]:
        if fast or self._processor.id_to_piece(2) != "<unk>" or self._has_bytes():
            pad, eos = (self._processor.id_to_piece(token) for token in (PAD_ID, EOS_ID))
            unk = None if self.unk_id is None else self._processor.id_to_piece(self.unk_id)
            tokenizer = tokenizer_json(self._path, self._model)
            return {SPIECE: self._model, TOKENIZER: tokenizer, TOKENIZER_CONFIG: _fast_fields(pad, eos, unk)}
        # T5Tokenizer splits at whitespace first: with a vocabulary normalized in another way than T5's (nmt_nfkc), ids
        # agree only for text whose whitespace is single spaces.
        fields = {
            "tokenizer_class": "T5Tokenizer",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "extra_ids": _SENTINELS if self.size + _SENTINELS <= vocab_size else 0,
        }
        return {SPIECE: self._model, TOKENIZER_CONFIG: _to_json(fields)}


class TokenizerCodec:
    """A tokenizer.json of Hugging Face's tokenizers, which transformers' fast tokenizers read as well."""

    strips = False

    def __init__(self, path: Path, content: bytes, special: dict[str, str]):
        """special: the texts of pad and eos where they are not T5's."""
        from tokenizers import Tokenizer  # only for such vocabularies

        try:
            self._tokenizer = Tokenizer.from_buffer(content)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            _check_growth(self._tokenizer, path)
            # Without an unk it would fail at the first character that it lacks.
            self._tokenizer.encode("\U0010fffd", add_special_tokens=False)
        except UserError:
            raise
        except Exception as error:  # the library raises no narrower class
            raise UserError(
                f"{path} is not a tokenizer.json of Hugging Face's tokenizers: {one_line(str(error))}"
            ) from error
        self._special = {"pad": "<pad>", "eos": "</s>"} | special
        ids = tuple(self._tokenizer.token_to_id(self._special[name]) for name in ("pad", "eos"))
        if ids != (PAD_ID, EOS_ID):
            raise UserError(
                f"{path}: a T5 vocabulary has pad 0 and eos 1, here {self._special['pad']!r} is {ids[0]} and "
                f"{self._special['eos']!r} is {ids[1]}"
            )
        self._content = content
        self.size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.unk_id = self._find_unk()
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def _find_unk(self) -> int | None:
        unk = getattr(self._tokenizer.model, "unk_token", None)
        if unk is not None:
            return self._tokenizer.token_to_id(unk)
        # No attribute of a unigram model has it.
        found = re.search(rb'(?<!\\)"unk_id"\s*:\s*(\d{1,18})\b', self._content)
        return None if found is None else int(found[1])

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)]

    def spans(self, sentences: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [found.offsets for found in self._tokenizer.encode_batch(list(sentences), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def files(self) -> dict[str, bytes]:
        unk = None if self.unk_id is None else self._tokenizer.id_to_token(self.unk_id)
        fields = _fast_fields(self._special["pad"], self._special["eos"], unk)
        return {TOKENIZER: self._content, TOKENIZER_CONFIG: fields}

    def exported(self, vocab_size: int, fast: bool) -> dict[str, bytes]:
        return self.files()


def _check_growth(tokenizer: Any, path: Path) -> None:
    """Refuse a tokenizer.json whose steps could turn a character into gigabytes: each may multiply a text's length."""
    for part in filter(None, (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)):
        growth = _growth(parse_json(part.__getstate__()))
        if growth > _MAX_GROWTH:
            raise UserError(
                f"{path}: refused, its steps can make a text {growth:.1g} times as long, at most {_MAX_GROWTH} are "
                "allowed: take the tokenizer from a source that you trust"
            )


def _growth(step: dict[str, Any]) -> float:
    """The factor by which a step of a tokenizer can multiply the length of a text."""
    match step.get("type"):
        case "Sequence":
            return math.prod(_growth(each) for steps in step.values() if isinstance(steps, list) for each in steps)
        case "Replace":
            return float(max(1, len(step["content"])))
        case "Precompiled" | "NFC" | "NFD" | "NFKC" | "NFKD" | "ByteLevel":
            return 18.0  # of U+FDFA in NFKC, the most in Unicode
    return 1.0


class ByteCodec:
    """The bytes of UTF-8, each as its value + 3 (Xue et al. 2022, ByT5); ids from 259 on are sentinels."""

    OFFSET = 3  # ids of pad, eos and unk, of which the last is never used
    strips = True  # as transformers' ByT5Tokenizer does
    size = OFFSET + 256
    unk_id: int | None = None
    fingerprint = "utf-8 bytes + 3"

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        return [[byte + self.OFFSET for byte in sentence.encode("utf-8", "surrogatepass")] for sentence in sentences]

    def spans(self, sentences: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [
            [(index, index + 1) for index, character in enumerate(sentence) for _ in self.encode([character])[0]]
            for sentence in sentences
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token - self.OFFSET for token in ids if token >= self.OFFSET).decode("utf-8", "ignore")

    def files(self) -> dict[str, bytes]:
        return self.exported(vocab_size=384, fast=False)

    def exported(self, vocab_size: int, fast: bool) -> dict[str, bytes]:
        sentinels = max(0, min(125, vocab_size - self.size))
        return {TOKENIZER_CONFIG: _to_json({"tokenizer_class": BYTES_CLASS, "extra_ids": sentinels})}


def _to_json(fields: dict[str, object]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _fast_fields(pad: str, eos: str, unk: str | None) -> bytes:
    """tokenizer_config.json for a tokenizer.json."""
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad, "eos_token": eos}
    fields |= {} if unk is None else {"unk_token": unk}
    # Without the clean-up, decoding gives the text that was scored here.
    return _to_json(fields | {"clean_up_tokenization_spaces": False})


def tokenizer_json(path: Path, model: bytes) -> bytes:
    """The tokenizer.json that gives the ids of a SentencePiece unigram model. Raises UserError for another kind."""
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.UNIGRAM:
        raise UserError(f"{path} is no unigram model: only such a SentencePiece model becomes a tokenizer.json")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unigram = tokenizers.models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    tokenizer = tokenizers.Tokenizer(unigram)
    steps: list[normalizers.Normalizer] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    prepend = "always" if normalizer.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend), decoders.Fuse()]
    )
    special = [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS_ID)]
    )
    return str(tokenizer.to_str()).encode()
