"""The record of a run in its workdir: config, student, vocabulary, and a line for every start.

{workdir}/run.json        config, student shape, checksums of vocabulary and extensions, the same in every checkpoint
{workdir}/starts.jsonl    per start: time, command, machine, git revision, package versions, step
{workdir}/spiece.model    the vocabulary; of other kinds tokenizer.json, or the tokenizer_config.json of a ByT5
"""

import dataclasses
import datetime
import json
import os
import sys
from typing import Any, cast

from ml_collections import ConfigDict

from cotmi_jax.config import base, check_sizes, differences, flatten
from cotmi_jax.data.vocabulary import FILES, Vocabulary, find_tokenizer
from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.extensions import load_extensions
from cotmi_jax.files import (
    Path,
    absolute,
    append_line,
    as_path,
    check_writable,
    read_json,
    replace_file,
    user_error_on_failure,
    user_error_on_write,
)
from cotmi_jax.models.config import StudentConfig
from cotmi_jax.models.student import find_network
from cotmi_jax.parallel.accelerators import machine
from cotmi_jax.workdir.provenance import extension_digests, revision, versions

Record = dict[str, Any]
_SCALARS: dict[Any, type] = {kind: kind for kind in (bool, int, float, str)}
_SCALARS |= {kind.__name__: kind for kind in _SCALARS}  # the types of fields, which may be quoted
_RESTORE = "restore it, for example from a checkpoint's config"
RUN_FILE, STARTS_FILE = "run.json", "starts.jsonl"


def is_workdir(source: str) -> bool:
    """Whether source is the workdir of a training run."""
    record = as_path(source) / RUN_FILE
    return record.exists() or os.path.islink(record)  # a broken link is named when it is read


def run_directory(path: str) -> Path:
    """The workdir, which is created. Raises UserError if it cannot be written."""
    workdir = as_path(absolute(path))
    with user_error_on_failure(f"cannot write to --workdir {workdir}"):
        check_writable(workdir)
    return workdir


def run_record(
    config: ConfigDict, student: StudentConfig, vocabulary: Vocabulary, initial: Record | None = None
) -> Record:
    """What a run is, as JSON: config, student shape, fingerprint of the vocabulary, SHA-256 of extensions.

    initial: the checkpoint of another run that this one started from, if any.
    """
    record: Record = {"config": config.to_dict(), "student": dataclasses.asdict(cast(Any, student))}
    record |= {"vocabulary": vocabulary.fingerprint, "extensions": extension_digests(config.extensions)}
    return record | ({"initial": initial} if initial else {})


def _recorded_config(record: Record, path: Path) -> ConfigDict:
    """The config of a record. A key that the run's version had not declared gets the default of base().

    So a new key needs a default with which earlier runs compute the same results. Raises UserError for wrong types.
    """
    config = ConfigDict(base().to_dict())
    declared = flatten(config)
    try:
        config.update(ConfigDict(record["config"]))
        recorded = flatten(config)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: config is not that of a run ({one_line(str(error))}); {_RESTORE}") from error
    for key, default in declared.items():
        if key not in recorded or not _has_type(recorded[key], type(default)):
            raise UserError(
                f"{path}: config.{key} is {shown(recorded.get(key))}, must be a {type(default).__name__}; {_RESTORE}"
            )
    try:
        check_sizes(config)
    except UserError as error:
        raise UserError(f"{path}: {error}; {_RESTORE}") from error
    return config


def _has_type(value: object, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def check_resumable(workdir: Path, config: ConfigDict) -> list[str]:
    """Raises UserError where the workdir already holds a run of another config, naming the keys that differ.

    Extensions may be at another path if their files are unchanged. Returns notes: files at the same path that changed.
    """
    with user_error_on_failure(f"cannot read --workdir {workdir}"):
        if not (workdir / RUN_FILE).exists():
            return []
    record = _read_record(workdir)
    recorded = _recorded_config(record, workdir / RUN_FILE)
    before, now = record.get("extensions"), extension_digests(config.extensions)
    if not isinstance(before, dict):  # of an earlier version
        before = {}
    if before and [digest or name for name, digest in before.items()] == [
        digest or name for name, digest in now.items()
    ]:
        recorded.extensions = config.extensions
    if absolute(recorded.model.init) == config.model.init:  # earlier versions recorded the path as given
        recorded.model.init = config.model.init
    changed = differences(recorded, config)
    if changed:
        extended = any(change.startswith("steps:") for change in changed)
        hint = "; steps may be raised where optimizer.schedule is constant and no alpha_schedule is set" * extended
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}): "
            f"take another --workdir, or undo the change{hint}"
        )
    return [
        f"extension {name} has changed since the run was recorded"
        for name, digest in now.items()
        if before.get(name, digest) != digest
    ]


def record_start(workdir: Path, record: Record, vocabulary: Vocabulary, step: int) -> None:
    """Write the run's files, and a line for this start. Only a start from step 0 writes the vocabulary."""
    if step == 0:
        _write_vocabulary(workdir, vocabulary.files())
    with user_error_on_write(workdir / RUN_FILE):
        replace_file(workdir / RUN_FILE, json.dumps(record, indent=1) + "\n")
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": [sys.executable, *sys.argv],
        "machine": machine(),
        "revision": revision(),
        "versions": versions(),
    }
    with user_error_on_write(workdir / STARTS_FILE):
        append_line(workdir / STARTS_FILE, json.dumps(start))


def _write_vocabulary(workdir: Path, files: dict[str, bytes]) -> None:
    """Write a vocabulary's files, and remove those of another kind, which an earlier start can have left.

    Raises UserError where they are of no run, but of a model that somebody keeps in this folder.
    """
    foreign = [name for name in FILES if name not in files and (workdir / name).exists()]
    if foreign and not (workdir / RUN_FILE).exists():
        raise UserError(f"--workdir {workdir} holds {foreign[0]}, which is of no run: take another --workdir")
    for name, content in files.items():
        with user_error_on_write(workdir / name):
            replace_file(workdir / name, content)
    for name in FILES:
        if name not in files:
            with user_error_on_write(workdir / name):
                (workdir / name).unlink(missing_ok=True)


def _read_record(workdir: Path) -> Record:
    path = workdir / RUN_FILE
    try:
        record = read_json(path, _RESTORE)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise UserError(f"no {RUN_FILE} in {workdir}: give the --workdir of a training run") from error
        raise
    if not all(isinstance(record.get(name), dict) for name in ("config", "student")):
        raise UserError(f"{path} is not a run's record; {_RESTORE}")
    return record


def _student(config_type: type, fields: Record, path: Path) -> StudentConfig:
    """The student's config. Raises UserError for fields that it does not have, and for values of a wrong type."""
    types = {field.name: _SCALARS.get(field.type) for field in dataclasses.fields(config_type)}
    for name, value in fields.items():
        if name not in types:
            raise UserError(f"{path}: student.{one_line(name)} is unknown; {_RESTORE}")
        kind = types[name]
        if kind is not None and not _has_type(value, kind):
            raise UserError(f"{path}: student.{name} is {shown(value)}, must be a {kind.__name__}; {_RESTORE}")
    try:
        return config_type(**fields)
    except UserError as error:
        raise UserError(f"{path}: student.{error}; {_RESTORE}") from error
    except TypeError as error:
        raise UserError(f"{path}: student is incomplete ({one_line(str(error))}); {_RESTORE}") from error


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run, without importing its extensions. Raises UserError if the workdir holds no run."""
    return _recorded_config(_read_record(workdir), workdir / RUN_FILE)


def read_extensions(workdir: Path) -> tuple[str, ...]:
    """The extensions of a run, wherever their files were: names, with the beginning of the SHA-256 of a file."""
    recorded = _read_record(workdir).get("extensions") or {}
    return tuple(
        name if digest is None else f"{name.rpartition('/')[2]} {digest[:8]}" for name, digest in recorded.items()
    )


def read_run(workdir: Path, *, extensions: str | None = None) -> tuple[ConfigDict, StudentConfig, Vocabulary]:
    """Config, student shape and vocabulary of a run; imports its extensions, or those given instead.

    Raises UserError if the workdir holds no run, if an extension or the vocabulary cannot be loaded, or if the
    vocabulary is not that of the run.
    """
    record, path = _read_record(workdir), workdir / RUN_FILE
    config = _recorded_config(record, path)
    load_extensions(config.extensions if extensions is None else extensions)  # they may define the network of the run
    student = _student(find_network(config.model.network).config_type, record["student"], path)
    vocabulary = Vocabulary(find_tokenizer(workdir))
    if vocabulary.fingerprint != record.get("vocabulary", vocabulary.fingerprint):  # an earlier version recorded none
        given = config.data.vocabulary
        origin = f"data.vocabulary {shown(given)}" if given else f"data, {shown(config.data.dataset)}"
        raise UserError(
            f"{vocabulary.path} is not the vocabulary of this run (fingerprint {vocabulary.fingerprint[:12]}, recorded "
            f"{one_line(str(record['vocabulary']))[:12]}): restore the file, for example from the run's {origin}"
        )
    return config, student, vocabulary


def recorded_initial(workdir: Path) -> Record | None:
    """The checkpoint of another run that a run started from, as it was recorded; None if there was none."""
    found = _read_record(workdir).get("initial")
    return found if isinstance(found, dict) else None
