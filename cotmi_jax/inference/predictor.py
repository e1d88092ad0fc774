"""Labels and rationales for lines of text, as `predict` prints them. Imports no tensorflow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.data.tasks import DEFAULT_OBJECTIVE, EXPLAIN, PREDICT, ObjectiveName, find_objective, task_input
from cotmi_jax.data.tokens import Ragged
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import replicated

Task = Literal["predict", "explain", "both", "raw"]
Answer = dict[str, str | bool]
_MIN_LENGTH = 32  # inputs are padded to powers of two from here on, which bounds the number of compilations


class Predictor:
    """Generates a label, a rationale or both for texts; for the task raw, the output without a task prefix.

    objective None (the training is not known) means the prefixes of DEFAULT_OBJECTIVE.

    Raises:
      UserError: the task needs rationales and the student's objective has none.
    """

    def __init__(
        self,
        student: StudentDef,
        params: Params,
        vocabulary: Vocabulary,
        objective: ObjectiveName | None,
        mesh: Mesh,
        *,
        task: Task,
        decoding: Decoding,
        seed: int = 0,
        max_input_tokens: int = 1024,
    ):
        self._objective = objective or DEFAULT_OBJECTIVE
        self._spec = find_objective(self._objective)
        if task in ("explain", "both") and not self._spec.gives_rationale:
            raise UserError(
                f"--task={task}: this student was trained with objective {self._objective}, without rationales"
            )
        self._params, self._vocabulary, self._mesh, self._task = params, vocabulary, mesh, task
        self._limit, self._key, self._batches = max_input_tokens, jax.random.key(seed), 0
        self._shards = batch_shards(mesh)
        self._generate = jax.jit(
            lambda params, inputs_BxS, key: generate(student.bind(params), inputs_BxS, decoding, key).tokens,
            out_shardings=replicated(mesh),
        )

    def _generate_texts(self, inputs: Sequence[str], batch_size: int) -> tuple[list[str], list[bool]]:
        """The student's output for each input, and whether the input was truncated to the limit."""
        encoded = self._vocabulary.encode(inputs)
        truncated = [len(ids) + 1 > self._limit for ids in encoded]
        ragged = Ragged.of([[*ids[: self._limit - 1], EOS_ID] for ids in encoded])
        length = max(_MIN_LENGTH, 1 << (ragged.longest - 1).bit_length())
        rows = np.full(-(-batch_size // self._shards) * self._shards, -1, np.int64)
        rows[: len(inputs)] = np.arange(len(inputs))
        batch = put_batch({"inputs": ragged.padded(rows, length)}, self._mesh)
        key, self._batches = jax.random.fold_in(self._key, self._batches), self._batches + 1
        tokens_BxT: Array = self._generate(self._params, batch["inputs"], key)
        return [self._vocabulary.decode(ids) for ids in np.asarray(tokens_BxT)[: len(inputs)]], truncated

    def _task_outputs(self, texts: Sequence[str], task: str, batch_size: int) -> tuple[list[str], list[bool]]:
        return self._generate_texts([task_input(text, self._objective, task) for text in texts], batch_size)

    def _batch(self, texts: Sequence[str], batch_size: int) -> list[Answer]:
        answers: list[Answer] = [{"input": text} for text in texts]
        if self._task == "raw":
            outputs, truncated = self._generate_texts(texts, batch_size)
            columns = {"output": outputs}
        else:
            columns = {}
            if self._task != "explain" or EXPLAIN not in self._spec.tasks:
                outputs, truncated = self._task_outputs(texts, PREDICT, batch_size)
                if self._task != "explain":
                    columns["label"] = [self._spec.read_label(output) for output in outputs]
                if self._spec.read_rationale is not None and self._task != "predict":
                    columns["rationale"] = [self._spec.read_rationale(output) for output in outputs]
            if self._task != "predict" and EXPLAIN in self._spec.tasks:
                columns["rationale"], truncated = self._task_outputs(texts, EXPLAIN, batch_size)
        for name, values in columns.items():
            for answer, value in zip(answers, values, strict=True):
                answer[name] = value
        for answer, is_truncated in zip(answers, truncated, strict=True):
            if is_truncated:
                answer["input_truncated"] = True
        return answers

    def answers(self, lines: Iterable[str], batch_size: int) -> Iterator[list[Answer]]:
        """Batches of answers in the order of the lines. An empty line raises UserError after the answers before it."""
        batch: list[str] = []
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text:
                if batch:
                    yield self._batch(batch, batch_size)
                raise UserError(f"line {number} of the input is empty; remove it or write a text")
            batch.append(text)
            if len(batch) == batch_size:
                yield self._batch(batch, batch_size)
                batch = []
        if batch:
            yield self._batch(batch, batch_size)
