"""The record of a run in its workdir: config, student, vocabulary, and a line for every start.

{workdir}/run.json        config and student shape, the same in every checkpoint
{workdir}/starts.jsonl    per start: time, command, git revision, package versions, step
{workdir}/spiece.model    the vocabulary; of other kinds tokenizer.json, or the tokenizer_config.json of a ByT5
"""

import dataclasses
import datetime
import json
import subprocess
import sys
from importlib import metadata
from typing import Any, cast

from ml_collections import ConfigDict

from cotmi_jax.config import base, differences, load_extensions
from cotmi_jax.data.vocabulary import FILES, Vocabulary, find_tokenizer
from cotmi_jax.errors import UserError
from cotmi_jax.files import (
    Path,
    absolute,
    append_line,
    as_path,
    check_writable,
    replace_file,
    user_error_on_failure,
    user_error_on_write,
)
from cotmi_jax.models.config import StudentConfig
from cotmi_jax.models.student import find_network

Record = dict[str, Any]
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "ml-collections")
RUN_FILE, STARTS_FILE = "run.json", "starts.jsonl"


def run_directory(path: str) -> Path:
    """The workdir, which is created. Raises UserError if it cannot be written."""
    workdir = as_path(absolute(path))
    with user_error_on_failure(f"cannot write to --workdir {workdir}"):
        check_writable(workdir)
    return workdir


def run_record(config: ConfigDict, student: StudentConfig) -> Record:
    """Config and student shape of a run, as JSON."""
    return {"config": config.to_dict(), "student": dataclasses.asdict(cast(Any, student))}


def recorded_config(record: Record) -> ConfigDict:
    """The config of a record. A key that the run's version had not declared gets the default of base().

    So a new key needs a default with which earlier runs compute the same results.
    """
    config = ConfigDict(base().to_dict())
    config.update(ConfigDict(record["config"]))
    return config


def check_same_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError where the workdir already holds a run of another config, naming the keys that differ."""
    with user_error_on_failure(f"cannot read --workdir {workdir}"):
        if not (workdir / RUN_FILE).exists():
            return
    changed = differences(recorded_config(_read_record(workdir)), config)
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}): "
            "take another --workdir, or undo the change"
        )


def _revision() -> str | None:
    """The git revision of the package's source, with + where it was changed; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
        "revision": _revision(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    with user_error_on_write(workdir / STARTS_FILE):
        append_line(workdir / STARTS_FILE, json.dumps(start))


def _write_vocabulary(workdir: Path, files: dict[str, bytes]) -> None:
    """Write a vocabulary's files, and remove those of another kind, which an earlier start can have left."""
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
        with user_error_on_failure(f"cannot read {path}", "give the --workdir of a training run"):
            content = path.read_bytes()
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"no {RUN_FILE} in {workdir}: give the --workdir of a training run") from error
        raise
    try:
        record = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it from a checkpoint's config") from error
    if not isinstance(record, dict) or not {"config", "student"} <= record.keys():
        raise UserError(f"{path} is not a run's record: restore it from a checkpoint's config")
    return record


def read_run(workdir: Path) -> tuple[ConfigDict, StudentConfig, Vocabulary]:
    """Config, student shape and vocabulary of a run; imports its extensions. Raises UserError if the workdir holds no
    run, or if an extension or the vocabulary cannot be loaded.
    """
    record = _read_record(workdir)
    config = recorded_config(record)
    load_extensions(config.extensions)  # they may define the network of the run
    student: StudentConfig = find_network(config.model.network).config_type(**record["student"])
    return config, student, Vocabulary(find_tokenizer(workdir))
