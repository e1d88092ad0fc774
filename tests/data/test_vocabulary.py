"""Vocabularies of bytes and of a tokenizer.json, the folders they are found in, and their files elsewhere."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import FILES, Vocabulary, find_tokenizer, has_tokenizer
from cotmi_jax.errors import UserError

tokenizers = pytest.importorskip("tokenizers")
BYTES = Vocabulary(Path("bytes"))
TEXTS = ["predict: a {b} ~ 東 ï\n", "", "  7 + 5  ", "a premise.</s> and more </s>"]


def write_tokenizer(directory: Path, pad: str = "<pad>", eos: str = "</s>", **template: Any) -> Path:
    """A tokenizer.json of words, in which pad, eos and unk have the ids 0, 1 and 2."""
    words = {pad: 0, eos: 1, "<unk>": 2, "7": 3, "+": 4, "apples": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([pad, eos])
    tokenizer.enable_truncation(2)  # which a published file can have set, as well as padding
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def test_bytes_are_shifted_by_three() -> None:
    assert BYTES.size == 259 and BYTES.unk_id is None
    ids = BYTES.encode(["a東"])[0]
    assert ids == [byte + 3 for byte in "a東".encode()]
    for text in TEXTS[:3]:
        assert BYTES.decode(BYTES.encode([text])[0]) == text
    assert BYTES.decode([ids[0], 0, 2, 383, ids[1], ids[0], 1, ids[0]]) == "aa"  # a sentinel, half a letter, after eos


def test_bytes_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.ByT5Tokenizer()
    assert [[*ids, 1] for ids in BYTES.encode(TEXTS[:3])] == tokenizer(TEXTS[:3])["input_ids"]
    assert BYTES.encode(TEXTS[3:])[0] == tokenizer(TEXTS[3])["input_ids"]  # it adds no second eos
    ids = np.random.default_rng(0).integers(2, 384, 300)
    assert BYTES.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_file_gives_its_ids(tmp_path: Path) -> None:
    vocabulary = Vocabulary(write_tokenizer(tmp_path))
    assert (vocabulary.size, vocabulary.unk_id) == (6, 2)
    assert vocabulary.encode(["7 + 7 apples </s> pears", ""]) == [[3, 4, 3, 5, 1, 2], []]
    assert vocabulary.decode([0, 3, 4, 2, 5, 99, 1, 3]) == "7 + <unk> apples"
    assert vocabulary.fingerprint != BYTES.fingerprint


def test_special_tokens_can_have_other_names(tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path, pad="[PAD]", eos="[EOS]")
    with pytest.raises(UserError, match=r"tokenizer.json: .* pad 0 and eos 1, here '<pad>' is None and '</s>' is None"):
        Vocabulary(file)
    fields = {"pad_token": "[PAD]", "eos_token": {"content": "[EOS]", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    vocabulary = Vocabulary(file)
    assert vocabulary.encode(["7</s>apples"]) == [[3, 1, 5]]
    written = json.loads(vocabulary.files()["tokenizer_config.json"])
    assert (written["pad_token"], written["eos_token"], written["unk_token"]) == ("[PAD]", "[EOS]", "<unk>")


@pytest.mark.parametrize("kind", ["spiece.model", "tokenizer.json", "tokenizer_config.json"])
def test_a_vocabulary_is_read_from_its_files(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    given = {"spiece.model": VOCABULARY_PATH, "tokenizer_config.json": Path("bytes")}.get(kind)
    vocabulary = Vocabulary(given or write_tokenizer(tmp_path / "a"))
    assert not has_tokenizer(tmp_path)
    with pytest.raises(UserError, match=f"no vocabulary in {tmp_path}: it has no spiece.model, no tokenizer.json"):
        find_tokenizer(tmp_path)
    for name, content in vocabulary.files().items():
        assert name in FILES
        (tmp_path / name).write_bytes(content)
    assert find_tokenizer(tmp_path) == tmp_path / kind
    again = Vocabulary(tmp_path / kind)
    assert (again.fingerprint, again.size) == (vocabulary.fingerprint, vocabulary.size)
    assert again.encode(["7 apples"]) == vocabulary.encode(["7 apples"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"", "is not a tokenizer.json of Hugging Face's tokenizers: "),
        ("tokenizer.json", b"[" * 100_000, "is not a tokenizer.json of Hugging Face's tokenizers: "),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}', "unk_id. is missing"),
        ("tokenizer_config.json", b'{"tokenizer_class": "BertTokenizer"}', "names no tokenizer of bytes"),
        ("tokenizer_config.json", b"{", "line 1: not JSON"),
    ],
)
def test_other_files_are_refused_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        Vocabulary(tmp_path / name)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def train_model(**settings: Any) -> bytes:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), draw.integers(1, 7))) for _ in range(60)]
    texts = [" ".join(draw.choice(words, 8)) + f" ({draw.integers(99)})." for _ in range(300)]
    model = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **(special | settings))
    return model.getvalue()


@pytest.mark.parametrize(
    "settings",
    [dict(bos_id=2, unk_id=3, vocab_size=80), dict(bos_id=-1, unk_id=2, byte_fallback=True, vocab_size=330)],
    ids=["bos before unk", "byte fallback"],
)
def test_models_that_a_t5_tokenizer_cannot_hold_are_exported_as_tokenizer_json(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """As of UMT5 and mT5: transformers then gives the ids and texts that SentencePiece gives."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "my.model").write_bytes(train_model(**settings))
    vocabulary = Vocabulary(tmp_path / "my.model")
    for name, content in vocabulary.exported(512, "umt5").items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "umt5"}')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = ["abc  de (12).", " fed\tcab ", "", "jihg ½ a b"]
    ids = vocabulary.encode(texts)
    assert [[*each, 1] for each in ids] == tokenizer(texts)["input_ids"]
    known = [each for each in ids if vocabulary.unk_id not in each]
    assert [vocabulary.decode(each) for each in known] == tokenizer.batch_decode(known, skip_special_tokens=True)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, vocabulary.unk_id)
