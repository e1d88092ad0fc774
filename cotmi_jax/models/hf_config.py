"""T5Config ↔ the `config.json` of Hugging Face transformers (T5 v1.0, v1.1, Flan, ByT5, mT5, UMT5).

No field is ignored silently: each one is read, must have a fixed value, is in the list of those that do not affect the
function computed, or is an error.
"""

from collections.abc import Iterable, Mapping
from typing import cast

from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.models.config import ModelType, T5Config

Fields = Mapping[str, object]

_READ = frozenset(
    "model_type vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets"
    " relative_attention_max_distance layer_norm_epsilon dropout_rate feed_forward_proj dense_act_fn is_gated_act"
    " tie_word_embeddings scale_decoder_outputs pad_token_id eos_token_id decoder_start_token_id"
    " transformers_version".split()
)
_FIXED: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Initialization, storage, bookkeeping, other heads, and defaults of decoding. Fields that start with an underscore are
# bookkeeping too.
_WITHOUT_EFFECT = frozenset(
    "architectures bos_token_id chunk_size_feed_forward classifier_dropout cross_attention_hidden_size dtype"
    " finetuning_task gradient_checkpointing id2label initializer_factor initializer_range label2id n_positions"
    " name_or_path num_labels output_attentions output_hidden_states output_past prefix problem_type return_dict"
    " scalable_attention sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript"
    " use_bfloat16 use_cache bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping"
    " encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id"
    " length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams"
    " num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate"
    " suppress_tokens temperature top_k top_p typical_p".split()
)
_ACTIVATIONS = {"relu": ("relu", False), "gated-gelu": ("gelu_new", True)}  # name → dense_act_fn, is_gated_act
_DEFAULT_ACTIVATION: dict[ModelType, str] = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}
_CLASSES: dict[ModelType, str] = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
_RELEASE = "5.0.0"  # of transformers, by whose rules an exported umt5 is scaled


class _Reader:
    """Typed access to the fields, with error messages of one form."""

    def __init__(self, fields: Fields, file: str):
        self.fields, self.file = fields, file

    def refuse(self, name: str, why: str) -> UserError:
        value = shown(self.fields[name]) if name in self.fields else "missing"
        return UserError(f"{self.file}: {one_line(name)} = {value}: {why}")

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.fields.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**31:
            raise self.refuse(name, f"must be a whole number of at least {minimum}, below 2^31")
        return value

    def number(self, name: str, default: float, below: float) -> float:
        value = self.fields.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < below:
            raise self.refuse(name, f"must be a number in [0, {below:g})")
        return float(value)

    def choice(self, name: str, default: str | None, choices: Iterable[str]) -> str:
        value = self.fields.get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(name, f"only {' and '.join(choices)} are supported")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.fields.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, "must be true or false")
        return value


def config_from_hf(fields: Fields, file: str = "config.json") -> T5Config:
    """Configuration of the network that `fields`, the contents of `file`, describe; execution settings are defaults.

    Fields left out have the defaults of transformers' T5Config or MT5Config, except those of the size, which must be
    there. Raises UserError with file, field and value if this package's T5 does not compute the same function.
    """
    read = _Reader(fields, file)
    model_type = _check_names(read)
    num_layers = read.integer("num_layers")
    decoder_layers = "num_layers" if fields.get("num_decoder_layers") is None else "num_decoder_layers"
    buckets, max_distance = _relative_attention(read)
    vocab_size = read.integer("vocab_size")
    pad_id = read.integer("pad_token_id", 0, minimum=0)
    eos_id = read.integer("eos_token_id", 1, minimum=0)
    for name, token in (("pad_token_id", pad_id), ("eos_token_id", eos_id)):
        if token >= vocab_size:
            raise read.refuse(name, f"must be below vocab_size ({vocab_size})")
    if fields.get("decoder_start_token_id") not in (None, pad_id):
        raise read.refuse("decoder_start_token_id", f"only pad_token_id ({pad_id}) is supported as the start token")
    epsilon = read.number("layer_norm_epsilon", 1e-6, below=1)
    return T5Config(
        vocab_size=vocab_size,
        d_model=read.integer("d_model"),
        d_kv=read.integer("d_kv"),
        d_ff=read.integer("d_ff"),
        num_encoder_layers=num_layers,
        num_decoder_layers=read.integer(decoder_layers),
        num_heads=read.integer("num_heads"),
        relative_buckets=buckets,
        relative_max_distance=max_distance,
        norm_epsilon=epsilon,
        model_type=model_type,
        gated=_gated(read),
        tied=_scaled(read),
        pad_id=pad_id,
        eos_id=eos_id,
        dropout=read.number("dropout_rate", 0.1, below=1),
    )


def head_is_embedding(fields: Fields) -> bool:
    """Whether a checkpoint without an output matrix uses the input embedding, unscaled (unlike `T5Config.tied`).

    transformers 5 saves a network of family v1.1 this way if it initialized it. `fields` have passed config_from_hf.
    """
    return fields.get("tie_word_embeddings") is True and not _scaled(_Reader(fields, "config.json"))


def stored_head_scale(config: T5Config) -> float:
    """Factor of the output matrix in an exported checkpoint.

    transformers 5 multiplies the states of every umt5 by d_model^-1/2, whether its output matrix is the embedding or
    not. Release 4 does not where it is not: the same file gives logits of another temperature there, and the same
    greedy texts.
    """
    return config.d_model**0.5 if config.model_type == "umt5" and not config.tied else 1.0


def config_to_hf(config: T5Config) -> dict[str, object]:
    """The `config.json` from which transformers 5 builds the network of the same function; so does 4 but for a umt5."""
    release = {"transformers_version": _RELEASE} if config.model_type == "umt5" else {}
    return release | {
        "architectures": [_CLASSES[config.model_type]],
        "d_ff": config.d_ff,
        "d_kv": config.d_kv,
        "d_model": config.d_model,
        "decoder_start_token_id": config.pad_id,
        "dropout_rate": config.dropout,
        "eos_token_id": config.eos_id,
        "feed_forward_proj": "gated-gelu" if config.gated else "relu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": config.norm_epsilon,
        "model_type": config.model_type,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "pad_token_id": config.pad_id,
        "relative_attention_max_distance": config.relative_max_distance,
        "relative_attention_num_buckets": config.relative_buckets,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
    }


def _check_names(read: _Reader) -> ModelType:
    """The type of the network."""
    model_type = read.choice("model_type", None, _DEFAULT_ACTIVATION)
    for name, value in read.fields.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise read.refuse(name, f"only {_FIXED[name][0]!r} is supported")
        if name not in _READ | _FIXED.keys() | _WITHOUT_EFFECT and not name.startswith("_"):
            raise read.refuse(name, "unknown field: remove it if the network's output does not depend on it")
    return cast(ModelType, model_type)


def _relative_attention(read: _Reader) -> tuple[int, int]:
    buckets = read.integer("relative_attention_num_buckets", 32, minimum=4)
    max_distance = read.integer("relative_attention_max_distance", 128)
    if max_distance <= buckets // 2:  # log(max_distance / exact buckets) in relative_buckets must be positive
        raise read.refuse(
            "relative_attention_max_distance", f"must be more than half of relative_attention_num_buckets ({buckets})"
        )
    return buckets, max_distance


def _gated(read: _Reader) -> bool:
    default = _DEFAULT_ACTIVATION[cast(ModelType, read.fields["model_type"])]
    name = read.choice("feed_forward_proj", default, _ACTIVATIONS)
    function, gated = _ACTIVATIONS[name]
    # In transformers these two override feed_forward_proj if a file has them.
    if read.fields.get("dense_act_fn", function) != function:
        raise read.refuse("dense_act_fn", f"contradicts feed_forward_proj {name!r}, which implies {function!r}")
    if read.flag("is_gated_act", gated) != gated:
        raise read.refuse("is_gated_act", f"contradicts feed_forward_proj {name!r}")
    return gated


def _release(read: _Reader) -> int:
    """The major version of the transformers that wrote the file; 0: not stated."""
    version = read.fields.get("transformers_version", "")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    return int(major) if major.isdecimal() and len(major) <= 3 else 0


def _scaled(read: _Reader) -> bool:
    """Whether decoder states are scaled by d_model^-1/2 before the output matrix, which is then the embedding.

    Up to transformers 4, tie_word_embeddings implies the scale. From 5 on, every file has tie_word_embeddings true; T5
    has a separate field for the scale, mT5 is not scaled, and UMT5 always is.
    """
    model_type, release = read.fields["model_type"], _release(read)
    if model_type == "t5":
        return read.flag("scale_decoder_outputs", read.flag("tie_word_embeddings", True))
    tied = read.flag("tie_word_embeddings", model_type == "umt5")
    if model_type == "umt5":
        return tied or release >= 5
    if tied and release < 5:
        raise read.refuse("tie_word_embeddings", "releases of transformers disagree on scaling a tied mt5's output")
    return False
