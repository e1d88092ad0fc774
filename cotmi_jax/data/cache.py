"""Tokens prepared once: a folder of plain arrays for each content, vocabulary and settings, complete or not there.

    {folder}/{key}/manifest.json                      what it was made of, and a checksum
    {folder}/{key}/{split}.json                       counts of a split
    {folder}/{key}/{split}.{task}.{inputs,targets}.npy, ….lengths.npy, {split}.{counts,weights,kept}.npy
    {folder}/{key}/valid.jsonl                        the examples that are scored

A preparation is written beside its place and moved there whole, so that a killed one leaves nothing that could be taken
for a cache. With several processes, which then share the folder, each tokenizes its part of train; the first of them
puts the parts together.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotmi_jax.data.example import Example
from cotmi_jax.data.tokens import Ragged, TokenizedSplit, TokenizedTask, offsets_of
from cotmi_jax.errors import UserError

FORMAT = 1  # of the files; another one is another cache
_POLL = 0.2  # seconds between looks at what other processes have done
_PATIENCE = 600.0  # seconds without any news from them

Identity = Mapping[str, Any]  # everything the tokens depend on, ready for JSON


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run needs of its data: tokens, the examples that are scored, and facts about the corpus (JSON)."""

    train: TokenizedSplit
    valid: TokenizedSplit
    valid_examples: tuple[Example, ...]
    facts: dict[str, Any]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make what is not there yet: read the examples, and tokenize some of them."""

    read: Callable[[], tuple[Sequence[Example], Sequence[Example], dict[str, Any]]]  # train, valid, facts
    tokenize: Callable[[Sequence[Example], str], TokenizedSplit]  # of a split


def fingerprint_of(train: TokenizedSplit, valid: TokenizedSplit) -> str:
    """By which a resumed run, or a reader of a cache, notices other data: valid too, since it chooses the best."""
    return f"{train.fingerprint()}-{valid.fingerprint()}"


def key_of(identity: Identity) -> str:
    """Name of the folder of a cache."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **identity}, sort_keys=True).encode()).hexdigest()[:32]


def prepare(
    folder: Path | None, identity: Identity, recipe: Recipe, *, process: int = 0, processes: int = 1
) -> tuple[Prepared, bool]:
    """The prepared data and whether it was there already; a folder of None keeps it in memory.

    Raises:
      UserError: the folder cannot be written or read or is damaged, or other processes do not do their part.
    """
    if folder is None:
        train, valid, facts = recipe.read()
        tokens = recipe.tokenize(train, "train"), recipe.tokenize(valid, "valid")
        return Prepared(*tokens, tuple(valid), facts, fingerprint_of(*tokens)), False
    place = folder / key_of(identity)
    found = (place / "manifest.json").exists()
    try:
        if not found:
            _make(place, identity, recipe, process, processes)
        return _open(place, identity), found
    except OSError as error:
        raise UserError(
            f"{error.filename or place}: {error.strerror}; set config.data.cache to a folder to write in, or none"
        ) from error


def _make(place: Path, identity: Identity, recipe: Recipe, process: int, processes: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place)
    train, valid, facts = recipe.read()
    begin, end = (len(train) * n // processes for n in (process, process + 1))
    share = recipe.tokenize(train[begin:end], "train")
    if processes > 1:
        parts = [place.parent / f"{place.name}.part-{n}-of-{processes}" for n in range(processes)]
        with _whole(parts[process]) as part:
            _write_split(part, "train", share)
        if process:
            _wait(place / "manifest.json", process, processes)
            return
        for number, part in enumerate(parts):
            _wait(part / "train.json", number, processes)
        share = TokenizedSplit.join([_read_split(part, "train") for part in parts])
    held_out = recipe.tokenize(valid, "valid")
    with _whole(place) as partial:
        _write_split(partial, "train", share)
        _write_split(partial, "valid", held_out)
        lines = (json.dumps(dataclasses.asdict(example)) + "\n" for example in valid)
        (partial / "valid.jsonl").write_text("".join(lines))
        manifest = {"identity": identity, "facts": facts, "fingerprint": fingerprint_of(share, held_out)}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    if processes > 1:
        for part in parts:
            shutil.rmtree(part)


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `place` at the end unless another process was faster."""
    partial = place.with_name(f"{place.name}.partial-{socket.gethostname()}-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def _remove_abandoned(place: Path) -> None:
    """Clear away what killed preparations of this host left."""
    host = f"partial-{socket.gethostname()}-"
    for path in place.parent.glob(f"{place.name}*.{host}*"):
        try:
            os.kill(int(path.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(path)
        except PermissionError:
            pass  # alive, of another user


def _wait(path: Path, process: int, processes: int) -> None:
    """Until another process has written a file."""
    until = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"waited {_PATIENCE:g} s for {path} of process {process} of {processes}: set config.data.cache to a "
                "folder that all hosts share, or to none, with which every host prepares all data in memory"
            )
        time.sleep(_POLL)


def _open(place: Path, identity: Identity) -> Prepared:
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        for name, value in identity.items():
            if manifest["identity"].get(name) != value:
                raise UserError(
                    f"{place} was made with another {name}, {manifest['identity'].get(name)} and not {value}: delete it"
                )
        train, valid = (_read_split(place, split) for split in ("train", "valid"))
        lines = (place / "valid.jsonl").read_text().splitlines()
        examples = tuple(_example(json.loads(line)) for line in lines)
        whole = manifest["fingerprint"] == fingerprint_of(train, valid)
    except (ValueError, KeyError, EOFError, FileNotFoundError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place} is damaged ({error}): delete it, and it is made again") from error
    if not whole:
        raise UserError(f"{place} is damaged (its checksum differs): delete it, and it is made again")
    return Prepared(train, valid, examples, manifest["facts"], manifest["fingerprint"])


def _example(fields: dict[str, Any]) -> Example:
    more = tuple((text, weight) for text, weight in fields.pop("more"))
    return Example(**fields, more=more)


def _write_split(folder: Path, name: str, split: TokenizedSplit) -> None:
    counts = {}
    for task, tokens in split.tasks.items():
        for kind, ragged in (("inputs", tokens.inputs), ("targets", tokens.targets)):
            _save(folder / f"{name}.{task}.{kind}.npy", ragged.flat)
            _save(folder / f"{name}.{task}.{kind}.lengths.npy", ragged.lengths)
        counts[task] = [tokens.varies, tokens.truncated_inputs, tokens.truncated_targets]
    _save(folder / f"{name}.counts.npy", np.diff(split.first))
    np.save(folder / f"{name}.weights.npy", split.weights)
    np.save(folder / f"{name}.kept.npy", split.kept)
    (folder / f"{name}.json").write_text(json.dumps(counts))


def _save(path: Path, numbers: np.ndarray) -> None:
    """Whole numbers of at least 0 in two bytes each where they fit."""
    small = numbers.max(initial=0) <= np.iinfo(np.uint16).max
    np.save(path, numbers.astype(np.uint16 if small else np.int32))


def _read_split(folder: Path, name: str) -> TokenizedSplit:
    """Tokens stay in their files, mapped into memory; the rest, which is small, is read."""

    def load(what: str) -> np.ndarray:
        return np.load(folder / f"{name}.{what}.npy")

    tasks = {}
    for task, (varies, *truncated) in json.loads((folder / f"{name}.json").read_text()).items():
        inputs, targets = (
            Ragged(
                np.load(folder / f"{name}.{task}.{kind}.npy", mmap_mode="r"),
                offsets_of(load(f"{task}.{kind}.lengths")),
            )
            for kind in ("inputs", "targets")
        )
        tasks[task] = TokenizedTask(inputs, targets, varies, *truncated)
    return TokenizedSplit(tasks, offsets_of(load("counts")), load("weights"), load("kept"))
