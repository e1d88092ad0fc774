"""SentencePiece vocabularies in T5's convention: pad 0, eos 1; `</s>` in a text is encoded as eos."""

from collections.abc import Iterable, Sequence

import sentencepiece

from cotmi_jax.data.example import EOS_TEXT
from cotmi_jax.data.sources.rows import read_bytes
from cotmi_jax.errors import UserError
from cotmi_jax.files import Path

PAD_ID = 0
EOS_ID = 1


class Vocabulary:
    """Text ↔ token ids through a SentencePiece model file (Kudo and Richardson 2018).

    path: the model file, of which a run keeps a copy in its workdir.
    size: number of pieces; the vocab_size of published checkpoints is larger, since it is padded.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"no vocabulary at {path}: set config.data.vocabulary to a SentencePiece model file")
        self.path = path
        model = read_bytes(path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model") from error
        if not model:  # an empty file raises no error in the library
            raise UserError(f"{path} is not a SentencePiece model: it is empty")
        ids = (self._processor.pad_id(), self._processor.eos_id())
        if ids != (PAD_ID, EOS_ID):
            raise UserError(f"{path}: a T5 vocabulary has pad 0 and eos 1, this one has pad {ids[0]} and eos {ids[1]}")
        self.size: int = self._processor.get_piece_size()

    @property
    def unk_id(self) -> int | None:
        """The id of every character that no piece holds. None where a vocabulary can encode every text."""
        unk_id = self._processor.unk_id()
        return unk_id if unk_id >= 0 else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without a final eos. `</s>` splits a text and becomes the eos id."""
        sentences = [sentence for text in texts for sentence in text.split(EOS_TEXT)]
        encoded = iter(self._processor.encode(sentences))
        result = []
        for text in texts:
            ids = list(next(encoded))
            for _ in range(text.count(EOS_TEXT)):
                ids += [EOS_ID, *next(encoded)]
            result.append(ids)
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first eos; padding and ids beyond the vocabulary are ignored."""
        kept = []
        for token in ids:
            if token == EOS_ID:
                break
            if PAD_ID != token < self.size:
                kept.append(int(token))
        return self._processor.decode(kept)


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
