"""Losses and predictions of a student on a split, each example exactly once. Imports no tensorflow."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.data.example import Example
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.tasks import EXPLAIN, PREDICT, read_label, read_rationale, writes_rationale
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.evaluation.batches import by_length
from cotmi_jax.evaluation.metrics import Prediction
from cotmi_jax.inference.candidates import LabelOutput, LabelScorer, LabelScores, ranked
from cotmi_jax.inference.generation import Generation
from cotmi_jax.inference.segments import Tokens
from cotmi_jax.inference.voting import Sampling, vote
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.objective import Evaluated, Objective
from cotmi_jax.objectives.terms import Terms
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.sharding import replicated


def make_terms(student: StudentDef, objective: Objective, mesh: Mesh) -> Callable[[Params, Mapping], Evaluated]:
    """Jitted (params, batch) → terms without dropout, the encoder states, from which generation continues, and losses.

    Terms and losses of examples are replicated: every host can read them.
    """
    return jax.jit(
        lambda params, batch: objective.evaluate(student.bind(params), batch),
        out_shardings=Evaluated(replicated(mesh), batch_sharding(mesh), replicated(mesh)),  # type: ignore[arg-type]
    )


class TargetLoss(NamedTuple):
    """Of one example, by task: the loss of its target in nats, summed over its tokens with eos, and their number."""

    loss: dict[str, float]
    tokens: dict[str, int]


class Scores(NamedTuple):
    """The mean of every term of the objective, by task the generated texts, by row, and the scores of labels.

    labels: by row, confidence and the log-probability of each choice; empty if they were not asked for. vote_shares: by
    row, the share of the sampled outputs that have the label of the text; None of a single output. targets: by row, the
    losses of its targets.
    """

    losses: dict[str, float]
    texts: dict[str, list[str]]
    labels: list[LabelScores]
    vote_shares: list[float | None]
    targets: list[TargetLoss]


class Evaluator:
    """The jitted evaluation functions of one student and objective on a mesh; compiled once per padded shape.

    Examples are sorted by length into batches of at most MAX_EVAL_SHAPES shapes, the same at each evaluation of a
    split. An objective whose terms depend on the padding keeps the order of the split, in one shape. sampling: of
    decoding by sampling, which depends on the place of an example in its batch.
    """

    def __init__(
        self,
        student: StudentDef,
        objective: Objective,
        vocabulary: Vocabulary,
        mesh: Mesh,
        *,
        batch_size: int,
        sampling: Sampling | None = None,
    ):
        self._sampling = sampling or Sampling()
        self._objective, self._vocabulary, self._mesh, self._batch_size = objective, vocabulary, mesh, batch_size
        self._terms, self._generation = make_terms(student, objective, mesh), Generation(student, mesh)
        self._labels = LabelScorer(student, vocabulary, objective.name, mesh)

    def scores(
        self,
        params: Params,
        split: TokenizedSplit,
        decoding: Decoding,
        tasks: Sequence[str] = (),
        *,
        limit: int = 0,
        examples: Sequence[Example] = (),
        confidences: bool = False,
    ) -> Scores:
        """Losses without dropout on the split's first `limit` examples (0: all), and the generated texts of `tasks`.

        confidences: also those of generated labels, and the log-probabilities of the choices of the examples; tasks
        must include the label task. examples: of the split; confidences and votes need them. The encoder runs once for
        all.
        """
        rows = np.arange(min(split.size, limit or split.size))
        sums: dict[str, np.ndarray] = {}
        texts = {task: [""] * len(rows) for task in tasks}
        labels, vote_shares = dict[int, LabelScores](), list[float | None]([None] * len(rows))
        targets = [TargetLoss({}, {}) for _ in rows]
        for_generation = self._generation.reshard(params) if tasks else params
        sort = not self._objective.depends_on_padding
        batches = by_length(split, rows, self._batch_size, self._mesh, sort=sort)
        for number, (batch, places) in enumerate(batches):
            terms, encoded_BxSxD, by_example = self._terms(params, batch)
            for number_of_task, task in enumerate(tasks):
                inputs = batch[task]["inputs"], encoded_BxSxD[task]
                votes = self._sampling.votes if task == PREDICT else 1
                scored = confidences and task == PREDICT
                with jax.set_mesh(self._generation.mesh):
                    samples = [
                        self._generation.outputs(
                            for_generation,
                            *inputs,
                            key,
                            decoding=decoding,
                            scores=scored and not self._labels.follows_rationale,
                        )
                        for key in self._keys(decoding, number, number_of_task, votes)
                    ]
                outputs = []
                for row, place in ((row, place) for row, place in enumerate(places) if place >= 0):
                    output, share = self._elect(samples, row, decoding, examples[place] if examples else None)
                    texts[task][place] = output.text
                    if task == PREDICT:
                        vote_shares[place] = share
                    outputs.append(output)
                if scored:
                    found = self._labels(params, *inputs, outputs)
                    labels |= {places[output.row]: each for output, each in zip(outputs, found, strict=True)}
            fetched: tuple[Terms, Terms] = jax.device_get((terms, by_example))
            for name, term in fetched[0].items():
                # In float64, since a large split has more tokens than float32 counts exactly.
                sums[name] = sums.get(name, 0.0) + np.asarray([term.sum, term.weight], np.float64)
            for task, term in fetched[1].items():
                for place, loss, tokens in zip(places, term.sum, term.weight, strict=True):
                    if place >= 0:
                        targets[place].loss[task] = float(f"{loss:.7g}")  # float32 has no more digits
                        targets[place].tokens[task] = int(tokens)
        losses = {name: float(total / weight) if weight else 0.0 for name, (total, weight) in sums.items()}
        return Scores(losses, texts, [labels[place] for place in sorted(labels)], vote_shares, targets)

    def _elect(
        self, samples: Sequence[Tokens], row: int, decoding: Decoding, example: Example | None
    ) -> tuple[LabelOutput, float | None]:
        """Of the outputs of a row the one that is used, and the share of those with its label; None of a single one."""
        written = [self._vocabulary.decode(sample.tokens[row]) for sample in samples]
        winner, share = 0, None
        if len(samples) > 1:
            assert example is not None  # labels are compared as those of the example
            winner, share = vote([read_label(text, self._objective.name) for text in written], example.kind)
        ids_T, log_p = samples[winner].tokens[row], samples[winner].log_p(row, decoding)
        return LabelOutput(row, ids_T, written[winner], log_p, example.choices if example is not None else ()), share

    def _keys(self, decoding: Decoding, batch: int, task: int, votes: int) -> list[Array | None]:
        """A key for each output of an input; None for methods that draw nothing."""
        if decoding.method != "sample":
            return [None]
        key = jax.random.key(self._sampling.seed)
        for number in (batch, task):
            key = jax.random.fold_in(key, number)
        return list(jax.random.split(key, votes))

    def rationales(self, params: Params, split: TokenizedSplit, decoding: Decoding, count: int) -> list[str]:
        """The output of the rationale task for the split's first `count` examples."""
        rows = np.arange(min(split.size, count))
        texts = [""] * len(rows)
        params = self._generation.reshard(params)
        for batch, places in by_length(split, rows, self._batch_size, self._mesh):
            with jax.set_mesh(self._generation.mesh):
                tokens_BxT = self._generation.tokens(params, batch[EXPLAIN]["inputs"], decoding=decoding)
            for place, ids in zip(places, tokens_BxT, strict=True):
                if place >= 0:
                    texts[place] = self._vocabulary.decode(ids)
        return texts

    def evaluate(
        self,
        params: Params,
        split: TokenizedSplit,
        examples: Sequence[Example],
        decoding: Decoding,
        *,
        limit: int = 0,
        rationales: bool = True,
        confidences: bool = False,
    ) -> tuple[dict[str, float], list[Prediction]]:
        """Losses, and the answers to the split's first `limit` examples (0: all).

        The rationale task is decoded if `rationales`; labels and choices are scored if `confidences`.
        """
        name, explains = self._objective.name, rationales and EXPLAIN in self._objective.tasks
        tasks = (PREDICT, *[EXPLAIN] * explains)
        losses, texts, labels, vote_shares, targets = self.scores(
            params, split, decoding, tasks, limit=limit, examples=examples, confidences=confidences
        )
        outputs = texts[PREDICT]
        written: Sequence[str | None] = [read_rationale(output, name) for output in outputs]
        if explains:
            written = texts[EXPLAIN]
        scored = labels or [LabelScores(None, ())] * len(outputs)
        weight_N = split.weights[split.rationale_rows(np.arange(len(outputs)), 0)].tolist()
        columns = (examples[: len(outputs)], outputs, written, scored, vote_shares)
        predictions = [_prediction(name, *each) for each in zip(*columns, strict=True)]
        for prediction, target, weight in zip(predictions, targets, weight_N, strict=True):
            # Without a rationale, or with one of weight 0, there is no target of a task that writes it.
            known = [task for task in target.loss if weight or not writes_rationale(name, task)]
            prediction["loss"] = {task: target.loss[task] for task in known}
            prediction["tokens"] = {task: target.tokens[task] for task in known}
            if weight not in (0.0, 1.0):
                prediction["loss_weight"] = {task: weight for task in known if writes_rationale(name, task)}
        return losses, predictions


def _prediction(
    objective: str, example: Example, output: str, rationale: str | None, scores: LabelScores, vote_share: float | None
) -> Prediction:
    """The answer to one example, without the losses of its targets."""
    label = read_label(output, objective)
    candidates = ranked(example.choices, scores.log_p) if scores.log_p else []
    return {
        "id": example.id,
        "input": example.input,
        "label": example.label,
        "predicted_label": label,
        "correct": is_correct(label, example.label, example.kind),
        "teacher_label": example.teacher_label,
        "teacher_rationale": example.rationale,
        "predicted_rationale": rationale,
        "cluster": example.cluster or example.id,
        "choices": list(example.choices),
        "confidence": scores.confidence,
        "candidates": [{"label": text, "log_p": log_p} for text, log_p in candidates],
        "vote_share": vote_share,
    }
