"""Targets of counterfactual pairs: which are kept, how they are cached, and their place in rows."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from splits import TASKS, random_split, sequence

from cotmi_jax.data import run_data as run_data_module
from cotmi_jax.data.counterfactual_targets import with_counterfactuals
from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.order import EXCESS, TrainOrder
from cotmi_jax.data.packing import make_batch, make_shape
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tokenize import TokenLimits, tokenize_split
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ProcessRows

BYTES = Vocabulary(Path("bytes"))
EVA = Example("s/train/0", "Eva has 2 and 3.", "5", "2 + 3 = 5", "5", kind="equation")


def targets_of(
    examples: list[Example], pairs: list[Pair], *, limit: int = 40, most: int = 4, answer: Any = "cut", **options: Any
) -> list[list[tuple[str, ...]]]:
    """By rationale, the texts of the targets of its counterfactuals: (label, rationale)."""
    shared: dict[str, Any] = dict(objective="cotmi", label_type="gt", rationale_answer=answer) | options
    limits = TokenLimits(60, limit, "skip")
    split = tokenize_split(examples, BYTES, limits=limits, **shared)
    found = with_counterfactuals(
        split, examples, BYTES, lambda example: pairs, max_target_tokens=limit, most=most, **shared
    ).counterfactuals
    assert found is not None and found.most == most
    texts = [
        tuple(BYTES.decode(np.array(sequence(found.targets[task], row))) for task in TASKS)
        for row in range(int(found.offsets[-1]))
    ]
    return [texts[start:stop] for start, stop in itertools.pairwise(found.offsets)]


SEVEN, EIGHT = Pair("7", "4 + 3 = 7"), Pair("8", "5 + 3 = 8")


def test_pairs_become_targets_of_both_tasks() -> None:
    assert targets_of([EVA], [SEVEN, EIGHT]) == [[("7", "4 + 3 = 7"), ("8", "5 + 3 = 8")]]
    assert targets_of([EVA], [SEVEN, EIGHT], most=1) == [[("7", "4 + 3 = 7")]]
    assert targets_of([EVA], []) == [[]]


@pytest.mark.parametrize(
    "pair",
    [
        Pair("5", "1 + 4 = 5"),  # the label of the example
        Pair("9", "2 + 3 = 5"),  # its rationale
        Pair("7", "1 + 6 = 7"),  # the label of an earlier pair
        Pair("9", "4 + 3 = 7"),  # its rationale
        Pair("9", "9 = " + "1 + " * 10 + "1"),  # too long
        Pair("9" * 50, "9"),
    ],
)
def test_a_pair_that_equals_another_or_is_too_long_is_left_out(pair: Pair) -> None:
    expected = [[("7", "4 + 3 = 7"), ("8", "5 + 3 = 8")]]
    assert targets_of([EVA], [SEVEN, pair, EIGHT]) == expected


def test_texts_that_the_vocabulary_makes_equal_are_equal() -> None:
    """The characters that distinguish them are unknown to it."""
    vocabulary, shared = Vocabulary(VOCABULARY_PATH), dict(objective="cotmi", label_type="gt", rationale_answer="cut")
    example = dataclasses.replace(EVA, label="ü", teacher_label=None, kind="text")
    split = tokenize_split([example], vocabulary, limits=TokenLimits(60, 40), **shared)  # type: ignore[arg-type]
    found = with_counterfactuals(
        split,
        [example],
        vocabulary,
        lambda _: [Pair("ö", "4 + 3 = 7"), SEVEN],
        max_target_tokens=40,
        most=2,
        **shared,  # type: ignore[arg-type]
    ).counterfactuals
    assert found is not None and found.offsets.tolist() == [0, 1]


def test_examples_whose_own_pair_disagrees_or_is_missing_have_none() -> None:
    wrong = dataclasses.replace(EVA, teacher_label="6")
    unweighted = dataclasses.replace(EVA, rationale="", weight=0.0)
    equal = dataclasses.replace(EVA, teacher_label="( 2 + 3 )")  # as a value
    long = dataclasses.replace(EVA, input="x" * 99)  # skipped with its rationales
    two = dataclasses.replace(EVA, rationale="3 + 2 = 5", more=(("5 = 2 + 3", 0.5), ("4 + 3 = 7", 1.0)))
    kept = [("7", "4 + 3 = 7"), ("8", "5 + 3 = 8")]
    found = targets_of([wrong, long, unweighted, equal, two, EVA], [SEVEN, EIGHT])
    assert found == [[], [], kept, kept, kept, kept[1:], kept]
    # Trained on the teacher's label, the same example agrees with its rationale.
    assert targets_of([wrong], [SEVEN], label_type="llm") == [[("7", "4 + 3 = 7")]]


def test_rationales_state_the_answer_of_their_own_pair() -> None:
    assert targets_of([EVA], [SEVEN], answer="append") == [[("7", "4 + 3 = 7 So the answer is 7")]]


# In the data of a run.


def run_data(folder: Path | str, **changes: Any) -> RunData:
    config = runs.tiny_config({"data.cache": str(folder), "mi.estimator": "conditional"} | changes)
    return RunData.of(config, Vocabulary(VOCABULARY_PATH))


def assert_same_counterfactuals(split: TokenizedSplit, other: TokenizedSplit) -> None:
    found, expected = split.counterfactuals, other.counterfactuals
    assert found is not None and expected is not None
    assert found.most == expected.most and found.targets.keys() == expected.targets.keys()
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    for task, ragged in found.targets.items():
        np.testing.assert_array_equal(ragged.flat, expected.targets[task].flat)
        np.testing.assert_array_equal(ragged.offsets, expected.targets[task].offsets)


def test_counterfactuals_are_cached_and_identify_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = run_data(tmp_path), run_data(tmp_path, **{"mi.estimator": "infonce"})
    assert not first.found and not other.found
    assert other.train.counterfactuals is None and first.valid.counterfactuals is None
    assert first.prepared.fingerprint.split("-")[1] == other.prepared.fingerprint.split("-")[1]
    assert first.prepared.fingerprint != other.prepared.fingerprint
    again = run_data(tmp_path)
    assert again.found and again.prepared.fingerprint == first.prepared.fingerprint
    assert_same_counterfactuals(again.train, first.train)
    assert run_data("none").prepared.fingerprint == first.prepared.fingerprint
    more = run_data(tmp_path, **{"mi.counterfactuals": 2})
    assert not more.found and more.train.counterfactuals is not None and more.train.counterfactuals.most == 2
    counts = np.diff(more.train.counterfactuals.offsets)
    assert counts.max() == 2
    (note,) = [note for note in more.notes(None) if "have counterfactuals" in note]
    assert f"train: {(counts > 0).sum()} of {len(counts)} rationales" in note and "at most 2 each" in note
    monkeypatch.setattr(run_data_module, "CHUNK", 7)
    assert_same_counterfactuals(run_data("none").train, first.train)  # joined from chunks


def test_data_without_any_counterfactual_is_refused(tmp_path: Path) -> None:
    rows = [f'{{"input": "Two pens. {n}", "label": "2", "rationale": "It is {n}."}}\n' for n in range(12)]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    with pytest.raises(UserError, match="none of the 12 examples has a counterfactual") as caught:
        run_data("none", **{"data.dataset": f"jsonl:{tmp_path}"})
    assert "\n" not in str(caught.value) and "mi.estimator" in str(caught.value)


# In rows.

SPLIT = random_split(60, rationales=3, counterfactuals=3)
ORDER = TrainOrder.of(SPLIT.size, 16, seed=1, tokens=SPLIT)


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_hold_every_counterfactual_beside_its_input(processes: int) -> None:
    further = SPLIT.counterfactuals
    assert further is not None
    shape = make_shape(SPLIT, ORDER, multiple=2 * processes, groups=processes)
    for step in range(20):
        for process in range(processes):
            rows_of = ProcessRows(process, processes, (process, process + processes))
            batch = make_batch(SPLIT, ORDER, step, shape, rows_of)
            rows, examples, local = batch["rows"], batch["examples"], rows_of.indices(shape.rows).tolist()
            picks = supplied(step, examples, rows, local, shape.segments)
            tokens = 0
            for example, rationale in enumerate(picks):
                pairs = range(int(further.offsets[rationale]), int(further.offsets[rationale + 1]))
                assert examples["counterfactuals"][example].tolist() == [m < len(pairs) for m in range(3)]
                for task, slots in examples["slots"].items():
                    row, segment = divmod(int(slots[example]), shape.segments)
                    at = local.index(row)
                    for m, pair in enumerate(pairs, 1):
                        columns = rows["counterfactual_segments"][at] == m * shape.segments + segment + 1
                        assert rows["counterfactuals"][at][columns].tolist() == sequence(further.targets[task], pair)
                        assert (np.diff(np.flatnonzero(columns)) == 1).all()
                        tokens += int(columns.sum())
            assert tokens == (rows["counterfactual_segments"] > 0).sum() == (rows["counterfactuals"] > 0).sum()
            assert rows["counterfactuals"].shape == (shape.rows // processes, shape.counterfactual_length)


def supplied(step: int, examples: dict[str, Any], rows: dict[str, Any], local: list[int], segments: int) -> list[int]:
    """The rationale of each example of a process's rows, found by its target of the rationale task."""
    rationales = SPLIT.rationale_rows(*ORDER.picks(step))
    by_target = {tuple(sequence(SPLIT.tasks["explain"].targets, row)): int(row) for row in rationales}
    found = []
    for slot in examples["slots"]["explain"]:
        row, segment = divmod(int(slot), segments)
        at = local.index(row)
        found.append(by_target[tuple(rows["targets"][at][rows["target_segments"][at] == segment + 1].tolist())])
    return found


def test_batches_are_balanced_by_the_tokens_of_counterfactuals_too() -> None:
    split = random_split(300, counterfactuals=1)
    order = TrainOrder.of(split.size, 16, seed=1, tokens=split)
    counts = np.stack([split.token_counts(order.picks(step)).sum(axis=0) for step in range(60)])
    assert counts.shape == (60, 3) and (counts <= order.cap + 1e-6).all()
    room = np.maximum(16 * np.array(EXCESS) * order.mean, split.token_counts(order.epoch(0)).max(axis=0) - order.mean)
    np.testing.assert_allclose(order.cap, 16 * order.mean + room)


def test_padded_batches_hold_them_by_task() -> None:
    further, batch, picks = SPLIT.counterfactuals, make_batch(SPLIT, ORDER, 3, None), ORDER.picks(3)
    assert further is not None
    for task, targets in batch["counterfactuals"].items():
        assert targets.shape == (16, 3, 8 if task == "predict" else 16)
        for example, rationale in enumerate(SPLIT.rationale_rows(*picks)):
            start, stop = (int(further.offsets[rationale + end]) for end in (0, 1))
            for m in range(3):
                expected = sequence(further.targets[task], start + m) if start + m < stop else []
                assert [token for token in targets[example, m].tolist() if token] == expected
