"""Labels and rationales for lines of text, as `predict` prints them. Imports no tensorflow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cotmi_jax.data.tasks import DEFAULT_OBJECTIVE, EXPLAIN, PREDICT, ObjectiveName, find_objective, task_input
from cotmi_jax.data.tokens import Ragged, round_up
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.inference.lines import Answer, Line, log_probability
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import replicated

Task = Literal["predict", "explain", "both", "raw"]
_MIN_LENGTH = 32
_WINDOW = 8  # batches of lines that are sorted by length together


class Output(NamedTuple):
    """What the student wrote for an input: log_p is its log-probability in nats (None: not asked for), tokens their
    number with eos.

    truncated: whether the input was cut to the limit.
    """

    text: str
    log_p: float | None
    tokens: int
    truncated: bool


def padded_length(longest: int) -> int:
    """The length to which inputs are padded: 32, 48, 64, 96, … A third at most is padding beyond the longest input, and
    the programs to compile are few, although the lengths to come are not known."""
    power = 1 << (longest - 1).bit_length()
    return max(_MIN_LENGTH, 3 * power // 4 if longest <= 3 * power // 4 else power)


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
            lambda params, inputs_BxS, key: generate(student.bind(params), inputs_BxS, decoding, key, scores=scores),
            out_shardings=replicated(mesh),
        )

    def _outputs(self, inputs: Sequence[str], batch_size: int) -> list[Output]:
        """The student's output for each input, in order; several batches are sorted by length."""
        encoded = self._vocabulary.encode(inputs)
        ragged = Ragged.of([[*ids[: self._limit - 1], EOS_ID] for ids in encoded])
        order = np.arange(len(inputs))
        if len(inputs) > batch_size:
            order = np.argsort(-ragged.lengths, kind="stable")
        found: dict[int, Output] = {}
        for start in range(0, len(inputs), batch_size):
            rows = np.full(round_up(batch_size, self._shards), -1, np.int64)
            chosen = order[start : start + batch_size]
            rows[: len(chosen)] = chosen
            batch = put_batch(
                {"inputs": ragged.padded(rows, padded_length(int(ragged.lengths[chosen].max())))}, self._mesh
            )
            key, self._batches = jax.random.fold_in(self._key, self._batches), self._batches + 1
            tokens_BxT, score_B = jax.device_get(self._generate(self._params, batch["inputs"], key))
            for place, row in enumerate(chosen):
                score = None if score_B is None else float(score_B[place])
                found[row] = self._output(tokens_BxT[place], score, len(encoded[row]) + 1 > self._limit)
        return [found[row] for row in range(len(inputs))]

    def _output(self, ids_T: np.ndarray, score: float | None, truncated: bool) -> Output:
        ends = np.flatnonzero(ids_T == EOS_ID)
        tokens = int(ends[0]) + 1 if len(ends) else len(ids_T)
        # The score of a beam is divided by a power of its length.
        power = self._decoding.length_penalty if self._decoding.method == "beam" else 0.0
        log_p = None if score is None else score * tokens**power
        return Output(self._vocabulary.decode(ids_T), log_p, tokens, truncated)

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
            for name, outputs in scored.items():
                _, log_p, tokens, _ = outputs[row]
                if log_p is not None:
                    answer[f"{name}_score"] = log_probability(log_p, tokens)
            answers.append(answer | ({"input_truncated": True} if output.truncated else {}))
        return answers

    def _answered(self, lines: Sequence[Line], batch_size: int) -> list[tuple[Line, list[Answer]]]:
        texts = [line.text for line in lines]
        samples = [self._sample(texts, batch_size) for _ in range(self._num_samples)]
        return [(line, list(each)) for line, *each in zip(lines, *samples, strict=True)]

    def answers(self, lines: Iterable[Line | None], batch_size: int) -> Iterator[list[tuple[Line, list[Answer]]]]:
        """Lines with their samples, in order. A UserError of `lines` comes after the answers before it.

        Lines are answered in windows of one batch, then two, up to _WINDOW batches, whose lines are sorted by length.
        None among the lines means that the next one is not at hand: the full batches of the window are then answered.
        With sampling a window has one batch, since random draws depend on a line's place in its batch. A stream of
        less than a batch is not padded to it.
        """
        last = 1 if self._decoding.method == "sample" or batch_size == 1 else _WINDOW
        iterator, window, batches = iter(lines), list[Line](), 1
        first, ended, failure = True, False, None
        while not ended:
            try:
                ended = self._fill(window, iterator, batch_size, batches)
            except UserError as error:
                ended, failure = True, error
            if ended and first and len(window) < batch_size:
                batch_size = min(batch_size, 1 << (max(len(window), 1) - 1).bit_length())
            answered = len(window) if ended else len(window) // batch_size * batch_size
            if answered:
                yield self._answered(window[:answered], batch_size)
                window, batches, first = window[answered:], min(2 * batches, last), False
        if failure is not None:
            raise failure

    @staticmethod
    def _fill(window: list[Line], lines: Iterator[Line | None], batch_size: int, batches: int) -> bool:
        """Add lines until the window is full or the next line is not at hand; True at their end."""
        for line in lines:
            if line is None:
                return False
            window.append(line)
            if len(window) == batches * batch_size:
                return False
        return True
