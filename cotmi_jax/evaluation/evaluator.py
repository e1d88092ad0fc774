"""Losses and predictions of a student on a split, each example exactly once. Imports no tensorflow."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.data.example import Example
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.order import eval_rows
from cotmi_jax.data.tasks import EXPLAIN, PREDICT, read_label, read_rationale
from cotmi_jax.data.tokens import Batch, TokenizedSplit, gather
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.evaluation.metrics import Prediction
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.objectives.terms import Terms
from cotmi_jax.parallel.batch import make_process_rows, put_batch
from cotmi_jax.parallel.sharding import replicated


def make_terms(student: StudentDef, objective: Objective, mesh: Mesh) -> Callable[[Params, Mapping], Terms]:
    """Jitted (params, batch) → terms without dropout. Results are replicated: every host can read them."""
    return jax.jit(
        lambda params, batch: objective.terms(student.bind(params), batch, None), out_shardings=replicated(mesh)
    )


class Evaluator:
    """The jitted evaluation functions of one student and objective on a mesh; compiled once per padded shape."""

    def __init__(
        self, student: StudentDef, objective: Objective, vocabulary: Vocabulary, mesh: Mesh, *, batch_size: int
    ):
        self._objective, self._vocabulary, self._mesh, self._batch_size = objective, vocabulary, mesh, batch_size
        self._terms, self._generation = make_terms(student, objective, mesh), Generation(student, mesh)

    def _batches(self, split: TokenizedSplit, limit: int, mesh: Mesh) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches on a mesh with their global rows; −1 pads the last one."""
        for rows in eval_rows(min(split.size, limit or split.size), self._batch_size):
            local = rows[make_process_rows(mesh).indices(len(rows))]
            yield put_batch(gather(split, local), mesh), rows

    def losses(self, params: Params, split: TokenizedSplit, *, limit: int = 0) -> dict[str, float]:
        """Mean of every term of the objective over the split's first `limit` examples (0: all), without dropout."""
        sums: dict[str, np.ndarray] = {}
        for batch, _ in self._batches(split, limit, self._mesh):
            terms: Terms = jax.device_get(self._terms(params, batch))
            for name, term in terms.items():
                # In float64, since a large split has more tokens than float32 counts exactly.
                sums[name] = sums.get(name, 0.0) + np.asarray([term.sum, term.weight], np.float64)
        return {name: float(total / weight) if weight else 0.0 for name, (total, weight) in sums.items()}

    def texts(
        self, params: Params, split: TokenizedSplit, task: str, decoding: Decoding, *, limit: int = 0
    ) -> list[str]:
        """The generated text of a task, by row."""
        texts: list[str] = []
        params = self._generation.reshard(params)
        with jax.set_mesh(self._generation.mesh):
            for batch, rows in self._batches(split, limit, self._generation.mesh):
                tokens_BxT: Array = self._generation.generate(params, batch[task]["inputs"], decoding=decoding)
                texts += [self._vocabulary.decode(ids) for ids in np.asarray(tokens_BxT)[rows >= 0]]
        return texts

    def predictions(
        self,
        params: Params,
        split: TokenizedSplit,
        examples: Sequence[Example],
        decoding: Decoding,
        *,
        limit: int = 0,
        rationales: bool = True,
    ) -> list[Prediction]:
        """The answers to the split's first `limit` examples (0: all). The rationale task is decoded if `rationales`."""
        name = self._objective.name
        outputs = self.texts(params, split, PREDICT, decoding, limit=limit)
        written: Sequence[str | None] = [read_rationale(output, name) for output in outputs]
        if rationales and EXPLAIN in self._objective.tasks:
            written = self.texts(params, split, EXPLAIN, decoding, limit=limit)
        predictions: list[Prediction] = []
        for example, output, rationale in zip(examples[: len(outputs)], outputs, written, strict=True):
            label = read_label(output, name)
            predictions.append(
                {
                    "id": example.id,
                    "input": example.input,
                    "label": example.label,
                    "predicted_label": label,
                    "correct": is_correct(label, example.label, example.kind),
                    "teacher_label": example.teacher_label,
                    "teacher_rationale": example.rationale,
                    "predicted_rationale": rationale,
                }
            )
        return predictions
