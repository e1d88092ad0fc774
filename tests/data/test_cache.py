"""Tokens are prepared once, completely or not at all, and are found by the identity of their data only."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import runs
from paths import REPOSITORY

from cotmi_jax.data import cache
from cotmi_jax.data import run_data as inputs
from cotmi_jax.data.cache import Prepared, Recipe, key_of, prepare
from cotmi_jax.data.example import Example
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.distributed import AllGather, is_shared

IDENTITY = {"corpus": "made", "vocabulary": "abc", "settings": {"label_type": "gt"}}
SPLITS = dict(make_arithmetic(seed=3, num_train=30, num_valid=6, num_test=0).splits)
SPLITS["valid"] = (dataclasses.replace(SPLITS["valid"][0], choices=("5", "7"), cluster="a"), *SPLITS["valid"][1:])
TRAIN = (dataclasses.replace(SPLITS["train"][0], more=(("Again.", 0.5),), weight=2.0), *SPLITS["train"][1:])


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_TIMEOUT", 20.0)


def tokens_of(examples: Sequence[Example]) -> TokenizedSplit:
    vocabulary = Vocabulary(VOCABULARY_PATH)
    return tokenize_split(examples, vocabulary, objective="dss", label_type="gt", limits=TokenLimits(40, 64, "skip"))


class Maker:
    """A recipe that records its calls."""

    def __init__(self) -> None:
        self.reads, self.tokenized = 0, []

    def read(self) -> tuple[Sequence[Example], Sequence[Example], dict[str, Any]]:
        self.reads += 1
        return TRAIN, SPLITS["valid"], {"notes": ["a note"]}

    def tokenize(self, examples: Sequence[Example], split: str) -> TokenizedSplit:
        self.tokenized.append((split, [example.id for example in examples]))
        return tokens_of(examples)

    def check(self, split: TokenizedSplit, name: str, facts: dict[str, Any]) -> None:
        assert len(split.kept) == {"train": len(TRAIN), "valid": len(SPLITS["valid"])}[name]

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.read, self.tokenize, self.check)


def assert_same_split(actual: TokenizedSplit, expected: TokenizedSplit) -> None:
    for task, tokens in expected.tasks.items():
        found = actual.tasks[task]
        for kind in ("inputs", "targets"):
            np.testing.assert_array_equal(getattr(found, kind).flat, getattr(tokens, kind).flat)
            np.testing.assert_array_equal(getattr(found, kind).offsets, getattr(tokens, kind).offsets)
        for name in ("per_rationale", "truncated_inputs", "truncated_targets"):
            assert getattr(found, name) == getattr(tokens, name)
    for name in ("rationale_offsets", "weights", "kept"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


def assert_complete(prepared: Prepared) -> None:
    assert_same_split(prepared.train, tokens_of(TRAIN))
    assert_same_split(prepared.valid, tokens_of(SPLITS["valid"]))
    assert prepared.valid_examples == SPLITS["valid"]
    assert prepared.facts == {"notes": ["a note"]}


def test_a_cache_that_knows_no_choices_is_prepared_again(tmp_path: Path) -> None:
    """Metrics of training would find none. Such caches have the format 3."""
    with mock.patch.object(cache, "FORMAT", 3):
        prepare(tmp_path, IDENTITY, Maker().recipe)
        (lines,) = tmp_path.rglob("valid.jsonl")
        lines.write_text(lines.read_text().replace('"choices"', '"chosen"'))
    maker = Maker()
    prepared, found = prepare(tmp_path, IDENTITY, maker.recipe)
    assert not found and maker.reads == 1 and prepared.valid_examples[0].choices == ("5", "7")
    assert prepare(tmp_path, IDENTITY, Maker().recipe)[0].valid_examples == SPLITS["valid"]


def test_a_second_run_reads_and_tokenizes_nothing(tmp_path: Path) -> None:
    first, second = Maker(), Maker()
    made, found = prepare(tmp_path / "cache", IDENTITY, first.recipe)
    assert not found and first.reads == 1
    assert_complete(made)
    again, found = prepare(tmp_path / "cache", IDENTITY, second.recipe)
    assert found and (second.reads, second.tokenized) == (0, [])
    assert_complete(again)
    assert again.fingerprint == made.fingerprint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [key_of(IDENTITY)]
    in_memory, found = prepare(None, IDENTITY, Maker().recipe)
    assert not found
    assert_complete(in_memory)


def test_tokens_take_two_bytes_each_and_stay_on_disk(tmp_path: Path) -> None:
    prepared, _ = prepare(tmp_path, IDENTITY, Maker().recipe)
    for tokens in prepared.train.tasks.values():
        for ragged in (tokens.inputs, tokens.targets):
            assert isinstance(ragged.flat, np.memmap) and ragged.flat.dtype == np.uint16
    large = np.array([3, 70_000])
    cache._save(tmp_path / "large.npy", large)
    np.testing.assert_array_equal(np.load(tmp_path / "large.npy"), large)


@pytest.mark.parametrize("changed", ["corpus", "vocabulary", "settings"])
def test_another_identity_is_another_cache(tmp_path: Path, changed: str) -> None:
    prepare(tmp_path, IDENTITY, Maker().recipe)
    other = Maker()
    _, found = prepare(tmp_path, IDENTITY | {changed: "other"}, other.recipe)
    assert not found and other.reads == 1


def test_a_cache_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, IDENTITY, Maker().recipe)
    other = IDENTITY | {"vocabulary": "xyz"}
    (tmp_path / key_of(IDENTITY)).rename(tmp_path / key_of(other))
    with pytest.raises(
        UserError, match=rf"{tmp_path}/\w+ was made with another vocabulary, abc and not xyz: delete it"
    ):
        prepare(tmp_path, other, Maker().recipe)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train.explain.targets.npy", _flip),
        ("train.explain.targets.npy", runs.truncate),
        ("valid.predict.inputs.lengths.npy", _flip),
        ("train.weights.npy", _flip),
        ("train.json", runs.truncate),
        ("valid.jsonl", runs.truncate),
        ("manifest.json", runs.truncate),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_text('{"identity": []}')),
        ("manifest.json", lambda path: path.write_text(200_000 * "[")),
        ("train.json", lambda path: path.write_text("[]")),
        ("train.json", lambda path: (path.unlink(), path.mkdir())),
        ("valid.jsonl", lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))),
        ("train.kept.npy", _flip),
        ("train.counts.npy", Path.unlink),
    ],
)
def test_a_damaged_cache_is_refused(tmp_path: Path, name: str, damage: Any) -> None:
    prepare(tmp_path, IDENTITY, Maker().recipe)
    damage(tmp_path / key_of(IDENTITY) / name)
    with pytest.raises(UserError, match=f"{tmp_path}/{key_of(IDENTITY)}") as caught:
        prepare(tmp_path, IDENTITY, Maker().recipe)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match="file/.*Not a directory; set config.data.cache to a writable folder, or to none"
    ):
        prepare(tmp_path / "file" / "cache", IDENTITY, Maker().recipe)


def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    maker = Maker()
    recipe = dataclasses.replace(maker.recipe, read=lambda: (TRAIN, SPLITS["valid"], {"notes": object()}))
    with pytest.raises(TypeError):  # while it writes
        prepare(tmp_path, IDENTITY, recipe)
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import sys, time
sys.path.insert(0, {support!r})
from pathlib import Path
from splits import random_split
from cotmi_jax.data import cache
from cotmi_jax.data.example import Example
save, saved = cache._save, []
def wait_after_two(path, numbers):
    save(path, numbers)
    saved.append(path)
    if len(saved) == 2:
        print("saved", flush=True)
        time.sleep(30)
cache._save = wait_after_two
examples = [Example(f"a/train/{{n}}", "How many?", "3", "Three.") for n in range(4)]
recipe = cache.Recipe(lambda: (examples, examples, {{}}), lambda some, split: random_split(len(some)), lambda *_: None)
cache.prepare(Path({folder!r}), {identity!r}, recipe)
"""


def test_a_killed_preparation_is_no_cache_and_is_removed(tmp_path: Path) -> None:
    support = str(REPOSITORY / "tests" / "support")
    program = _KILLED.format(support=support, folder=str(tmp_path), identity=IDENTITY)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(f"{key_of(IDENTITY)}.partial-")
    prepared, found = prepare(tmp_path, IDENTITY, Maker().recipe)
    assert not found
    assert_complete(prepared)
    assert [path.name for path in tmp_path.iterdir()] == [key_of(IDENTITY)]


class AllGathers:
    """all_gather for threads in place of the processes of a run."""

    def __init__(self, processes: int):
        self._texts = [""] * processes
        self._barrier = threading.Barrier(processes, timeout=20)

    def of(self, process: int) -> AllGather:
        def all_gather(text: str) -> list[str]:
            self._texts[process] = text
            self._barrier.wait()
            gathered = list(self._texts)
            self._barrier.wait()
            return gathered

        return all_gather


def run_processes(run: Callable[[int, AllGather], Any], processes: int) -> list[Any]:
    """Runs each process in a thread; what each returns, or the UserError that it raises."""
    all_gathers, results = AllGathers(processes), [None] * processes

    def target(process: int) -> None:
        try:
            results[process] = run(process, all_gathers.of(process))
        except UserError as error:
            results[process] = error

    threads = [threading.Thread(target=target, args=(process,)) for process in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_each_process_tokenizes_a_piece(tmp_path: Path) -> None:
    makers = [Maker() for _ in range(3)]

    def run(process: int, _: AllGather) -> Prepared:
        time.sleep(0.1 * (2 - process))
        return prepare(tmp_path, IDENTITY, makers[process].recipe, process=process, processes=3)[0]

    results = run_processes(run, 3)
    pieces = [ids for maker in makers for split, ids in maker.tokenized if split == "train"]
    assert [len(piece) for piece in pieces] == [10, 10, 10]
    assert sum(pieces, []) == [example.id for example in TRAIN]
    assert [split for maker in makers for split, _ in maker.tokenized].count("valid") == 1
    for prepared in results:
        assert_complete(prepared)
    assert [path.name for path in tmp_path.iterdir()] == [key_of(IDENTITY)]


def test_processes_that_share_no_folder_time_out_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_TIMEOUT", 0.3)
    for process in (0, 1):
        with pytest.raises(UserError, match="set config.data.cache to a folder that all hosts share, or to none"):
            prepare(tmp_path / str(process), IDENTITY, Maker().recipe, process=process, processes=2)


def test_processes_detect_whether_they_share_a_folder(tmp_path: Path) -> None:
    def shared(*folders: Path) -> list[bool]:
        return run_processes(lambda process, all_gather: is_shared(folders[process], all_gather), len(folders))

    assert shared(tmp_path / "one", tmp_path / "one", tmp_path / "one") == [True] * 3
    assert shared(tmp_path / "one", tmp_path / "two", tmp_path / "one") == [False] * 3
    assert [*(tmp_path / "one").iterdir(), *(tmp_path / "two").iterdir()] == []  # no file is left
    (tmp_path / "file").write_text("")
    assert shared(tmp_path / "file", tmp_path / "file") == [False] * 2  # and no error


# The cache of a run.


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")])
def test_hosts_divide_the_work_only_if_they_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    lock, tokenized = threading.Lock(), []
    tokenize = inputs.tokenize

    def counting(config: Any, vocabulary: Any, examples: Any, **more: Any) -> Any:
        with lock:
            tokenized.append(len(examples))
        return tokenize(config, vocabulary, examples, **more)

    monkeypatch.setattr(inputs, "tokenize", counting)

    def prepared(process: int, all_gather: AllGather) -> RunData:
        config = runs.tiny_config({"data.cache": str(tmp_path / names[process])})
        return RunData.of(config, Vocabulary(VOCABULARY_PATH), process=process, processes=2, all_gather=all_gather)

    first, second = run_processes(prepared, 2)
    assert sorted(tokenized) == ([10, 10, 500] if names == ("a", "a") else [20, 20, 500, 500])
    assert first.prepared.fingerprint == second.prepared.fingerprint
    assert {place.name for place in tmp_path.iterdir()} == set(names)
    for name in set(names):
        assert len(list((tmp_path / name).iterdir())) == 1


def test_hosts_with_other_data_are_refused(tmp_path: Path) -> None:
    def prepared(process: int, all_gather: AllGather) -> RunData:
        config = runs.tiny_config({"data.cache": str(tmp_path / str(process)), "data.size": 20 + process})
        return RunData.of(config, Vocabulary(VOCABULARY_PATH), process=process, processes=2, all_gather=all_gather)

    for error in run_processes(prepared, 2):
        assert isinstance(error, UserError) and "process 1 has other data" in str(error)


def test_a_temporary_folder_of_a_killed_process_with_the_same_pid_is_removed(tmp_path: Path) -> None:
    """A restarted container reuses the pids of processes that were killed in it."""
    left = tmp_path / f"{key_of(IDENTITY)}.partial-{socket.gethostname()}+{os.getpid()}+00000000"
    left.mkdir()
    elsewhere = left.with_name(left.name.replace(f"{socket.gethostname()}+", f"{socket.gethostname()}-2+"))
    elsewhere.mkdir()
    prepare(tmp_path, IDENTITY, Maker().recipe)
    assert not left.exists() and elsewhere.exists()


def test_a_slower_job_uses_the_cache_that_another_has_written(tmp_path: Path) -> None:
    """Process 0 of two waits for a piece that never appears, since another job has finished in the meantime."""
    maker = Maker()

    def read() -> Any:
        prepare(tmp_path, IDENTITY, Maker().recipe)
        return maker.read()

    prepared, _ = prepare(tmp_path, IDENTITY, dataclasses.replace(maker.recipe, read=read), processes=2)
    assert_complete(prepared)


def test_empty_pieces_are_no_error(tmp_path: Path) -> None:
    """Three examples on four hosts."""
    train = TRAIN[1:4]
    makers = [Maker() for _ in range(4)]
    recipes = [
        dataclasses.replace(
            maker.recipe, read=lambda: (train, SPLITS["valid"], {"notes": []}), check=lambda *arguments: None
        )
        for maker in makers
    ]
    run_processes(lambda process, _: prepare(tmp_path, IDENTITY, recipes[process], process=process, processes=4), 4)
    prepared, found = prepare(tmp_path, IDENTITY, recipes[0])
    assert found
    assert_same_split(prepared.train, tokens_of(train))
