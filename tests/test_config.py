"""Configurations: recipes, their smoke variant, validation, and the keys that may change between starts."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from paths import REPOSITORY

from cotmi_jax.config import base, check_batches, differences, flatten, profiled_steps, smoke, validate
from cotmi_jax.errors import UserError

RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))
# Keys that the smoke variant may change: sizes and durations, never data or objective.
SMOKE_KEYS = {
    *("steps", "batch_size", "data.size", "model.preset", "model.init", "optimizer.warmup_steps"),
    *("eval.every", "eval.examples", "eval.rationales", "eval.batch_size", "eval.max_decode_tokens"),
    *("checkpoint.every", "log.every"),
    *("mi.warmup_steps", "mi.ramp_steps", "mi.critic.hidden"),
    *("mi.monitor.every", "mi.monitor.examples", "mi.monitor.pairs", "mi.monitor.steps"),
}


def get_config(recipe: Path, *arg: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(recipe.stem, recipe)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arg)


def changed(changes: dict[str, Any]) -> ConfigDict:
    config = base()
    config.update_from_flattened_dict(changes)
    return config


def test_there_are_recipes() -> None:
    assert {"quickstart", "svamp", "cqa", "esnli", "anli1"} <= {recipe.stem for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_load_valid_and_locked(recipe: Path) -> None:
    config = get_config(recipe)
    validate(config)
    assert flatten(config).keys() == flatten(base()).keys()
    for section in (config, config.optimizer):
        with pytest.raises(AttributeError, match="learning_rte"):
            section.learning_rte = 1.0
    assert get_config(recipe).to_dict() == config.to_dict()
    config.steps += 1
    assert get_config(recipe).steps == config.steps - 1  # no two share anything


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_smoke_changes_sizes_only(recipe: Path) -> None:
    whole, small = flatten(get_config(recipe)), flatten(get_config(recipe, "smoke"))
    assert {key for key in whole if whole[key] != small[key]} <= SMOKE_KEYS
    validate(get_config(recipe, "smoke"))
    assert (small["model.preset"], small["model.init"]) == ("tiny", "random")
    assert small["steps"] <= 4 and small["batch_size"] <= 8 and small["eval.every"] == small["steps"]


def test_smoke_never_lengthens_the_warm_up() -> None:
    assert smoke(base()).optimizer.warmup_steps == 0
    assert smoke(changed({"optimizer.warmup_steps": 50})).optimizer.warmup_steps == 1


@pytest.mark.parametrize("arg", ["quick", "smoke,steps=3"])
def test_an_unknown_variant_is_refused(arg: str) -> None:
    with pytest.raises(UserError, match=f"unknown config variant '{arg}': recipes take :smoke"):
        get_config(RECIPES[0], arg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({key: 0}, f"config.{key} is 0: it must be at least 1")
            for key in ("steps", "batch_size", "micro_batches", "eval.batch_size", "eval.max_decode_tokens")
            + ("checkpoint.every", "checkpoint.keep", "log.every", "data.size")
            + ("data.max_input_tokens", "data.max_target_tokens")
            + ("mi.critic.hidden", "mi.critic.layers", "mi.critic.dim", "mi.monitor.examples")
        ),
        *(
            ({key: -1}, f"config.{key} is -1: it must be at least 0")
            for key in ("eval.every", "eval.examples", "eval.rationales", "model.vocab_size", "optimizer.warmup_steps")
            + ("mi.warmup_steps", "mi.ramp_steps", "mi.monitor.every")
        ),
        ({"seed": -1}, "config.seed is -1: it must be at least 0 and below 2^32"),
        ({"seed": 2**32}, "config.seed is 4294967296"),
        ({"mi.monitor.pairs": 1}, "config.mi.monitor.pairs is 1: it must be at least 2"),
        ({"batch_size": 12, "micro_batches": 5}, "config.batch_size 12 is not a multiple of config.micro_batches 5"),
        ({"steps": 5, "optimizer.warmup_steps": 5}, "config.optimizer.warmup_steps 5 must be below config.steps 5"),
        ({"model.dropout": 1.0}, "config.model.dropout is 1.0"),
        ({"model.dropout": -0.1}, "config.model.dropout is -0.1"),
        ({"model.dtype": "float16"}, "config.model.dtype is 'float16': choose one of float32, bfloat16"),
        ({"model.remat": "all"}, "config.model.remat is 'all': choose one of auto, none, dots, full"),
        ({"profile": "all"}, "config.profile is 'all': give a step or first-last, such as 10-15, or nothing"),
        ({"profile": "0-3"}, "config.profile is '0-3'"),
        ({"profile": "15-10"}, "config.profile is '15-10'"),
        ({"data.augment_asdiv": True}, "config.data.augment_asdiv needs config.data.dataset svamp, not 'cqa'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(changed(changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_boundary_values_are_allowed() -> None:
    validate(changed({"steps": 1, "batch_size": 1, "eval.every": 0, "optimizer.warmup_steps": 0, "model.dropout": 0.0}))
    validate(changed({"steps": 5, "optimizer.warmup_steps": 4, "batch_size": 12, "micro_batches": 4}))
    validate(changed({"data.augment_asdiv": True, "data.dataset": "svamp"}))


def test_profiled_steps_are_counted_as_the_lines_of_metrics() -> None:
    assert [profiled_steps(changed({"profile": text})) for text in ("", "7", "10-15", "3-3")] == [
        range(0),
        range(7, 8),
        range(10, 16),
        range(3, 4),
    ]


def test_batches_that_do_not_split_evenly_are_refused() -> None:
    check_batches(changed({"batch_size": 16, "micro_batches": 2, "eval.batch_size": 24}), 8)
    with pytest.raises(UserError, match=r"config\.batch_size / micro_batches is 4.*over the 8 devices"):
        check_batches(changed({"batch_size": 16, "micro_batches": 4}), 8)
    with pytest.raises(UserError, match=r"config\.eval\.batch_size is 12.*over the 8 devices"):
        check_batches(changed({"eval.batch_size": 12}), 8)


def test_flat_keys_reach_every_value() -> None:
    flat = flatten(base())
    assert (flat["steps"], flat["data.dataset"], flat["mesh.data"]) == (10_000, "cqa", -1)
    assert {type(value) for value in flat.values()} <= {int, float, bool, str}
    copy = base()
    copy.update_from_flattened_dict(flat)
    assert copy.to_dict() == base().to_dict()


@pytest.mark.parametrize("key", sorted(flatten(base())))
def test_only_paths_intervals_and_devices_may_differ_on_resume(key: str) -> None:
    value = flatten(base())[key]
    other = {bool: lambda: not value, str: lambda: f"{value}x"}.get(type(value), lambda: value + 1)()
    found = differences(base(), changed({key: other}))
    may = key in (
        *(
            "data.root",
            "data.tfds_dir",
            "data.vocabulary",
            "data.cache",
            "profile",
            "compilation_cache",
            "eval.metrics",
            "eval.rationales",
            "mi.log_gradient",
            "model.attention",
            "model.remat",
        ),
    ) or key.startswith(("checkpoint.", "log.", "mesh.", "mi.monitor."))
    assert found == ([] if may else [f"{key}: {value} → {other}"])


def test_missing_and_additional_keys_count_as_differences() -> None:
    old = base()
    with old.unlocked():
        old.model.novelty = 3
        del old.seed
    assert differences(old, base()) == ["model.novelty: 3 → absent", "seed: absent → 0"]
