"""Builds the vocabulary, student, data and objective of a run from its config."""

import dataclasses
import os

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.config import base, flatten
from cotmi_jax.data.corpus import find_data_root
from cotmi_jax.data.grammar import parse_dataset, with_absolute_paths
from cotmi_jax.data.own_vocabulary import find_own_vocabulary
from cotmi_jax.data.rationale_weights import with_absolute_file
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.sources.generated import VOCABULARIES
from cotmi_jax.data.tasks import PREDICT, find_objective
from cotmi_jax.data.token_weights import parse_token_weights
from cotmi_jax.data.vocabulary import Vocabulary, check_fits, find_tokenizer, is_own, parse_own
from cotmi_jax.errors import UserError, shown
from cotmi_jax.extensions import with_absolute_files
from cotmi_jax.files import Path, absolute, as_path
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.models.config import T5_VOCAB_SIZE, StudentConfig, T5Config, with_execution
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.hf import load_hf, resolve_source
from cotmi_jax.models.rng import stream_key
from cotmi_jax.models.student import Params, StudentDef, find_network
from cotmi_jax.objectives.alpha_schedule import parse_alpha_schedule
from cotmi_jax.objectives.mi_term import MITermConfig
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.distributed import all_gather_text
from cotmi_jax.parallel.process_rows import ALL_ROWS, ProcessRows
from cotmi_jax.parallel.sharding import abstract_arrays, param_shardings
from cotmi_jax.workdir.checkpoint import Saved, restore_params, saved
from cotmi_jax.workdir.record import is_workdir, read_run

OFFICIAL_PIECES = 32_000
# Keys that are set to choose a term: without one, a value other than the default is a mistake.
_CHOICES_OF_TERM = ("estimator", "bound", "feature", "distance", "placebo", "log_gradient", "compression.name")
_VOCAB_MULTIPLE = 128  # so that the tensor axis of the mesh divides the vocabulary


def find_vocabulary(config: ConfigDict) -> Path:
    """The vocabulary's file of a run, or `bytes`, by the rule stated at config.data.vocabulary.

    One that is trained on the data is trained now, unless it is in the cache.
    """
    if is_own(config.data.vocabulary):
        if config.model.init != "random":
            raise UserError(
                f"config.data.vocabulary {config.data.vocabulary} needs embeddings of its own, and config.model.init "
                f"{config.model.init} has those of another vocabulary: leave config.data.vocabulary empty"
            )
        return find_own_vocabulary(config)
    if config.data.vocabulary:
        return as_path(config.data.vocabulary)
    if config.data.dataset in VOCABULARIES and config.model.init == "random":
        return VOCABULARIES[config.data.dataset]
    if config.model.init != "random":
        init = config.model.init
        return find_tokenizer(as_path(absolute(init)) if is_workdir(init) else resolve_source(init))
    return find_data_root(config.data.root or None) / "t5" / "spiece.model"


def embeddings(pieces: int) -> int:
    """The number of embeddings of a student with random parameters, for a vocabulary of so many pieces."""
    return T5_VOCAB_SIZE if pieces == OFFICIAL_PIECES else -(-pieces // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def expected_embeddings(config: ConfigDict) -> int:
    """The number of embeddings of a run's student by its config: no checkpoint and no data are read."""
    model, vocabulary = config.model, config.data.vocabulary
    if model.vocab_size or model.init != "random":
        return model.vocab_size or T5_VOCAB_SIZE
    if is_own(vocabulary):
        return embeddings(parse_own(vocabulary))
    if vocabulary or config.data.dataset in VOCABULARIES:
        return embeddings(Vocabulary(find_vocabulary(config)).size)
    return T5_VOCAB_SIZE


def check_packing(config: ConfigDict) -> None:
    """Raises UserError for packed rows where the network would mix the examples of a row."""
    network = config.model.network
    if config.data.packing and not find_network(network).supports_packing:
        raise UserError(
            f"config.data.packing is True, but network {network!r} is not registered with supports_packing: set "
            "config.data.packing to False, or separate the segments and register it with supports_packing=True"
        )


def _student_of_run(config: ConfigDict, vocabulary: Vocabulary) -> tuple[StudentConfig, Saved]:
    """The student of the run that config.model.init names, and its best checkpoint.

    Raises UserError where network or vocabulary is not that of the run, or where it has no best checkpoint.
    """
    model, workdir = config.model, as_path(absolute(config.model.init))
    recorded, student, theirs = read_run(workdir, extensions=config.extensions)
    if recorded.model.network != model.network:
        raise UserError(
            f"config.model.network is {model.network!r}, but config.model.init {workdir} is a run of "
            f"{shown(recorded.model.network)}: give the same"
        )
    if theirs.fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"vocabulary {vocabulary.path} is not that of config.model.init {workdir}, whose embeddings belong to it: "
            "leave config.data.vocabulary empty"
        )
    found = saved(workdir, "best")
    if found is None:
        raise UserError(
            f"config.model.init {workdir} has no best checkpoint: give a run that evaluated its valid split "
            "(eval.every above 0)"
        )
    if len(set(all_gather_text(str(found)))) > 1:
        raise UserError(f"config.model.init {workdir}: a run replaced its best checkpoint meanwhile: start again")
    if isinstance(student, T5Config):
        return with_execution(student, model), found
    mine: StudentConfig = find_network(model.network).make_config(model, student.vocab_size)
    if StudentDef.of(mine).shapes != StudentDef.of(student).shapes:
        raise UserError(f"config.model describes a {model.network} of other shapes than run {workdir}: give its own")
    return mine, found


def make_student(config: ConfigDict, vocabulary: Vocabulary) -> tuple[StudentConfig, Params | Saved | None]:
    """The student's config, and where its parameters come from: model.init is random (None), a run or a T5's folder."""
    model = config.model
    initial: Params | Saved | None = None
    network = find_network(model.network)
    student: StudentConfig
    if model.init == "random":
        student = network.make_config(model, model.vocab_size or embeddings(vocabulary.size))
    elif is_workdir(model.init):
        student, initial = _student_of_run(config, vocabulary)
    else:
        if model.network != "t5":
            raise UserError(f"config.model.init {model.init} is a T5: with network {model.network} it must be random")
        checkpoint, initial = load_hf(model.init)
        student = with_execution(checkpoint, model)
    if model.init != "random" and model.vocab_size not in (0, student.vocab_size):
        raise UserError(
            f"config.model.vocab_size {model.vocab_size} but {model.init} has {student.vocab_size} embeddings: "
            "set it to 0"
        )
    check_fits(vocabulary, vocab_size=student.vocab_size, pad_id=student.pad_id, eos_id=student.eos_id)
    return student, initial


def initial_params(config: ConfigDict, student: StudentDef, vocabulary: Vocabulary, mesh: Mesh) -> Params:
    """The student's parameters before the first step of a run, on a mesh.

    Raises UserError where the checkpoint that config.model.init names cannot be read any more.
    """
    shardings = param_shardings(student.shapes, student.axes, mesh)
    _, initial = make_student(config, vocabulary)
    if initial is None:
        return jax.jit(student.init, out_shardings=shardings)(stream_key(config.seed, "init"))
    if isinstance(initial, Saved):
        return restore_params(initial, {"student": abstract_arrays(student.shapes, shardings)})["student"]
    return jax.tree.map(jax.device_put, initial, shardings)


def make_mi_term(mi: ConfigDict) -> MITermConfig:
    """The mutual-information term of config.mi. Raises UserError for invalid settings."""
    term = mi.to_dict()
    for key in ("learning_rate", "monitor", "log_gradient"):  # of the optimizer, the monitor and the loop
        del term[key]
    critic, compression = CriticConfig(**term.pop("critic")), term.pop("compression")
    return MITermConfig(
        **term, critic=critic, compression=compression["name"], compression_weight=compression["weight"]
    )


def make_objective(config: ConfigDict) -> Objective:
    """The objective with its coefficients. Raises UserError for a term that cannot be trained as configured."""
    mi, mi_term = config.mi, make_mi_term(config.mi)
    settings, spec = config.objective, find_objective(config.objective.name)
    objective = Objective(
        settings.name,
        settings.alpha,
        settings.beta,
        mi_term if spec.has_mi_term else None,
        settings.token_loss,
        parse_alpha_schedule(settings.alpha_schedule, config.steps),
    )
    if config.data.rationale_answer != "cut" and PREDICT in spec.rationale_tasks:
        raise UserError(
            f"config.data.rationale_answer {config.data.rationale_answer}: {objective.name} writes the label behind "
            "the rationale itself; set it to cut"
        )
    rules = parse_token_weights(config.data.token_weights)
    if rules is not None and rules.answer != 1.0 and config.data.rationale_answer == "cut" and spec.rationale_tasks:
        raise UserError(
            f"config.data.token_weights {config.data.token_weights}: config.data.rationale_answer cut leaves no answer "
            "in rationales: set it to keep or append"
        )
    if config.data.empty_rationale == "keep" and PREDICT in spec.rationale_tasks:
        raise UserError(
            f"config.data.empty_rationale keep: {objective.name} writes rationale and label as one target and "
            "cannot learn a label alone; set it to drop"
        )
    if objective.mi_term is not None:
        mi_term.check_batch(config.batch_size)
        if config.mi.estimator == "released" and config.data.packing:
            raise UserError(
                "config.mi.estimator released includes the padding of padded batches: set config.data.packing to False"
            )
        if mi_term.consistent and config.data.rationale_answer == "cut":
            raise UserError(
                "config.mi.estimator consistency compares the answer that a rationale states, and config.data."
                "rationale_answer is cut: set it to keep or append"
            )
        if mi_term.ramps and mi.warmup_steps >= config.steps:
            raise UserError(
                f"config.mi.warmup_steps {mi.warmup_steps} must be below config.steps {config.steps}: the term would "
                "never train the student"
            )
        schedule, begins = objective.alpha_schedule, mi.warmup_steps if mi_term.ramps else 0
        if schedule is not None and not schedule.joint_after(begins):
            raise UserError(
                f"config.objective.alpha_schedule {settings.alpha_schedule} has no phase of both tasks after "
                f"config.mi.warmup_steps {begins}, and the term is off in others: it would never train the student"
            )
    return objective


def term_notes(config: ConfigDict) -> list[str]:
    """A message about a mutual-information term that is configured and that the objective does not have."""
    if find_objective(config.objective.name).has_mi_term:
        return []
    mine, defaults = flatten(config.mi), flatten(base().mi)
    unused = [f"config.mi.{key}={mine[key]}" for key in _CHOICES_OF_TERM if mine[key] != defaults[key]]
    return [
        f"objective {config.objective.name} has no mutual-information term: {', '.join(unused)} has no effect "
        "(--config.objective.name=cotmi has one)"
    ] * bool(unused)


def with_data_root(config: ConfigDict) -> ConfigDict:
    """A copy with absolute paths of data, extensions and initial checkpoint: the run is evaluated from any folder."""
    config = config.copy_and_resolve_references()
    config.extensions = with_absolute_files(config.extensions)
    config.data.dataset = with_absolute_paths(config.data.dataset)
    if any(spec.kind == "released" for spec in parse_dataset(config.data.dataset)):
        config.data.root = absolute(str(find_data_root(config.data.root or None)))
    config.data.rationale_weights = with_absolute_file(config.data.rationale_weights)
    if config.data.tfds_dir:
        config.data.tfds_dir = absolute(config.data.tfds_dir)
    if config.model.init != "random" and os.path.isdir(absolute(config.model.init)):
        config.model.init = absolute(config.model.init)
    return config


def eval_decoding(config: ConfigDict) -> Decoding:
    """The decoding of labels and rationales in evaluation."""
    return Decoding("greedy", max_tokens=config.eval.max_decode_tokens)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a training run needs before any device is touched."""

    config: ConfigDict
    vocabulary: Vocabulary
    student: StudentConfig
    initial: Params | Saved | None  # parameters, or the checkpoint that has them; None: random, or resumed
    objective: Objective
    data: RunData

    @classmethod
    def of(
        cls,
        config: ConfigDict,
        resumed: tuple[StudentConfig, Vocabulary] | None,
        process_rows: ProcessRows = ALL_ROWS,
        *,
        process: int = 0,
        processes: int = 1,
    ) -> "Experiment":
        """Read, check and tokenize everything the config names.

        `resumed`: student and vocabulary from the record of a run that resumes; its initial checkpoint is not read.
        """
        check_packing(config)
        objective = make_objective(config)
        vocabulary = resumed[1] if resumed else Vocabulary(find_vocabulary(config))
        student, initial = (resumed[0], None) if resumed else make_student(config, vocabulary)
        if isinstance(student, T5Config):
            student = with_execution(student, config.model)  # of a resumed run it may have changed
        data = RunData.of(config, vocabulary, process_rows, process=process, processes=processes, fresh=resumed is None)
        return cls(config, vocabulary, student, initial, objective, data)
