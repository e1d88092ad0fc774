"""Vocabularies trained on the train rows of a set: deterministic, complete, cached, and blind to held-out rows."""

import json
from pathlib import Path

import pytest
import runs

from cotmi_jax.config import validate
from cotmi_jax.data.example import Example
from cotmi_jax.data.own_vocabulary import train_own_vocabulary
from cotmi_jax.data.sources.arithmetic import make_arithmetic
from cotmi_jax.data.vocabulary import Vocabulary, parse_own
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import find_vocabulary, make_student

TRAIN = make_arithmetic(0, 60, 0, 0).splits["train"]
ODD = Example("x/train/0", "a premise\nof 2 lines</s>and a hypothesis ½", "tromsø {x}", "Since ~ é, so é.", "other ü")


def vocabulary(path: Path, model: bytes) -> Vocabulary:
    path.write_bytes(model)
    return Vocabulary(path)


def test_every_text_of_train_is_known_and_every_label_survives(tmp_path: Path) -> None:
    own = vocabulary(tmp_path / "own.model", train_own_vocabulary((*TRAIN, ODD), 160))
    assert own.size == 160
    for example in (*TRAIN, ODD):
        for text in (example.input, example.label, example.rationale, example.teacher_label or ""):
            assert own.unk_id not in own.encode([text])[0], text
        for text in (example.label, "predict: ", "explain: ", "So the answer is"):
            assert own.decode(own.encode([text])[0]) == text.strip()
    assert train_own_vocabulary((*TRAIN, ODD), 160) == (tmp_path / "own.model").read_bytes()


def test_labels_of_a_closed_set_are_one_piece(tmp_path: Path) -> None:
    examples = [Example(f"x/train/{n}", f"is {n} odd", ("maybe so", "never")[n % 2], f"{n} is so") for n in range(60)]
    own = vocabulary(tmp_path / "own.model", train_own_vocabulary(tuple(examples), 40))
    assert [len(ids) for ids in own.encode(["never", "maybe so"])] == [1, 2]


def test_frequent_words_are_one_piece(tmp_path: Path) -> None:
    small, large = (vocabulary(tmp_path / "own.model", train_own_vocabulary(TRAIN, pieces)) for pieces in (90, 200))
    texts = [example.input for example in TRAIN]
    lengths = [sum(map(len, each.encode(texts))) for each in (small, large)]
    assert lengths[1] < 0.8 * lengths[0]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (100_000, r"own:100000: 60 train examples give at most \d+ pieces: ask for fewer"),
        (20, "own:20: the texts of 60"),
    ],
)
def test_numbers_of_pieces_that_the_rows_do_not_give(pieces: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_own_vocabulary(TRAIN, pieces)


@pytest.mark.parametrize("value", ["own:", "own:x", "own:0", "own:-5", "own:4000.5", "own:99999999"])
def test_values_of_another_form(value: str) -> None:
    with pytest.raises(UserError, match="own: and a number of pieces, such as own:4000"):
        parse_own(value)
    with pytest.raises(UserError, match="own: and a number"):
        validate(runs.tiny_config({"data.vocabulary": value}))


def rows(path: Path, questions: list[str]) -> None:
    lines = [{"input": text, "label": "yes", "rationale": f"{text} is so"} for text in questions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_finds_it_in_the_cache_and_held_out_rows_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "mine"
    data.mkdir()
    rows(data / "train.jsonl", [f"is {n} more than {n * n}" for n in range(40)])
    rows(data / "valid.jsonl", ["qqq ŵ"] * 3)
    config = runs.tiny_config({"data.dataset": f"jsonl:{data}", "data.cache": str(tmp_path / "cache")})
    config.data.vocabulary = "own:60"
    path = find_vocabulary(config)
    assert "60 pieces trained on 40 train examples" in capsys.readouterr().err
    own = Vocabulary(path)
    assert own.unk_id in own.encode(["ŵ"])[0] and own.unk_id in own.encode(["q"])[0]
    student, _ = make_student(config, own)
    assert student.vocab_size == 128
    config.objective.name = "standard"
    assert find_vocabulary(config) == path and capsys.readouterr().err == ""
    rows(data / "train.jsonl", [f"is {n} more than {n * n * n}" for n in range(40)])
    assert find_vocabulary(config) != path
    config.data.cache = "none"
    assert find_vocabulary(config).is_file()
    config.model.init = "google/t5-v1_1-base"
    with pytest.raises(UserError, match="own:60 needs embeddings of its own"):
        find_vocabulary(config)
