"""The runs that a study file asks for: its settings applied to recipes, checked and named."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cotmi_jax.config import flatten, smoke, validate
from cotmi_jax.errors import UserError, did_you_mean, shown
from cotmi_jax.evaluation.metrics import parse_metrics
from cotmi_jax.experiment import check_packing, make_objective
from cotmi_jax.extensions import extension_names, load_extensions
from cotmi_jax.files import absolute
from cotmi_jax.recipes import errors_with_place, find_recipe, load_module, load_recipe, packaged_configs
from cotmi_jax.study.grid import ARM, RECIPE, Evaluation, Settings
from cotmi_jax.study.identity import changed_settings, result_settings

_MODULE = "study_config"  # the name of a loaded study file's module
_MAX_LABEL = 150  # characters: with the hash, and .json, fewer than a file's name may have


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run that a study file asks for. label: its name without hash; settings: those of the sweep, without the arm."""

    label: str
    arm: str
    seed: int
    recipe: str  # "": get_config() of the study file
    settings: Mapping[str, Any]
    config: ConfigDict

    def flags(self) -> list[str]:
        """Flags of `train` that give the config: of no recipe, so that an edit of one changes no run that is queued."""
        return ["--config=base", *(f"--config.{key}={value}" for key, value in changed_settings(self.config).items())]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study file as it was read. files: SHA-256 of the files it was read from. notes: what was left out, and why."""

    name: str
    claim: str
    evaluation: Evaluation
    runs: tuple[PlannedRun, ...]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def is_current(self) -> bool:
        """Whether the files are as they were."""
        return self.files == {name: _digest(Path(name)) for name in self.files}


def find_study(name: str) -> Path:
    """The study file: the path itself, or the package's study of that name. Raises UserError if there is none."""
    if Path(name).is_file():
        return Path(name)
    known = packaged_configs("studies")
    if name in known:
        return known[name]
    close = did_you_mean(Path(name).stem, known) or f"; the package's studies are {', '.join(known)}"
    raise UserError(f"no study file {name}{close}")


def load_plan(argument: str) -> Plan:
    """The plan of a study file STUDY or STUDY:smoke.

    Raises UserError, with the file, where it fails, sets an unknown key or a value of a wrong type, asks for a run that
    cannot be trained, or for one twice.
    """
    name, _, variant = argument.partition(":")
    path = find_study(name)
    module = load_module(path, _MODULE)
    for needed in ("sweep", "__doc__"):
        if getattr(module, needed, None) is None:
            raise UserError(f"{path}: a study file has a docstring, whose first paragraph is the claim, and sweep()")
    evaluation = getattr(module, "EVALUATION", Evaluation())
    if not isinstance(evaluation, Evaluation):
        raise UserError(f"{path}: EVALUATION is {shown(evaluation)}: set it to cotmi_jax.study.grid.Evaluation(…)")
    parse_metrics(evaluation.metrics or "")
    with errors_with_place(path):
        swept = [dict(settings) for settings in module.sweep()]
    if not swept:
        raise UserError(f"{path}: sweep() gives no runs")
    recipes = _Recipes(path, module, variant)
    configs = [_configured(path, settings, recipes, variant, evaluation) for settings in swept]
    runs = [
        PlannedRun(label, str(settings.get(ARM) or config.objective.name), config.seed, *_split(settings), config)
        for label, settings, config in zip(_labels(swept), swept, configs, strict=True)
    ]
    kept, notes = _without_doubles(path, runs, merge=variant == "smoke")
    files = [path, *recipes.files, *{Path(absolute(each)) for run in runs for each in _extension_files(run.config)}]
    claim = " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())
    study = path.stem + (f"-{variant}" if variant else "")
    return Plan(study, claim, evaluation, tuple(kept), {str(each): _digest(each) for each in files}, tuple(notes))


class _Recipes:
    """The configs that runs start from, each made once."""

    def __init__(self, path: Path, module: ModuleType, variant: str):
        self._path, self._module, self._variant = path, module, variant
        self._configs: dict[str, ConfigDict] = {}
        self.files: set[Path] = set()

    def __call__(self, recipe: str) -> ConfigDict:
        if recipe not in self._configs:
            self._configs[recipe] = self._load(recipe)
        return self._configs[recipe].copy_and_resolve_references()

    def _load(self, recipe: str) -> ConfigDict:
        if recipe:
            self.files.add(find_recipe(recipe.partition(":")[0]))
            return load_recipe(recipe)
        get_config: Callable[[str], ConfigDict] | None = getattr(self._module, "get_config", None)
        if get_config is None:
            raise UserError(f"{self._path}: a run without {RECIPE!r} has the config of get_config(arg): define it")
        with errors_with_place(self._path):
            return get_config(self._variant)


def _configured(path: Path, settings: Settings, recipes: _Recipes, variant: str, evaluation: Evaluation) -> ConfigDict:
    """The config of a run. Sizes of :smoke come last: a study that sweeps sizes runs at that size too."""
    where = f"{path}: sweep() gives {_described(settings)}"
    config = recipes(str(settings.get(RECIPE, "")))
    known = flatten(config)
    for key, value in settings.items():
        if key in (RECIPE, ARM):
            continue
        if key not in known:
            raise UserError(f"{where}: no config key {key}{did_you_mean(key, known)}")
        kind = type(known[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{where}: {key} is {shown(value)}, must be a {kind.__name__}")
        config.update_from_flattened_dict({key: kind(value)})
    if variant == "smoke":
        config = smoke(config)
    try:
        load_extensions(config.extensions)
        validate(config)
        check_packing(config)
        make_objective(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if evaluation.checkpoint == "best" and not config.eval.every:
        raise UserError(f"{where}: eval.every is 0, so that no run has a best checkpoint: evaluate the latest one")
    return config.lock()


def _split(settings: Settings) -> tuple[str, Settings]:
    """The recipe of a run, and its config keys."""
    return str(settings.get(RECIPE, "")), {key: each for key, each in settings.items() if key not in (RECIPE, ARM)}


def _described(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "a run without settings"


def _labels(swept: Sequence[Settings]) -> list[str]:
    """A readable name of each run, of what varies: data set, other keys, arm, seed.

    Left out are the keys that a data set and an arm determine. A key that is added to the sweep later changes labels:
    runs keep the names that they were recorded with, and are recognized by their hashes.
    """
    sets = [settings.get(RECIPE) or settings.get("data.dataset") for settings in swept]
    groups: dict[str, list[Settings]] = {}
    for settings, of_set in zip(swept, sets, strict=True):
        groups.setdefault(repr((of_set, settings.get(ARM))), []).append(settings)
    keys = dict.fromkeys(key for settings in swept for key in settings if key not in (RECIPE, ARM, "seed"))
    varied = [key for key in keys if any(_varies(key, group) for group in groups.values())]
    arm = [ARM] * _varies(ARM, swept)
    labels = []
    for settings, of_set in zip(swept, sets, strict=True):
        words = [_word(RECIPE, of_set)] if of_set and len(set(sets)) > 1 else []
        words += [_word(key, settings[key]) for key in (*varied, *arm) if key in settings]
        words += [f"seed{settings['seed']}"] if "seed" in settings else []
        labels.append("-".join(words)[:_MAX_LABEL] or "run")
    return labels


def _varies(key: str, runs: Sequence[Settings]) -> bool:
    return len({repr(settings.get(key)) for settings in runs}) > 1


def _word(key: str, value: Any) -> str:
    """A value in a name: texts by themselves, numbers behind the last part of their key."""
    text = Path(value).name.removesuffix(".py") if isinstance(value, str) else f"{key.rpartition('.')[2]}{value}"
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_") or key


def _without_doubles(path: Path, runs: Sequence[PlannedRun], *, merge: bool) -> tuple[list[PlannedRun], list[str]]:
    """The runs, of which no two have one label or one config. merge: leave out repeated configs instead of an error."""
    kept: dict[str, PlannedRun] = {}
    labels: dict[str, PlannedRun] = {}
    for run in runs:
        facts = repr((sorted(result_settings(run.config).items()), run.config.data.dataset, run.config.extensions))
        if facts in kept:
            if merge:
                continue
            raise UserError(_double(path, "config, in all that changes results", kept[facts], run))
        if run.label in labels:
            raise UserError(_double(path, f"name, {run.label}", labels[run.label], run))
        kept[facts] = labels[run.label] = run
    less = len(runs) - len(kept)
    note = f"{less} of {len(runs)} runs are left out: at the size of :smoke they equal another one"
    return list(kept.values()), [note] * bool(less)


def _double(path: Path, what: str, one: PlannedRun, other: PlannedRun) -> str:
    described = " and ".join(
        f"({_described({ARM: run.arm, **({RECIPE: run.recipe} if run.recipe else {}), **run.settings})})"
        for run in (one, other)
    )
    return f"{path}: two runs of sweep() have one {what}: {described}: leave one out"


def _extension_files(config: ConfigDict) -> list[str]:
    return [name for name in extension_names(config.extensions) if name.endswith(".py")]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # it is being replaced, or was removed: not as it was
        return ""
