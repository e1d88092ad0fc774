"""Shape and execution options of a T5; presets of both published families."""

import dataclasses
from typing import Literal, Protocol

from ml_collections import ConfigDict

from cotmi_jax.errors import UserError, shown

Remat = Literal["auto", "none", "dots", "full"]
AttentionForm = Literal["auto", "plain", "blocked", "kernel"]
ModelType = Literal["t5", "mt5", "umt5"]
FAMILIES = ("v1.0", "v1.1")
PRESETS = ("tiny", "mini", "small", "base", "large", "xl", "xxl")

# d_model, d_kv, d_ff, layers of each stack, heads. small…xxl are the published sizes (Raffel et al. 2020, section 3.7;
# v1.1 release notes), where v1.0 calls its xl and xxl "3b" and "11b". tiny and mini are this project's own, for CPUs.
_SHAPES: dict[str, dict[str, tuple[int, int, int, int, int]]] = {
    "v1.0": {
        "tiny": (128, 16, 512, 2, 8),
        "mini": (256, 64, 1024, 4, 4),
        "small": (512, 64, 2048, 6, 8),
        "base": (768, 64, 3072, 12, 12),
        "large": (1024, 64, 4096, 24, 16),
        "xl": (1024, 128, 16384, 24, 32),
        "xxl": (1024, 128, 65536, 24, 128),
    },
    "v1.1": {
        "tiny": (128, 16, 256, 2, 8),
        "mini": (256, 64, 640, 4, 4),
        "small": (512, 64, 1024, 8, 6),
        "base": (768, 64, 2048, 12, 12),
        "large": (1024, 64, 2816, 24, 16),
        "xl": (2048, 64, 5120, 24, 32),
        "xxl": (4096, 64, 10240, 24, 64),
    },
}
_TOO_LARGE = 2**31
T5_VOCAB_SIZE = 32128  # 32,000 pieces and 100 sentinels, padded to a multiple of 128 by the published checkpoints


class StudentConfig(Protocol):
    """The fields of a student's config, a frozen dataclass, that are read for every network."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def dropout(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 student. The first block determines the function it computes, the second how it is executed."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_epsilon: float = 1e-6
    gated: bool = True  # gated tanh-gelu (v1.1, Flan) or relu (v1.0)
    tied: bool = False  # output embedding = input embedding, logits scaled by d_model^-1/2 (v1.0)
    pad_id: int = 0  # also the decoder's start token
    eos_id: int = 1
    # transformers' name of the network, under which it is exported. mt5 computes what t5 does; a umt5 (Chung et al.
    # 2023, UniMax) has a position bias in every layer, where the others have one in each stack.
    model_type: ModelType = "t5"

    dropout: float = 0.1  # probability, used only when a dropout key is given
    dtype: str = "float32"  # of activations and matmuls; parameters, norms, softmax and logits stay float32
    scan_layers: bool = True  # one compiled layer in a loop; False unrolls: slower to compile, often faster to run
    remat: Remat = "auto"  # what the backward pass recomputes (models/remat.py)
    attention: AttentionForm = "auto"  # how attention is computed (models/attention.py); its result is the same

    def __post_init__(self) -> None:
        """Raises UserError for sizes that no network has, which would fail, or ask for any memory, when it is built."""
        for field in dataclasses.fields(self):
            value, lowest = getattr(self, field.name), 0 if field.name.endswith("_id") else 1
            if type(value) is int and not lowest <= value < _TOO_LARGE:
                raise UserError(f"{field.name} is {shown(value)}: it must be at least {lowest} and below 2^31")
        for name, value in (("pad_id", self.pad_id), ("eos_id", self.eos_id)):
            if value >= self.vocab_size:
                raise UserError(f"{name} is {value}: it must be below vocab_size {self.vocab_size}")
        if not self.relative_max_distance > self.relative_buckets // 2 > 1:
            raise UserError(
                f"relative_max_distance is {self.relative_max_distance}: it must be more than half of relative_buckets "
                f"{self.relative_buckets}, which must be at least 4"
            )
        for name, value in (("norm_epsilon", self.norm_epsilon), ("dropout", self.dropout)):
            if not 0.0 <= value < 1.0:
                raise UserError(f"{name} is {value}: it must be at least 0 and below 1")

    @property
    def layer_position_bias(self) -> bool:
        """Whether every self-attention layer has its own position bias."""
        return self.model_type == "umt5"


def preset(name: str, family: str = "v1.1", *, vocab_size: int = T5_VOCAB_SIZE) -> T5Config:
    """Configuration of a named size in family "v1.0" or "v1.1". Raises UserError for unknown names."""
    if family not in FAMILIES:
        raise UserError(f"unknown T5 family {family!r}: choose one of {', '.join(FAMILIES)}")
    if name not in PRESETS:
        raise UserError(f"unknown T5 preset {name!r}: choose one of {', '.join(PRESETS)}")
    d_model, d_kv, d_ff, layers, heads = _SHAPES[family][name]
    return T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_kv,
        d_ff=d_ff,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        gated=family == "v1.1",
        tied=family == "v1.0",
    )


def with_execution(student: T5Config, model: ConfigDict) -> T5Config:
    """The student with the execution options of config.model; its parameters are unchanged."""
    return dataclasses.replace(
        student,
        dropout=model.dropout,
        dtype=model.dtype,
        scan_layers=model.scan_layers,
        remat=model.remat,
        attention=model.attention,
    )
