"""What makes two runs the same run: settings that change results, the content of the data, and the code."""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path as LocalPath
from typing import Any

from ml_collections import ConfigDict

from cotmi_jax.config import RESUMABLE_KEYS, TERM_KEYS, base, flatten
from cotmi_jax.data.corpus import Loading, corpus_fingerprint
from cotmi_jax.data.grammar import FILE_KINDS, parse_dataset
from cotmi_jax.data.run_data import loading_of
from cotmi_jax.data.tasks import find_objective
from cotmi_jax.experiment import find_vocabulary
from cotmi_jax.files import Path, absolute, as_path
from cotmi_jax.workdir.provenance import extension_digests, file_digest, versions
from cotmi_jax.workdir.record import is_workdir

_DIGITS = 8  # of the hash in a run's name
# What training and evaluation compute with. Other packages show results, start runs, or make data beforehand.
_ROOMS = (
    *("config.py", "experiment.py", "data", "evaluation", "inference", "mi", "models", "objectives", "parallel"),
    *("training", "workdir"),
)


def changed_settings(config: ConfigDict) -> dict[str, Any]:
    """The keys whose values differ from those of base(), with their values."""
    defaults = flatten(base())
    return {key: value for key, value in flatten(config).items() if value != defaults.get(key)}


def result_settings(config: ConfigDict) -> dict[str, Any]:
    """Those of `changed_settings` that change a run's results.

    A key that a later version declares, with a default with which earlier runs compute the same, changes nothing here.
    Paths of data, weights and extensions count by the content of the files, as `data_digest`.
    """
    ignored: tuple[str, ...] = (*RESUMABLE_KEYS, "extensions", "data.dataset", "data.rationale_weights")
    if not find_objective(config.objective.name).has_mi_term:
        ignored = (*ignored, *TERM_KEYS)
    found = {key: value for key, value in changed_settings(config).items() if not key.startswith(ignored)}
    components = parse_dataset(config.data.dataset)
    named = [[each.kind, "" if each.kind in FILE_KINDS else each.argument, each.rate] for each in components]
    return found | {"data.dataset": named}


def data_digest(config: ConfigDict) -> str:
    """Of data, vocabulary, initial checkpoint and extensions of a run. Raises UserError where one cannot be read.

    A checkpoint on the Hugging Face hub counts by its name, and so does its vocabulary.
    """
    # Seed and fraction of a subsample are settings of the run: one digest serves all seeds.
    loading = vars(loading_of(config)) | {"subsample": 1.0, "seed": 0}
    facts: list[Any] = [_corpus_digest(json.dumps(loading)), *extension_digests(config.extensions).values()]
    init = config.model.init
    if init != "random" and (is_workdir(init) or as_path(init).is_dir()):
        facts.append(_checkpoint_digest(absolute(init)))
    if config.data.vocabulary or init == "random":
        path = find_vocabulary(config)
        facts.append(_file_digest(str(path)) if path.exists() else path.name)
    return _digest(facts)


def run_hash(config: ConfigDict, code: str) -> str:
    """Of settings, data and code: hexadecimal digits. Raises UserError where the data cannot be read."""
    return _digest([result_settings(config), data_digest(config), code])[:_DIGITS]


def code_digest(package: LocalPath = LocalPath(__file__).parents[1]) -> str:
    """Of the source code that results depend on, as it is now, and of the versions of packages: hexadecimal digits."""
    files = [path for room in _ROOMS for path in _sources(package / room)]
    contents = [[str(path.relative_to(package)), hashlib.sha256(path.read_bytes()).hexdigest()] for path in files]
    return _digest([contents, versions()])[:12]


def _sources(place: LocalPath) -> Iterable[LocalPath]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def _corpus_digest(loading: str) -> str:
    return corpus_fingerprint(Loading(**json.loads(loading)))


@functools.cache
def _file_digest(path: str) -> str:
    return file_digest(as_path(path))


@functools.cache
def _checkpoint_digest(folder: str) -> str:
    """Of the files of a checkpoint's folder; of a run, of its record and its best student."""
    place = as_path(folder)
    files = [place / "run.json", *_files(place / "best")] if is_workdir(folder) else _files(place)
    return _digest([[str(path.relative_to(place)), file_digest(path)] for path in files])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
