"""Answers that rank the labels an example can have. Imports no jax."""

from collections.abc import Sequence

from cotmi_jax.evaluation.confidences import cluster_keys
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, clustered_share


def ranked_hit(prediction: Prediction) -> float | None:
    """1 if gold has the highest log-probability of the candidates, 1/k if k have; None without candidates."""
    candidates = prediction.get("candidates")
    if not candidates:
        return None
    highest = max(each["log_p"] for each in candidates)
    best = [each["label"].strip() for each in candidates if each["log_p"] == highest]
    return (prediction["label"].strip() in best) / len(best)


def ranked_accuracy(predictions: Sequence[Prediction]) -> dict[str, Score | NotAvailable]:
    """Accuracy of answering with the candidate of the highest log-probability; one of k with the highest counts 1/k.

    The interval takes clusters as independent of each other. Predictions without candidates are left out.
    """
    hits: dict[str, list[float]] = {}
    for prediction, cluster in zip(predictions, cluster_keys(predictions), strict=True):
        hit = ranked_hit(prediction)
        if hit is not None:
            hits.setdefault(cluster, []).append(hit)
    if not hits:
        return {"ranked_accuracy": NotAvailable(not_available="no example has choices: labels are open")}
    return {"ranked_accuracy": clustered_share([sum(each) for each in hits.values()], [*map(len, hits.values())])}
