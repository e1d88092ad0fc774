"""Labels and rationales for lines of text, as `predict` prints them. Imports no tensorflow."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.data.tasks import DEFAULT_OBJECTIVE, EXPLAIN, PREDICT, ObjectiveName, find_objective, task_input
from cotmi_jax.data.tokens import Ragged, round_up
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.inference.candidates import LabelOutput, LabelScorer, LabelScores, check_candidates, ranked
from cotmi_jax.inference.lines import Answer, Line, log_probability
from cotmi_jax.inference.segments import Tokens
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

    truncated: whether the input was cut to the limit. label: scores of the label and of its candidates, if asked for.
    """

    text: str
    log_p: float | None
    tokens: int
    truncated: bool
    label: LabelScores | None = None


def padded_length(longest: int) -> int:
    """The length to which inputs are padded: 32, 48, 64, 96, … A third at most is padding beyond the longest input, and
    the programs to compile are few, although the lengths to come are not known."""
    power = 1 << (longest - 1).bit_length()
    return max(_MIN_LENGTH, 3 * power // 4 if longest <= 3 * power // 4 else power)


class Predictor:
    """Generates a label, a rationale or both for texts; for the task raw, the output without a task prefix.

    objective None (the training is not known) means the prefixes of DEFAULT_OBJECTIVE. num_samples: answers per input,
    by sampling. scores: add the log-probability of each output to its answer, as {label,rationale,output}_score, and
    the confidence of the label; an output that holds both label and rationale has an output_score. candidates: labels
    to rank for each line that has no choices of its own; an answer to a line with candidates has its label's confidence
    and `candidates`, with log_p in nats and the probability among them.

    Raises:
      UserError: the task needs rationales and the student's objective has none, several samples without sampling, or
        candidates that cannot be ranked.
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
        candidates: Sequence[str] = (),
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
        if candidates and task not in ("predict", "both"):
            raise UserError(f"--candidates ranks labels, and --task={task} gives none: use --task=predict")
        if candidates:
            check_candidates(candidates, vocabulary, self._objective, "--candidates")
        self._candidates = tuple(candidates)
        self._params, self._vocabulary, self._mesh, self._task = params, vocabulary, mesh, task
        self._decoding, self._num_samples, self._scores = decoding, num_samples, scores
        self._limit, self._key, self._batches = max_input_tokens, jax.random.key(seed), 0
        self._shards = batch_shards(mesh)
        self._labels = LabelScorer(student, vocabulary, self._objective, mesh)
        self._encode = jax.jit(lambda params, inputs_BxS: student.bind(params).encode(inputs_BxS))
        self._generate = jax.jit(
            lambda params, inputs_BxS, key, encoded_BxSxD=None, *, scores: generate(
                student.bind(params), inputs_BxS, decoding, key, encoded_BxSxD, scores=scores
            ),
            static_argnames="scores",
            out_shardings=replicated(mesh),
        )

    def check(self, line: Line) -> None:
        """Raises UserError for a line with choices that cannot be ranked."""
        if line.choices and self._task in ("predict", "both"):
            where = f"line {line.number} of the input: choices"
            check_candidates(line.choices, self._vocabulary, self._objective, where)

    def _outputs(
        self, inputs: Sequence[str], batch_size: int, choices: Sequence[Sequence[str]] | None = None
    ) -> list[Output]:
        """The student's output for each input, in order; several batches are sorted by length.

        choices: of label outputs, the candidates of each input.
        """
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
            asked = None if choices is None else [choices[row] for row in chosen]
            is_cut = [len(encoded[row]) + 1 > self._limit for row in chosen]
            found |= zip(chosen, self._outputs_of_batch(batch["inputs"], key, is_cut, asked), strict=True)
        return [found[row] for row in range(len(inputs))]

    def _outputs_of_batch(
        self, inputs_BxS: Array, key: Array, is_cut: Sequence[bool], choices: Sequence[Sequence[str]] | None
    ) -> list[Output]:
        """Of the first rows of a batch, as many as is_cut has."""
        # Candidates are scored over the encoder states from which the label is generated.
        scores_labels = choices is not None and (self._scores or any(choices))
        encoded_BxSxD = self._encode(self._params, inputs_BxS) if scores_labels else None
        scores = self._scores or scores_labels
        found = self._generate(self._params, inputs_BxS, key, encoded_BxSxD, scores=scores)
        generated = Tokens(*jax.device_get(found))
        outputs = []
        for row, truncated in enumerate(is_cut):
            text, log_p = self._vocabulary.decode(generated.tokens[row]), generated.log_p(row, self._decoding)
            outputs.append(Output(text, log_p, generated.length(row), truncated))
        if choices is None or encoded_BxSxD is None:
            return outputs
        asked = [
            LabelOutput(row, generated.tokens[row], output.text, output.log_p, choices[row])
            for row, output in enumerate(outputs)
        ]
        labels = self._labels(self._params, inputs_BxS, encoded_BxSxD, asked)
        return [output._replace(label=label) for output, label in zip(outputs, labels, strict=True)]

    def _task_outputs(
        self, texts: Sequence[str], task: str, batch_size: int, choices: Sequence[Sequence[str]] | None = None
    ) -> list[Output]:
        return self._outputs([task_input(text, self._objective, task) for text in texts], batch_size, choices)

    def _sample(self, lines: Sequence[Line], batch_size: int) -> list[Answer]:
        """An answer to each line."""
        texts, choices = [line.text for line in lines], [line.choices or self._candidates for line in lines]
        columns, labels = dict[str, list[str]](), list[Output]()
        scored: dict[str, list[Output]] = {}
        if self._task == "raw":
            scored["output"] = last = self._outputs(texts, batch_size)
            columns["output"] = [output.text for output in last]
        if self._task in ("predict", "both") or (self._task == "explain" and EXPLAIN not in self._spec.tasks):
            last = self._task_outputs(texts, PREDICT, batch_size, None if self._task == "explain" else choices)
            scored["output" if self._spec.read_rationale else "label"] = labels = last
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
                log_p, tokens = outputs[row].log_p, outputs[row].tokens
                if self._scores and log_p is not None:
                    answer[f"{name}_score"] = log_probability(log_p, tokens)
            if labels:
                answer |= self._scored(labels[row], choices[row])
            answers.append(answer | ({"input_truncated": True} if output.truncated else {}))
        return answers

    def _scored(self, output: Output, choices: Sequence[str]) -> Answer:
        """Confidence of a label, and its candidates, the most probable first."""
        if output.label is None or not (self._scores or choices):
            return {}
        answer: Answer = {"confidence": output.label.confidence}
        if choices:
            found = ranked(choices, output.label.log_p)
            total = np.logaddexp.reduce(output.label.log_p)
            answer["candidates"] = [
                {"label": text, "log_p": log_p, "probability": float(np.exp(log_p - total))} for text, log_p in found
            ]
        return answer

    def _answered(self, lines: Sequence[Line], batch_size: int) -> list[tuple[Line, list[Answer]]]:
        samples = [self._sample(lines, batch_size) for _ in range(self._num_samples)]
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
