"""The mutual-information term improves small students that are trained from random parameters.

Sets: arithmetic and deduction, which are generated, where small students learn; and e-SNLI (10,000 rows), by its
losses. Arms: three objectives; the term as released, infonce at two weights, consistency, conditional, and infonce on
permuted pairs, which has all of the term but the pairing; dss with answers appended, to which consistency is compared;
and dss whose alpha goes from labels over both tasks to rationales. Batches are packed: arms with the tasks of dss hold
the same examples in each, and the others about as many; those of released, which counts padding, are padded. The best
student on valid is scored on test, once.

Cost: 130 runs of one to five minutes of a core: two to four hours on two CPU cores, with a worker on each (taskset
--cpu-list 0 and 1). e-SNLI needs the release (COTMI_DATA_ROOT);
--only=recipe=quickstart and --only=recipe=deduction run without.

    python -m cotmi_jax.study --config=configs/studies/first.py --workdir=studies/first
    python -m cotmi_jax.report studies/first --output=first.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant
from cotmi_jax.study.grid import Evaluation, Settings, arms, axis, product, seeds

EVALUATION = Evaluation(metrics="agreement,steps,calibration", information=False)
_DSS: Settings = {"objective.name": "dss"}
_COTMI: Settings = {"objective.name": "cotmi", "objective.beta": 0.1}
_APPENDED: Settings = {"data.rationale_answer": "append"}
OBJECTIVES: dict[str, Settings] = {name: {"objective.name": name} for name in ("dss", "standard", "single_task")}
OF_TERM: dict[str, Settings] = {
    "released": _COTMI | {"mi.estimator": "released", "data.packing": False},
    "infonce": _COTMI,
    "infonce, beta 0.01": _COTMI | {"objective.beta": 0.01},
    "infonce, permuted pairs": _COTMI | {"mi.placebo": True},
    "conditional": _COTMI | {"mi.estimator": "conditional"},
    "dss, answers appended": _DSS | _APPENDED,
    "consistency": _COTMI | {"mi.estimator": "consistency"} | _APPENDED,
    "dss, alpha 1 to 0": _DSS | {"objective.alpha_schedule": "1@0.33,0.67@0.67,0@1"},
}
ALL = OBJECTIVES | OF_TERM
COMMON: Settings = {"mi.monitor.every": 0, "log.trackers": ""}


def get_config(arg: str = "") -> ConfigDict:
    """The student of e-SNLI: tiny, with a vocabulary of the train rows, with which a step is cheaper than with T5's."""
    config = base()
    config.data.dataset = "esnli"
    config.data.empty_rationale = "drop"
    config.data.vocabulary = "own:4000"
    config.steps, config.batch_size = 120, 32
    config.model.preset = "tiny"
    config.model.dropout = 0.0
    config.model.scan_layers = False
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = config.mi.warmup_steps = config.mi.ramp_steps = 20
    config.optimizer.beta2 = 0.98
    config.eval.every, config.eval.examples, config.eval.rationales = 60, 500, 0
    config.eval.select_by = "loss"
    config.eval.max_decode_tokens = 48
    config.checkpoint.every = 60
    return variant(config, arg)


def sweep() -> list[Settings]:
    """Sets × seeds × arms, the set of the longest runs last; an interrupted study compares all arms of a set."""
    # A student of single_task writes rationale and label in one output, which is longer than the default limit.
    longer: Settings = {"eval.max_decode_tokens": 128, "mi.warmup_steps": 50, "mi.ramp_steps": 50}
    arithmetic = longer | {"recipe": "quickstart", "steps": 200, "eval.every": 100, "checkpoint.every": 100}
    deduction = longer | {"recipe": "deduction", "steps": 600, "eval.every": 200, "checkpoint.every": 200}
    of_esnli = {name: ALL[name] for name in ("standard", "dss", "infonce", "infonce, permuted pairs")}
    return (
        product([COMMON], [arithmetic], seeds(5), arms(ALL))
        + product([COMMON], axis("data.dataset", ["esnli"]), seeds(5), arms(of_esnli))
        + product([COMMON], [deduction], seeds(5), arms(ALL))
    )
