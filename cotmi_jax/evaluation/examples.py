"""Examples with a student's outputs as Markdown, for trackers."""

from collections.abc import Sequence

from cotmi_jax.evaluation.metrics import Prediction


def _cell(text: str | None) -> str:
    """A text in one cell of a Markdown table."""
    return " ".join((text or "").split()).replace("\\", "\\\\").replace("|", "\\|")


def markdown_examples(predictions: Sequence[Prediction]) -> str:
    """A table with input, gold label and the student's label; its rationale too, if one was generated."""
    explains = any(each["predicted_rationale"] is not None for each in predictions)
    columns = ["input", "gold label", "student's label", "correct"] + ["student's rationale"] * explains
    rows = [columns, ["---"] * len(columns)]
    for each in predictions:
        row = [each["input"], each["label"], each["predicted_label"], "yes" if each["correct"] else "no"]
        rows.append([_cell(text) for text in row + [each["predicted_rationale"]] * explains])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
