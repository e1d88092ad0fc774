"""Labels and rationales for lines of text, as `predict` prints them. Imports no tensorflow."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cotmi_jax.data.tasks import DEFAULT_OBJECTIVE, EXPLAIN, PREDICT, ObjectiveName, find_objective, task_input
from cotmi_jax.data.tokens import Ragged
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.inference.lines import Answer, Line, log_probability
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import replicated

Task = Literal["predict", "explain", "both", "raw"]
_MIN_LENGTH = 32  # inputs are padded to powers of two from here on, which bounds the number of compilations


class Output(NamedTuple):
    """What the student wrote for an input: log_p is its log-probability in nats, tokens their number with eos.

    truncated: whether the input was cut to the limit.
    """

    text: str
    log_p: float
    tokens: int
    truncated: bool


class Predictor:
    """Generates a label, a rationale or both for texts; for the task raw, the output without a task prefix.

    objective None (the training is not known) means the prefixes of DEFAULT_OBJECTIVE. num_samples: answers per input,
    by sampling. scores: add the log-probability of each output to its answer, as {label,rationale,output}_score; an
    output that holds both label and rationale has an output_score.

    Raises:
      UserError: the task needs rationales and the student's objective has none, or several samples without sampling.
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
        num_samples: int = 1,
        scores: bool = False,
    ):
        self._objective = objective or DEFAULT_OBJECTIVE
        self._spec = find_objective(self._objective)
        if task in ("explain", "both") and not self._spec.gives_rationale:
            raise UserError(
                f"--task={task}: this student was trained with objective {self._objective}, without rationales"
            )
        if num_samples > 1 and decoding.method != "sample":
            raise UserError(
                f"--num_samples={num_samples}: --method={decoding.method} gives one answer; use --method=sample"
            )
        self._params, self._vocabulary, self._mesh, self._task = params, vocabulary, mesh, task
        self._decoding, self._num_samples, self._scores = decoding, num_samples, scores
        self._limit, self._key, self._batches = max_input_tokens, jax.random.key(seed), 0
        self._shards = batch_shards(mesh)
        self._generate = jax.jit(
            lambda params, inputs_BxS, key: generate(student.bind(params), inputs_BxS, decoding, key),
            out_shardings=replicated(mesh),
        )

    def _outputs(self, inputs: Sequence[str], batch_size: int) -> list[Output]:
        """The student's output for each input."""
        encoded = self._vocabulary.encode(inputs)
        ragged = Ragged.of([[*ids[: self._limit - 1], EOS_ID] for ids in encoded])
        length = max(_MIN_LENGTH, 1 << (ragged.longest - 1).bit_length())
        rows = np.full(-(-batch_size // self._shards) * self._shards, -1, np.int64)
        rows[: len(inputs)] = np.arange(len(inputs))
        batch = put_batch({"inputs": ragged.padded(rows, length)}, self._mesh)
        key, self._batches = jax.random.fold_in(self._key, self._batches), self._batches + 1
        tokens_BxT, score_B = jax.device_get(self._generate(self._params, batch["inputs"], key))
        outputs = []
        for ids, ids_T, score in zip(encoded, tokens_BxT[: len(inputs)], score_B[: len(inputs)], strict=True):
            ends = np.flatnonzero(ids_T == EOS_ID)
            tokens = int(ends[0]) + 1 if len(ends) else len(ids_T)
            # The score of a beam is divided by a power of its length.
            power = self._decoding.length_penalty if self._decoding.method == "beam" else 0.0
            text = self._vocabulary.decode(ids_T)
            outputs.append(Output(text, float(score) * tokens**power, tokens, len(ids) + 1 > self._limit))
        return outputs

    def _task_outputs(self, texts: Sequence[str], task: str, batch_size: int) -> list[Output]:
        return self._outputs([task_input(text, self._objective, task) for text in texts], batch_size)

    def _sample(self, texts: Sequence[str], batch_size: int) -> list[Answer]:
        """An answer to each text."""
        columns: dict[str, list[str]] = {}
        scored: dict[str, list[Output]] = {}
        if self._task == "raw":
            scored["output"] = last = self._outputs(texts, batch_size)
            columns["output"] = [output.text for output in last]
        if self._task in ("predict", "both") or (self._task == "explain" and EXPLAIN not in self._spec.tasks):
            last = self._task_outputs(texts, PREDICT, batch_size)
            scored["output" if self._spec.read_rationale else "label"] = last
            if self._task != "explain":
                columns["label"] = [self._spec.read_label(output.text) for output in last]
            if self._spec.read_rationale is not None and self._task != "predict":
                columns["rationale"] = [self._spec.read_rationale(output.text) for output in last]
        if self._task in ("explain", "both") and EXPLAIN in self._spec.tasks:
            scored["rationale"] = last = self._task_outputs(texts, EXPLAIN, batch_size)
            columns["rationale"] = [output.text for output in last]
        answers: list[Answer] = []
        for row, output in enumerate(last):
            answer: Answer = {name: values[row] for name, values in columns.items()}
            if self._scores:
                for name, outputs in scored.items():
                    answer[f"{name}_score"] = log_probability(outputs[row].log_p, outputs[row].tokens)
            answers.append(answer | ({"input_truncated": True} if output.truncated else {}))
        return answers

    def _batch(self, lines: Sequence[Line], batch_size: int) -> list[tuple[Line, list[Answer]]]:
        texts = [line.text for line in lines]
        samples = [self._sample(texts, batch_size) for _ in range(self._num_samples)]
        return [(line, list(each)) for line, *each in zip(lines, *samples, strict=True)]

    def answers(self, lines: Iterable[Line], batch_size: int) -> Iterator[list[tuple[Line, list[Answer]]]]:
        """Batches of lines with their samples, in order. A UserError of `lines` comes after the answers before it."""
        iterator = iter(lines)
        while True:
            batch: list[Line] = []
            failure: UserError | None = None
            try:
                for line in itertools.islice(iterator, batch_size):
                    batch.append(line)
            except UserError as error:
                failure = error
            if batch:
                yield self._batch(batch, batch_size)
            if failure is not None:
                raise failure
            if len(batch) < batch_size:
                return
