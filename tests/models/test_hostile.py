"""Checkpoints of strangers: each attack of benchmarks/attacks.py is refused in one line, in time and memory that the
size of the file bounds, and runs no code. benchmarks/fuzz.py repeats this with more mutants.
"""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import numpy_params, small_config
from paths import REPOSITORY

from benchmarks import attacks
from benchmarks.fuzz import bounded
from cotmi_jax.data.codecs import tokenizer_json
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.files import read_json
from cotmi_jax.models.hf import load_hf, save_hf
from cotmi_jax.models.hf_config import config_from_hf
from cotmi_jax.models.hf_weights import open_weights
from cotmi_jax.models.student import StudentDef
from cotmi_jax.models.torch_bin import open_torch_bin

MUTANTS = 400


def refused(read: Callable[[], object], size: int = 0) -> str:
    """The message of a UserError, which is one short line."""
    with bounded(size), pytest.raises(UserError) as raised:
        read()
    message = str(raised.value)
    assert message.isprintable() and len(message) < 600, message
    return message


def read_all(tensors: contextlib.AbstractContextManager[dict]) -> None:
    with tensors as opened:
        for tensor in opened.values():
            tensor.read()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that loads: the first load traces the network, for which no attack should pay."""
    directory = tmp_path_factory.mktemp("valid") / "student"
    config = small_config()
    save_hf(numpy_params(StudentDef.of(config)), config, directory, vocabulary_file=None)
    load_hf(directory)
    return directory


@pytest.fixture
def checkpoint(valid: Path, tmp_path: Path) -> Path:
    """A copy of the config alone: each test adds weights."""
    directory = tmp_path / "student"
    directory.mkdir()
    (directory / "config.json").write_bytes((valid / "config.json").read_bytes())
    return directory


def load(directory: Path) -> None:
    """Load a checkpoint, and before that its tensors, of which load_hf refuses most without reading them."""
    fields = read_json(directory / "config.json", "restore it")
    config_from_hf(fields, str(directory / "config.json"))
    read_all(open_weights(directory))
    load_hf(directory)


def assert_refused(file: Path, contents: attacks.Attacks) -> dict[str, str]:
    """Messages for a checkpoint with each content as the file."""
    messages = {}
    for name, content in contents:
        file.write_bytes(content)
        print(name)  # pytest shows the last one if the test fails
        messages[name] = refused(lambda: load(file.parent), len(content))
        assert str(file.parent) in messages[name]
    return messages


def test_no_pickle_runs_code(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    messages = assert_refused(checkpoint / "pytorch_model.bin", attacks.gadgets(marker))
    assert not marker.exists()
    assert len(messages) > 100
    assert not [name for name, message in messages.items() if "malicious" not in message]


def test_pickle_bombs(checkpoint: Path) -> None:
    messages = assert_refused(checkpoint / "pytorch_model.bin", attacks.pickle_bombs())
    assert not [message for message in messages.values() if "corrupt" in message]
    assert "index 268435456 of a pickle of " in messages["memo index 2^28"]


def test_archives(checkpoint: Path) -> None:
    assert_refused(checkpoint / "pytorch_model.bin", attacks.archives())


def test_safetensors(checkpoint: Path) -> None:
    messages = assert_refused(checkpoint / "model.safetensors", attacks.safetensors_files())
    assert "given twice" in messages["two of a name"]  # else readers differ in the one that they take
    assert "bytes, more than" in messages["30,000 tensors"]


def test_indices(checkpoint: Path) -> None:
    assert_refused(checkpoint / "model.safetensors.index.json", attacks.indices())


def test_configs(valid: Path, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes((valid / "model.safetensors").read_bytes())
    fields = json.loads((checkpoint / "config.json").read_text())
    assert_refused(checkpoint / "config.json", attacks.configs(fields))


def test_tokenizers(tmp_path: Path) -> None:
    source = REPOSITORY / "cotmi_jax" / "data" / "sources" / "arithmetic.spiece.model"
    good, file = tokenizer_json(source, source.read_bytes()), tmp_path / "tokenizer.json"
    file.write_bytes(good)
    assert Vocabulary(file).size == 430
    draw = random.Random(0)
    for name, content in attacks.tokenizers(json.loads(good)):
        file.write_bytes(content)
        print(name)
        assert str(file) in refused(lambda: Vocabulary(file), len(content))
    vocabulary = tmp_path / "spiece.model"
    for path, content in ((file, good), (vocabulary, source.read_bytes())):
        for _ in range(MUTANTS):
            path.write_bytes(attacks.mutant(content, draw))
            with contextlib.suppress(UserError), bounded(len(content)):
                damaged = Vocabulary(path)
                damaged.decode([token for each in damaged.encode(["ab 12", "é東\U0010fffd"]) for token in each])


@pytest.mark.parametrize("place", attacks.PLACES)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
def test_what_is_no_file(name: str, place: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    attacks.PLACES[place](checkpoint / name)
    assert str(checkpoint) in refused(lambda: load_hf(checkpoint))


@pytest.mark.parametrize("name", [5_000 * "a", "a\0b", "\ud800", "\n\x1b[2J", ""])
def test_names_that_no_checkpoint_has(name: str) -> None:
    refused(lambda: load_hf(name))


def test_mutants_load_or_are_refused(valid: Path, checkpoint: Path) -> None:
    draw = random.Random(0)
    weights = safetensors.numpy.save({"shared.weight": np.ones((2, 3), "f"), "b": np.ones(2, np.float16)})
    pickled, index = attacks.state_dict(), json.dumps({"weight_map": {"a": "model.safetensors", "b": "model.bin"}})
    archive, config = attacks.torch_file(pickled), (valid / "config.json").read_bytes()
    cases: list[tuple[str, bytes, Callable[[Path], object]]] = [
        ("pytorch_model.bin", archive, lambda file: read_all(open_torch_bin(file))),
        ("pickle", pickled, lambda file: read_all(open_torch_bin(file))),
        ("model.safetensors", weights, lambda file: read_all(open_weights(file.parent))),
        ("model.safetensors.index.json", index.encode(), lambda file: read_all(open_weights(file.parent))),
        ("config.json", config, lambda file: config_from_hf(read_json(file, "restore it"), str(file))),
    ]
    for name, content, read in cases:
        file, outcomes = checkpoint / name, [0, 0]
        for _ in range(MUTANTS):
            damaged = attacks.mutant(content, draw)
            file.write_bytes(attacks.torch_file(damaged) if name == "pickle" else damaged)
            try:
                with bounded(len(damaged)):
                    read(file)
                outcomes[0] += 1
            except UserError as error:
                assert str(error).isprintable() and len(str(error)) < 600
                outcomes[1] += 1
        file.unlink()
        assert outcomes[1] > MUTANTS / 3, (name, outcomes)
