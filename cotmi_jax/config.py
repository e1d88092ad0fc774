"""The configuration of a run: every key with its unit, the checks across keys, and the CPU-size `smoke` variant."""

import operator
import re
from typing import Any, get_args

from ml_collections import ConfigDict

from cotmi_jax.data.grammar import parse_dataset
from cotmi_jax.data.rationale_answer import RATIONALE_ANSWERS
from cotmi_jax.data.sources.row_format import parse_fields
from cotmi_jax.data.tokenize import TOO_LONG
from cotmi_jax.data.vocabulary import is_own, parse_own
from cotmi_jax.errors import UserError, shown
from cotmi_jax.models.config import AttentionForm, Remat


def base() -> ConfigDict:
    """The papers' common set-up (MI paper, section 4; T5 v1.1 base), from which recipes in configs/ start.

    Each call gives a fresh ConfigDict; it is locked, so that a misspelt key is an error.
    """
    config = ConfigDict()
    config.seed = 0  # of parameters, dropout, order of the data and subsampling
    config.steps = 10_000  # optimizer steps
    # The user's modules that register objectives, estimators and the like (docs/extending.md), separated by commas:
    # Python files, or importable names. A recipe that registers extensions sets config.extensions = __file__.
    config.extensions = ""
    config.batch_size = 64  # examples a step, over all devices
    # Micro-batches that a batch is split into; they run in sequence to save memory, and the loss is unchanged.
    config.micro_batches = 1

    config.data = _data()
    config.model = _model()
    config.objective = ConfigDict()
    # standard, single_task, dss or cotmi; predict: standard with the prefix of dss. No term of cotmi outperforms dss in
    # the comparison of docs/mutual_information.md.
    config.objective.name = "dss"
    config.objective.alpha = 0.5  # weight of the label task; the rationale task gets 1 − alpha
    # alpha by phase, "ALPHA@END" with ends as fractions of the steps, as 1@0.2,0.5@0.8,0@1: labels, both tasks,
    # rationales; "": constant. Evaluation, and eval.select_by loss, take alpha (docs/weights.md).
    config.objective.alpha_schedule = ""
    config.objective.beta = 0.1  # weight of the mutual-information term
    config.objective.token_loss = "cross_entropy"  # or one that a module of config.extensions registers
    config.mi = _mi()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or adafactor
    config.optimizer.learning_rate = 5e-5  # maximum of the schedule
    config.optimizer.schedule = "linear"  # decay to 0 at the last step: linear or cosine; or constant
    config.optimizer.warmup_steps = 0  # steps of linear increase before the decay
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0  # global gradient norm; 0: no clipping
    config.optimizer.beta1 = 0.9  # adamw
    config.optimizer.beta2 = 0.999  # adamw

    config.eval = ConfigDict()
    config.eval.every = 250  # steps between evaluations on the valid split; 0: never
    config.eval.examples = 0  # examples of the valid split that are used; 0: all
    config.eval.batch_size = 64  # examples, over all devices
    # What the best student on valid is the best by: accuracy, or the loss of labels where it ties; label_loss, that
    # loss; loss, the cross-entropies of labels and rationales weighted as in training; or log_score, of sets whose
    # examples have choices: the log-probability of the gold label among them at the best temperature
    # (docs/evaluation.md compares them).
    config.eval.select_by = "accuracy"
    config.eval.metrics = ""  # registered metrics besides accuracy, separated by commas
    # The first examples of valid whose rationales are generated too, for the metrics that read rationales; 0: none.
    config.eval.rationales = 64
    config.eval.max_decode_tokens = 64  # maximal number of generated tokens (greedy decoding)

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 250  # steps between checkpoints; the last step is always saved
    config.checkpoint.keep = 2  # latest checkpoints kept, in addition to the best by eval.select_by on the valid split

    config.log = ConfigDict()
    config.log.every = 50  # steps between lines of training metrics
    # Where metrics and texts go besides metrics.jsonl: tensorboard, wandb, mlflow or registered ones, separated by
    # commas; "": nowhere.
    config.log.trackers = "tensorboard"
    config.log.project = "cotmi_jax"  # W&B project, MLflow experiment
    config.log.examples = 4  # valid examples whose outputs are logged as text at each evaluation; 0: none

    config.profile = ""  # steps traced for TensorBoard's profiler, such as 10-15 (both included), or 10; "": none
    # Folder of compiled programs, may be gs://; "": JAX_COMPILATION_CACHE_DIR, else xla in $COTMI_CACHE or
    # ~/.cache/cotmi_jax; none: compile at each start.
    config.compilation_cache = ""

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices over which only the batch is sharded; -1: all that fsdp and tensor leave
    config.mesh.fsdp = 1  # devices over which batch and parameters are sharded
    config.mesh.tensor = 1  # devices over which heads, mlp and vocabulary are sharded
    return config.lock()


def _data() -> ConfigDict:
    """Data sets, their labels and rationales, and how they become batches."""
    data = ConfigDict()
    # arithmetic deduction svamp cqa esnli anli1 jsonl:PATH csv:PATH tsv:PATH parquet:PATH hf:NAME_OR_PATH tfds:NAME, or
    # several with their weights in the training stream: "svamp=3,arithmetic=1" (docs/data.md)
    data.dataset = "cqa"
    data.root = ""  # folder of the release, may be gs://; "": $COTMI_DATA_ROOT
    data.teacher = "palm"  # palm, or gpt-neox for the release's second teacher
    data.align = "strict"  # rows and completions must be equally many; prefix: use the rows that have both
    data.augment_asdiv = False  # add ASDiv to SVAMP's train split
    data.subsample = 1.0  # fraction of the train split kept, drawn with the seed
    # Of sets without a valid split, what a tenth of train is drawn of: example, as in DSS; or cluster, so that examples
    # that share a premise or a story are all in one split.
    data.split_by = "example"
    data.bad_rows = "error"  # or skip: leave out rows that cannot be used, count and report them
    data.empty_rationale = "error"  # or drop: leave out such train examples; keep: train on their label alone
    # Identical rationales of an example: each is used in turn; weight: merge them into one, weighted by their number.
    data.duplicate_rationales = "keep"
    # Factors of the weights of train rationales: uniform; correct: 0 where the teacher's label is not the gold one; or
    # jsonl:PATH, a file of one weight for each id, as `weigh` writes it (docs/weights.md).
    data.rationale_weights = "uniform"
    # Weights of the tokens of train rationales, separated by commas: given, those of the rows' field token_weights;
    # numbers=W; answer=W, of the answer that rationale_answer keeps or appends; "": all 1 (docs/weights.md).
    data.token_weights = ""
    # The answer in the target of the rationale task: cut, as in DSS; keep: the teacher's sentence stays; append: "So
    # the answer is X" with the teacher's label X (docs/data.md). mi.estimator consistency needs keep or append.
    data.rationale_answer = "cut"
    # Of your own rows (jsonl csv tsv parquet hf): the columns that hold input, label, rationale, weight, teacher_label
    # and id, where they have other names: "input=question,label=answer"
    data.fields = ""
    data.labels = ""  # labels that your own rows may have, separated by commas; "": any
    data.label_kind = "text"  # how labels of your own rows are compared: as text, or equation: by value
    data.tfds_dir = ""  # sets prepared by TensorFlow Datasets, may be gs://; "": $TFDS_DATA_DIR or its default
    data.size = 16_000  # train examples of a generated set (arithmetic, deduction)
    data.version = 1  # of a generated set. arithmetic: 1 has numbers and results up to 99; 2 up to 16 and 24
    data.label_type = "gt"  # train on gold labels, or llm: on the teacher's
    # SentencePiece file, tokenizer.json, or bytes (ByT5's); "": that of the model.init checkpoint, else that of the
    # generated set, else {root}/t5/spiece.model. own:4000: that many pieces, trained on the train rows and cached; for
    # random parameters.
    data.vocabulary = ""
    data.max_input_tokens = 1024  # including eos
    data.max_target_tokens = 256  # including eos
    data.too_long = "cut"  # cut longer sequences; skip: leave out their train examples; or error
    data.packing = True  # several examples and both tasks in a row; False: an example a row, padded
    data.cache = ""  # folder of prepared tokens; "": $COTMI_CACHE, else ~/.cache/cotmi_jax; none: in memory
    return data


def _model() -> ConfigDict:
    """The student."""
    model = ConfigDict()
    model.network = "t5"  # or the name of a network that a module of config.extensions registers
    model.preset = "base"  # tiny mini small base large xl xxl; not used if init names a checkpoint
    model.family = "v1.1"  # v1.0 or v1.1; not used if init names a checkpoint
    model.vocab_size = 0  # embeddings; 0: 32128, or the vocabulary's own size where that is smaller than 32000
    # or a Hugging Face directory or hub name of a T5, Flan-T5, mT5, ByT5 or UMT5, e.g. google/t5-v1_1-base, or the
    # workdir of a run: its best checkpoint
    model.init = "random"
    model.dropout = 0.1  # probability
    model.dtype = "float32"  # of activations: float32 or bfloat16
    model.scan_layers = True  # compile one layer and loop; False compiles each: on a CPU faster, with more memory
    # How attention is computed: auto, plain, blocked (blocks of queries) or kernel (one fused kernel); same result.
    model.attention = "auto"
    # What the backward pass recomputes: none, dots (all but matmuls with parameters and the context of attention), full
    # (all of a layer); auto: dots, but none on a CPU for students below 10 million parameters or without scan_layers.
    model.remat = "auto"
    return model


def _mi() -> ConfigDict:
    """The mutual-information term of cotmi; `monitor` serves dss as well."""
    mi = ConfigDict()
    # With a critic: infonce nwj tuba interpolated dv mine js smile. Without: barber_agakov, with a network for q(z|v)
    # barber_agakov_head or barber_agakov_gaussian; released: the loss of the paper's code, with its defects;
    # consistency: the answer of the label task against the one that its rationale states (data.rationale_answer).
    # conditional: mi.bound within each example, over its own and mi.counterfactuals other pairs of label and rationale.
    mi.estimator = "infonce"
    mi.bound = "infonce"  # estimator with a critic that conditional applies within each example
    mi.counterfactuals = 1  # of each rationale, at most: conditional contrasts one more pair, its own
    # decoder_mean decoder_attention decoder_max encoder_mean vocab_max vocab_mean; "": decoder_mean, or vocab_max for
    # the estimators of distributions over the vocabulary.
    mi.feature = ""
    mi.detach = "z"  # side that gets no gradient: z (label), v (rationale) or none
    mi.distance = "cross_entropy"  # consistency: or symmetric_kl, js (Jensen–Shannon), nats
    mi.placebo = False  # for studies: each label is paired with the rationale of another example, drawn at each step
    mi.axis = "row"  # infonce contrasts each z with all v; column: each v with all z; symmetric: both
    mi.alpha = 0.01  # interpolated: 0 is tuba, 1 infonce
    mi.tau = 5.0  # smile: clip of negative scores, nats
    mi.decay = 0.99  # mine: decay per step of the moving average of the partition function
    # Log, with the other metrics, mi_grad_share: norm of the gradient of the term over that of the cross-entropies. It
    # takes about the time of two more steps.
    mi.log_gradient = False
    mi.settings = ""  # settings of an estimator of config.extensions: "name=value", separated by commas
    mi.learning_rate = 1e-3  # of the term's networks (Adam, constant, outside optimizer.clip_norm)
    mi.warmup_steps = 500  # steps without the term; only a critic is trained. For estimators with one, and consistency
    mi.ramp_steps = 500  # steps of linear increase of objective.beta after the warm-up; for the same estimators
    mi.critic = ConfigDict()
    mi.critic.name = "separable"  # or bilinear concat hybrid quadratic
    mi.critic.hidden = 256  # width of hidden layers
    mi.critic.layers = 2  # hidden layers
    mi.critic.dim = 64  # width of the codes that are multiplied
    mi.critic.dropout = 0.0  # probability
    mi.critic.clamp = 20.0  # soft limit of the absolute value of scores, nats; 0: no limit
    mi.critic.normalization = "layer"  # of each feature vector to mean 0 and variance 1, or none
    mi.compression = ConfigDict()
    mi.compression.name = "none"  # or club, variational: an upper bound of I(X;Z) is added to the loss
    mi.compression.weight = 0.001  # coefficient of that bound
    mi.monitor = ConfigDict()
    mi.monitor.every = 1000  # steps between measurements of I(Z;V), I(X;Z) and I(Z;Y) on valid; 0: never
    mi.monitor.estimators = "infonce"  # estimators of I(Z;V), separated by commas
    mi.monitor.examples = 4096  # maximal number of held-out examples, drawn with the seed
    mi.monitor.steps = 500  # optimizer steps of a fit, at most
    mi.monitor.pairs = 128  # pairs that are contrasted at a time
    return mi


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe at a size that a CPU runs in a minute: tiny random student, a few steps, one evaluation."""
    config.steps = 4
    config.batch_size = 8
    config.data.size = 64
    config.model.preset = "tiny"
    config.model.init = "random"
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 1)
    config.mi.warmup_steps = 0
    config.mi.ramp_steps = min(config.mi.ramp_steps, 1)
    config.mi.critic.hidden = 32
    config.mi.monitor.every = 4
    config.mi.monitor.examples = 64
    config.mi.monitor.pairs = 8
    config.mi.monitor.steps = 50
    config.eval.every = 4
    config.eval.examples = 16
    config.eval.batch_size = 8
    config.eval.rationales = 8
    config.eval.max_decode_tokens = 8
    config.checkpoint.every = 2
    config.log.every = 1
    return config


def variant(config: ConfigDict, arg: str) -> ConfigDict:
    """Apply the part after the colon of --config=recipe.py:arg. Raises UserError for anything but smoke."""
    if arg not in ("", "smoke"):
        raise UserError(f"unknown config variant {arg!r}: recipes take :smoke, or nothing")
    return smoke(config) if arg else config


_LOWEST = {
    1: (
        *("steps", "batch_size", "micro_batches", "checkpoint.every", "checkpoint.keep", "log.every", "data.size"),
        *("eval.batch_size", "eval.max_decode_tokens", "data.max_input_tokens", "data.max_target_tokens"),
        *("mi.critic.hidden", "mi.critic.layers", "mi.critic.dim", "mi.monitor.examples", "mi.monitor.steps"),
        "mi.counterfactuals",
    ),
    0: (
        *(
            "eval.every",
            "eval.examples",
            "eval.rationales",
            "log.examples",
            "model.vocab_size",
            "optimizer.warmup_steps",
        ),
        *("mi.warmup_steps", "mi.ramp_steps", "mi.monitor.every"),
    ),
    2: ("mi.monitor.pairs",),
}
# Of keys that say how much memory is taken, whatever the data: more than any run uses, less than breaks a machine.
_HIGHEST = {
    2**20: ("batch_size", "eval.batch_size", "eval.max_decode_tokens", "mi.critic.hidden", "mi.critic.dim"),
    2**10: ("mi.critic.layers",),
    2**6: ("mi.counterfactuals",),
    2**24: ("data.size",),
}
_MAX_GENERATED = 2**26


def check_sizes(config: ConfigDict) -> None:
    """Raises UserError for a number out of its range."""
    flat = flatten(config)
    for bounds, exceeds, word in ((_LOWEST, operator.lt, "least"), (_HIGHEST, operator.gt, "most")):
        for bound, keys in bounds.items():
            for key in keys:
                if exceeds(flat[key], bound):
                    raise UserError(f"config.{key} is {shown(flat[key])}: it must be at {word} {bound}")
    if config.eval.batch_size * config.eval.max_decode_tokens > _MAX_GENERATED:
        raise UserError(f"config.eval.batch_size times max_decode_tokens must be at most {_MAX_GENERATED}")


def validate(config: ConfigDict) -> None:
    """Checks that need no data and no device. Raises UserError naming the keys and their values."""
    check_sizes(config)
    flat = flatten(config)
    if not 0 <= config.seed < 2**32:  # jax.random.key takes a seed modulo 2³²
        raise UserError(f"config.seed is {config.seed}: it must be at least 0 and below 2^32")
    if config.batch_size % config.micro_batches:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of config.micro_batches {config.micro_batches}"
        )
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps {config.optimizer.warmup_steps} must be below config.steps {config.steps}"
        )
    if not 0.0 <= config.model.dropout < 1.0:
        raise UserError(f"config.model.dropout is {config.model.dropout}: it must be a probability below 1")
    choices = {"model.dtype": ("float32", "bfloat16"), "model.remat": get_args(Remat)}
    choices |= {
        "data.too_long": TOO_LONG,
        "data.rationale_answer": RATIONALE_ANSWERS,
        "eval.select_by": ("accuracy", "label_loss", "loss", "log_score"),
        "model.attention": get_args(AttentionForm),
    }
    for key, allowed in choices.items():
        if flat[key] not in allowed:
            raise UserError(f"config.{key} is {flat[key]!r}: choose one of {', '.join(allowed)}")
    profiled_steps(config)
    parse_fields(config.data.fields)
    if is_own(config.data.vocabulary):
        parse_own(config.data.vocabulary)
    if config.data.augment_asdiv and all(spec.written != "svamp" for spec in parse_dataset(config.data.dataset)):
        raise UserError(f"config.data.augment_asdiv needs config.data.dataset svamp, not {config.data.dataset!r}")


def profiled_steps(config: ConfigDict) -> range:
    """The steps that config.profile names, counted from 1; empty if it is "". Raises UserError if it is malformed."""
    if not config.profile:
        return range(0)
    match = re.fullmatch(r"([1-9]\d*)(?:-(\d+))?", config.profile)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise UserError(f"config.profile is {config.profile!r}: give a step or first-last, such as 10-15, or nothing")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def check_batches(config: ConfigDict, shards: int) -> None:
    """Raises UserError where a batch does not split evenly over the mesh."""
    for key, size in (
        ("batch_size / micro_batches", config.batch_size // config.micro_batches),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % shards:
            raise UserError(
                f"config.{key} is {size}, which does not divide over the {shards} devices of mesh data × fsdp"
            )


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key → value (a number, a bool or a string), in order."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


# Keys, and prefixes of keys, that may change when a run resumes: they change no result.
RESUMABLE_KEYS = (
    "data.root",
    "data.tfds_dir",
    "data.vocabulary",
    "data.cache",
    "eval.metrics",
    "eval.rationales",
    "checkpoint.",
    "log.",
    "mesh.",
    "mi.monitor.",
    "mi.log_gradient",
    "model.attention",
    "model.remat",
    "profile",
    "compilation_cache",
)


# Keys, and prefixes of keys, of the mutual-information term: they have no effect on an objective without it.
TERM_KEYS = ("mi.", "objective.beta")


# Keys that may differ between processes of a run: places on their hosts. The content of extensions must be the same.
_BY_HOST = ("data.root", "data.tfds_dir", "data.vocabulary", "data.cache", "compilation_cache", "extensions")


def shared_settings(config: ConfigDict) -> dict[str, Any]:
    """The values, by dotted key, that must be the same in all processes of a run."""
    return {key: value for key, value in flatten(config).items() if key not in _BY_HOST}


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """The changed keys, as "key: old → new", that a run may not change when it resumes.

    With a constant learning rate a run may be extended: nothing before its last step depends on the number of steps,
    unless a schedule of alpha does.
    """
    before, after = flatten(old), flatten(new)
    extensible = new.optimizer.schedule == "constant" and not new.objective.alpha_schedule
    if extensible and after["steps"] > before["steps"]:
        before["steps"] = after["steps"]
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(RESUMABLE_KEYS)
    ]
