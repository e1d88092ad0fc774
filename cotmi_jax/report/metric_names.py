"""What the values of metrics are called in tables: those of the table of measures."""

from cotmi_jax.evaluation.measures import MEASURES, SHARE

_OF_METRICS = [measure for measure in MEASURES.values() if measure.path[0] == "metrics"]

# Of shares, which the table gives in percent.
SHARES = {measure.name: measure.text for measure in _OF_METRICS if measure.unit == SHARE}
# Of other values.
NAMES = {
    measure.name: measure.text + f", {measure.unit}" * bool(measure.unit)
    for measure in _OF_METRICS
    if measure.unit != SHARE
}
