"""config.mi and the settings of the term that are built from it."""

import dataclasses

from cotmi_jax.config import base, flatten
from cotmi_jax.experiment import make_objective
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
