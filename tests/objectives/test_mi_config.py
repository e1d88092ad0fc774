"""config.mi and the settings of the term that are built from it."""

import dataclasses

import pytest

from cotmi_jax.config import base, flatten
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import make_objective, term_notes
from cotmi_jax.mi.estimators import CLAMP, ESTIMATORS
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.objectives.mi_term import MITermConfig


def fields(settings: type) -> set[str]:
    return {field.name for field in dataclasses.fields(settings)}


def test_every_key_of_the_term_is_a_field_of_its_settings() -> None:
    mi = base().mi.to_dict()
    compression = {f"compression{'' if key == 'name' else '_' + key}" for key in mi["compression"]}
    assert set(mi["critic"]) == fields(CriticConfig)
    assert set(mi) - {"learning_rate", "monitor", "log_gradient"} | compression == fields(MITermConfig)


def test_every_key_reaches_its_field() -> None:
    """Each value below differs from the default."""
    critic = dict(name="concat", hidden=9, layers=3, dim=7, dropout=0.5, clamp=3.0, normalization="none")
    term = dict(estimator="smile", feature="decoder_max", detach="v", axis="column", alpha=0.25, tau=2.0, decay=0.75)
    term |= dict(warmup_steps=3, ramp_steps=4, bound="nwj", counterfactuals=2, distance="js", placebo=True)
    config = base()
    config.objective.name = "cotmi"
    config.mi.update(term | dict(critic=critic, compression=dict(name="club", weight=0.5)))
    expected = MITermConfig(
        **term, settings="", critic=CriticConfig(**critic), compression="club", compression_weight=0.5
    )
    assert make_objective(config).mi_term == expected
    defaults = flatten(base())
    assert all(defaults[f"mi.critic.{key}"] != value for key, value in critic.items())
    assert all(defaults[f"mi.{key}"] != value for key, value in term.items())


def test_defaults_of_config_are_those_of_the_library() -> None:
    """mi knows no config, and config.py imports no jax, so both state them."""
    mi = base().mi
    for estimator in ESTIMATORS.values():
        assert {name: mi[name] for name in estimator.values} == estimator.values
    # Arrays given to estimate() are standardized; a student's states are not.
    students = dict(normalization="layer", clamp=CLAMP)
    assert dataclasses.replace(CriticConfig(), **students) == CriticConfig(**mi.critic)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mi.estimator": "consistency"}, "rationale_answer is cut: set it to keep or append"),
        ({"objective.name": "single_task", "data.rationale_answer": "keep"}, "single_task writes the label behind"),
        (
            {"mi.estimator": "consistency", "data.rationale_answer": "append", "mi.warmup_steps": 20_000},
            "mi.warmup_steps 20000 must be below",
        ),
        ({"mi.estimator": "consistency", "mi.feature": "vocab_max"}, "is not for mi.estimator consistency"),
        ({"mi.estimator": "released", "mi.placebo": True, "batch_size": 1}, "mi.placebo on 1 pairs"),
        ({"mi.distance": "l2"}, "unknown mi.distance 'l2': choose one of cross_entropy, symmetric_kl, js"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    config = base()
    config.objective.name, config.data.packing = "cotmi", False
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=message):
        make_objective(config)


def test_a_term_that_the_objective_does_not_have_is_named() -> None:
    config = base()
    assert term_notes(config) == []
    config.mi.estimator, config.mi.compression.name, config.mi.warmup_steps = "consistency", "club", 3
    assert term_notes(config) == [
        "objective dss has no mutual-information term: config.mi.estimator=consistency, config.mi.compression.name="
        "club has no effect (--config.objective.name=cotmi has one)"
    ]
    config.objective.name = "cotmi"
    assert term_notes(config) == []
