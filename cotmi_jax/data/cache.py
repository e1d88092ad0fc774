"""Caches tokenized data in a folder of plain arrays, keyed by content, vocabulary and settings.

    {folder}/{key}/manifest.json                      the identity of the data, and checksums
    {folder}/{key}/{split}.json                       counts of a split
    {folder}/{key}/{split}.{task}.{inputs,targets}.npy, ….lengths.npy, {split}.{counts,weights,kept}.npy
    {folder}/{key}/{split}.{task}.weights.npy         if the tokens of its targets have weights
    {folder}/{key}/{split}.answers.npy                if rationales state answers
    {folder}/{key}/{split}.counterfactuals.{task}.targets.npy, ….lengths.npy, {split}.counterfactuals.counts.npy
    {folder}/{key}/valid.jsonl                        the examples of valid

A cache is written to a temporary folder that is then renamed, so that a killed process never leaves an incomplete one
under its final name. Processes that share the folder tokenize a piece of train each, and process 0 joins the pieces;
otherwise every process prepares all data.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotmi_jax.data.example import Example, Pair, Span
from cotmi_jax.data.tokens import CounterfactualTargets, Ragged, TokenizedSplit, TokenizedTask, offsets_of
from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import parse_json, read_regular

# Of the files and facts; part of the key, so that caches of another format are not found. Those of format 3 can lack
# the choices of examples.
FORMAT = 4
_POLL = 0.2  # seconds between checks for the files of other processes
_TIMEOUT = 1800.0  # seconds to wait for the files of another process
_NONCE = secrets.token_hex(4)  # of this process, since a killed process may have had the same pid

Identity = Mapping[str, Any]  # everything the tokens depend on, as JSON


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The data of a run: tokens, the examples of valid, and facts about the corpus (JSON)."""

    train: TokenizedSplit
    valid: TokenizedSplit
    valid_examples: tuple[Example, ...]
    facts: dict[str, Any]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make a cache.

    read: () → examples of train, examples of valid, facts.
    tokenize: (examples, name of the split) → tokens.
    check: (tokens, name of the split, facts); raises UserError if the split cannot be used.
    """

    read: Callable[[], tuple[Sequence[Example], Sequence[Example], dict[str, Any]]]
    tokenize: Callable[[Sequence[Example], str], TokenizedSplit]
    check: Callable[[TokenizedSplit, str, dict[str, Any]], None]


def fingerprint_of(train: TokenizedSplit, valid: TokenizedSplit) -> str:
    """Checksum by which a resumed run detects changed data; it covers valid, which selects the best checkpoint."""
    return f"{train.fingerprint()}-{valid.fingerprint()}"


def key_of(identity: Identity) -> str:
    """Name of the folder of a cache."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **identity}, sort_keys=True).encode()).hexdigest()[:32]


def prepare(
    folder: Path | None, identity: Identity, recipe: Recipe, *, process: int = 0, processes: int = 1
) -> tuple[Prepared, bool]:
    """The prepared data, and whether it was found in the cache; a folder of None keeps it in memory.

    Raises:
      UserError: the folder cannot be written or read or is damaged, or the files of other processes do not appear.
    """
    if folder is None:
        examples, valid, facts = recipe.read()
        train, held_out = (recipe.tokenize(each, name) for each, name in ((examples, "train"), (valid, "valid")))
        for split, name in ((train, "train"), (held_out, "valid")):
            recipe.check(split, name, facts)
        return Prepared(train, held_out, tuple(valid), facts, fingerprint_of(train, held_out)), False
    place = folder / key_of(identity)
    found = (place / "manifest.json").exists()
    if not found:
        _make(place, identity, recipe, process, processes)
    return _open(place, identity), found


def _make(place: Path, identity: Identity, recipe: Recipe, process: int, processes: int) -> None:
    with _user_error_on_failure(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place)
    examples, valid, facts = recipe.read()
    start, stop = (len(examples) * n // processes for n in (process, process + 1))
    train = recipe.tokenize(examples[start:stop], "train")
    if processes > 1:
        pieces = [place.parent / f"{place.name}.part-{n}-of-{processes}" for n in range(processes)]
        with _user_error_on_failure(place), _written_as(pieces[process]) as partial:
            _write_split(partial, "train", train)
        if process:
            _wait(place, None, 0, processes)
            return
        for number, piece in enumerate(pieces):
            if _wait(place, piece, number, processes):
                return  # another job with the same data was faster
        train = TokenizedSplit.join([_read_split(piece, "train") for piece in pieces])
    held_out = recipe.tokenize(valid, "valid")
    for split, name in ((train, "train"), (held_out, "valid")):
        recipe.check(split, name, facts)
    with _user_error_on_failure(place), _written_as(place) as partial:
        _write_split(partial, "train", train)
        _write_split(partial, "valid", held_out)
        lines = (json.dumps(dataclasses.asdict(example)) + "\n" for example in valid)
        (partial / "valid.jsonl").write_text("".join(lines))
        tokens, rest = fingerprint_of(train, held_out), _checksum(partial)
        manifest = {"identity": identity, "facts": facts, "fingerprint": tokens, "rest": rest}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for piece in place.parent.glob(f"{place.name}.part-*-of-*"):
        shutil.rmtree(piece, ignore_errors=True)


@contextlib.contextmanager
def _user_error_on_failure(place: Path) -> Iterator[None]:
    """Raises OSErrors about the files of a cache as UserErrors."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{error.filename or place}: {reason}; set config.data.cache to a writable folder, or to none"
        ) from error


@contextlib.contextmanager
def _written_as(place: Path) -> Iterator[Path]:
    """A temporary folder to write to; it is renamed to `place` at the end unless another process was faster."""
    partial = place.with_name(f"{place.name}.partial-{socket.gethostname()}+{os.getpid()}+{_NONCE}")
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    """Removes temporary folders of killed processes of this host."""
    for path in place.parent.glob(f"{place.name}*.partial-*"):
        host, pid, nonce = path.name.rpartition(".partial-")[2].rsplit("+", 2)
        if host == socket.gethostname() and nonce != _NONCE and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Whether another process of this host has this pid."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it belongs to another user
    return True


def _wait(place: Path, piece: Path | None, process: int, processes: int) -> bool:
    """Waits for the complete cache (returns True) or for the piece of a process (returns False)."""
    deadline = time.monotonic() + _TIMEOUT
    while not (place / "manifest.json").exists():
        if piece is not None and piece.exists():
            return False
        if time.monotonic() > deadline:
            raise UserError(
                f"waited {_TIMEOUT:g} s for {piece or place} of process {process} of {processes}: set "
                "config.data.cache to a folder that all hosts share, or to none: every host then prepares all data"
            )
        time.sleep(_POLL)
    return True


def _open(place: Path, identity: Identity) -> Prepared:
    try:
        manifest = parse_json(read_regular(place / "manifest.json"))
        for name, value in identity.items():
            if manifest["identity"].get(name) != value:
                raise UserError(
                    f"{place} was made with another {name}, {manifest['identity'].get(name)} and not {value}: delete it"
                )
        train, valid = (_read_split(place, split) for split in ("train", "valid"))
        lines = read_regular(place / "valid.jsonl").split(b"\n")[:-1]
        examples = tuple(_example(parse_json(line)) for line in lines)
        intact = manifest["fingerprint"] == fingerprint_of(train, valid) and manifest["rest"] == _checksum(place)
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, OSError) as error:
        if isinstance(error, UserError):
            raise
        why = one_line(str(error))
        raise UserError(f"{place} is damaged ({why}): delete it, and it is prepared again") from error
    if not intact:
        raise UserError(f"{place} is damaged (its checksum differs): delete it, and it is prepared again")
    return Prepared(train, valid, examples, manifest["facts"], manifest["fingerprint"])


def _checksum(place: Path) -> int:
    """CRC-32 of all files but the manifest and the tokens, which the fingerprint covers."""
    crc = 0
    for path in sorted(place.iterdir()):
        if path.name != "manifest.json" and not path.name.endswith((".inputs.npy", ".targets.npy")):
            crc = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), crc))
    return crc


def _example(fields: dict[str, Any]) -> Example:
    more = tuple((text, weight) for text, weight in fields.pop("more"))
    counterfactuals = tuple(Pair(*pair) for pair in fields.pop("counterfactuals"))
    choices = tuple(fields.pop("choices"))
    spans = tuple(tuple(Span(*span) for span in each) for each in fields.pop("token_weights"))
    return Example(**fields, more=more, counterfactuals=counterfactuals, choices=choices, token_weights=spans)


def _write_split(folder: Path, name: str, split: TokenizedSplit) -> None:
    counts: dict[str, list] = {}
    for task, tokens in split.tasks.items():
        for kind, ragged in (("inputs", tokens.inputs), ("targets", tokens.targets)):
            _save(folder / f"{name}.{task}.{kind}.npy", ragged.flat)
            _save(folder / f"{name}.{task}.{kind}.lengths.npy", ragged.lengths)
        if tokens.weights is not None:
            np.save(folder / f"{name}.{task}.weights.npy", tokens.weights)
        counts[task] = [tokens.per_rationale, tokens.truncated_inputs, tokens.truncated_targets]
    _save(folder / f"{name}.counts.npy", np.diff(split.rationale_offsets))
    np.save(folder / f"{name}.weights.npy", split.weights)
    np.save(folder / f"{name}.kept.npy", split.kept)
    if split.answer_starts is not None:
        np.save(folder / f"{name}.answers.npy", split.answer_starts)
    if split.counterfactuals is not None:
        counts["counterfactuals"] = [split.counterfactuals.most, *split.counterfactuals.targets]
        _save(folder / f"{name}.counterfactuals.counts.npy", np.diff(split.counterfactuals.offsets))
        for task, ragged in split.counterfactuals.targets.items():
            _save(folder / f"{name}.counterfactuals.{task}.targets.npy", ragged.flat)
            _save(folder / f"{name}.counterfactuals.{task}.targets.lengths.npy", ragged.lengths)
    (folder / f"{name}.json").write_text(json.dumps(counts))


def _save(path: Path, numbers: np.ndarray) -> None:
    """Saves non-negative integers in two bytes each if they fit, else in four."""
    small = numbers.max(initial=0) <= np.iinfo(np.uint16).max
    np.save(path, numbers.astype(np.uint16 if small else np.int32))


def _read_split(folder: Path, name: str) -> TokenizedSplit:
    """Tokens are mapped into memory; the other arrays, which are small, are read."""

    def load(what: str) -> np.ndarray:
        return np.load(folder / f"{name}.{what}.npy")

    def ragged(what: str) -> Ragged:
        return Ragged(np.load(folder / f"{name}.{what}.npy", mmap_mode="r"), offsets_of(load(f"{what}.lengths")))

    counts = parse_json(read_regular(folder / f"{name}.json"))
    most, *counterfactual_tasks = counts.pop("counterfactuals", [0])
    tasks = {}
    for task, (per_rationale, *truncated) in counts.items():
        inputs, targets = (ragged(f"{task}.{kind}") for kind in ("inputs", "targets"))
        file = folder / f"{name}.{task}.weights.npy"
        weights = np.load(file, mmap_mode="r") if file.exists() else None
        tasks[task] = dataclasses.replace(TokenizedTask(inputs, targets, per_rationale, *truncated), weights=weights)
    answer_starts = load("answers") if (folder / f"{name}.answers.npy").exists() else None
    counterfactuals = None
    if most:
        further = {task: ragged(f"counterfactuals.{task}.targets") for task in counterfactual_tasks}
        counterfactuals = CounterfactualTargets(offsets_of(load("counterfactuals.counts")), further, most)
    rest = load("weights"), load("kept"), answer_starts, counterfactuals
    return TokenizedSplit(tasks, offsets_of(load("counts")), *rest)
