"""T5 students read from and written as Hugging Face checkpoints."""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import traverse_util
from safetensors import SafetensorError

from cotmi_jax.data.vocabulary import Vocabulary, check_fits
from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import copy_file, is_remote, make_folder, read_json
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.hf_config import config_from_hf, config_to_hf, head_is_embedding, stored_head_scale
from cotmi_jax.models.hf_names import EMBEDDING, EMBEDDING_COPIES, HEAD, OBSOLETE, Leaf, leaves
from cotmi_jax.models.hf_source import resolve_source
from cotmi_jax.models.hf_weights import SAFETENSORS, SAFETENSORS_INDEX, open_weights, stored_bytes
from cotmi_jax.models.torch_bin import StoredTensor

Params = dict[str, object]  # nested; leaves are arrays


def load_hf(source: str | Path, cache_dir: Path | None = None) -> tuple[T5Config, Params]:
    """Configuration and parameters (numpy, float32) of a checkpoint in a directory, in the cache or on the hub.

    The parameters have the tree of `StudentDef.of(config).shapes`. Raises UserError if the checkpoint is not found, is
    damaged, or does not compute the same function as this package's T5.
    """
    directory = resolve_source(source, cache_dir)
    file = directory / "config.json"
    fields = read_json(file, "give the directory of a Hugging Face checkpoint")
    config = config_from_hf(fields, str(file))
    with open_weights(directory) as tensors:
        _check_size(config, len(tensors), directory)
        if HEAD not in tensors and EMBEDDING in tensors and head_is_embedding(fields):
            tensors[HEAD] = tensors[EMBEDDING]
        if config.model_type == "umt5" and config.tied and _has_own_head(tensors):
            config = dataclasses.replace(config, tied=False)
            params = _to_params(tensors, leaves(config), config, directory)
            return config, params | {"head": np.asarray(params["head"]) / np.float32(stored_head_scale(config))}
        return config, _to_params(tensors, leaves(config), config, directory)


def save_hf(
    params: Mapping[str, object],
    config: T5Config,
    directory: Path,
    *,
    vocabulary_file: Path | None,
    card: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a checkpoint that transformers loads by its model type, and with AutoTokenizer the vocabulary if given.

    card: the content of README.md, if there is to be one.

    Weights are float32 safetensors, in several files if they exceed max_shard_bytes. The directory appears complete or
    not at all; in a bucket, config.json is written last, and without it the rest is not read. Raises UserError if the
    directory exists and is not empty, or if the vocabulary does not fit the config, and what `failures` lists.
    """
    files: dict[str, dict[str, object]] = {
        "config.json": config_to_hf(config),
        "generation_config.json": {
            "decoder_start_token_id": config.pad_id,
            "eos_token_id": config.eos_id,
            "pad_token_id": config.pad_id,
        },
    }
    contents: dict[str, bytes] = {} if card is None else {"README.md": card.encode()}
    if vocabulary_file is not None:
        vocabulary = Vocabulary(vocabulary_file)
        check_fits(vocabulary, vocab_size=config.vocab_size, pad_id=config.pad_id, eos_id=config.eos_id)
        contents |= vocabulary.exported(config.vocab_size, config.model_type)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not empty: give a new directory")
    make_folder(directory.parent)
    parent = None if is_remote(directory) else directory.parent  # the same file system, so that it can be renamed
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=parent) as scratch:
        staged = Path(scratch) / directory.name  # not scratch itself, which only its owner can read
        staged.mkdir()
        for name, fields in files.items():
            _write_json(staged / name, fields)
        for name, content in contents.items():
            (staged / name).write_bytes(content)
        _write_weights(params, leaves(config), stored_head_scale(config), staged, max_shard_bytes)
        if not is_remote(directory):
            os.rename(staged, directory)
            return
        for file in sorted(staged.iterdir(), key=lambda file: file.name == "config.json"):
            copy_file(file, directory / file.name)


def _check_size(config: T5Config, num_tensors: int, directory: Path) -> None:
    """Refuse a network that is larger than its weight files, before names or arrays of its size are made."""
    layers = config.num_encoder_layers + config.num_decoder_layers
    per_layer = 2 * config.d_model * (2 * config.num_heads * config.d_kv + config.d_ff)
    biases = (layers if config.model_type == "umt5" else 2) * config.relative_buckets * config.num_heads
    fewest = config.vocab_size * config.d_model + layers * per_layer + biases
    size = stored_bytes(directory)
    if layers > num_tensors or 2 * fewest > size:  # a parameter takes at least two bytes
        raise UserError(
            f"{directory}: config.json describes {layers} layers with {fewest:.2g} parameters or more, but the weight "
            f"files have {num_tensors} tensors in {size} bytes: they belong to different checkpoints"
        )


def _to_params(tensors: dict[str, StoredTensor], expected: list[Leaf], config: T5Config, directory: Path) -> Params:
    _check_names(tensors, {name: leaf.stored_shape for leaf in expected for name in leaf.names}, directory)
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for leaf in expected:
        parameter = np.empty(leaf.shape, np.float32)
        for layer, name in enumerate(leaf.names):
            parameter[layer if leaf.stacked else ...] = leaf.from_stored(tensors[name].read())
        flat[leaf.path] = parameter
    for name in (*EMBEDDING_COPIES, HEAD) if config.tied else EMBEDDING_COPIES:
        if name in tensors and not np.array_equal(tensors[name].read(), flat[("embedding",)]):
            why = "config.json ties the output to it" if name == HEAD else "a T5 has one embedding"
            raise UserError(f"{directory}: {name} differs from {EMBEDDING}, but {why}: this network is not supported")
    return traverse_util.unflatten_dict(flat)


def _has_own_head(tensors: dict[str, StoredTensor]) -> bool:
    """Whether the checkpoint's output matrix differs from its embedding."""
    if not {HEAD, EMBEDDING} <= tensors.keys() or tensors[HEAD].shape != tensors[EMBEDDING].shape:
        return False
    return not np.array_equal(tensors[HEAD].read(), tensors[EMBEDDING].read())


def _check_names(tensors: dict[str, StoredTensor], shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    """Compare names and shapes with those expected before any tensor is read. Raises UserError."""
    for complaint, names in (
        ("lacks", shapes.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - shapes.keys() - {*EMBEDDING_COPIES, HEAD, OBSOLETE}),
    ):
        if names:
            first = ", ".join(one_line(name) for name in sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{directory}: the checkpoint {complaint} {first}{more}: it is not the T5 that its config.json "
                "describes"
            )
    copies = (tensors.keys() & {*EMBEDDING_COPIES, HEAD}) - shapes.keys()
    shapes = shapes | dict.fromkeys(copies, shapes[EMBEDDING])
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{directory}: {name} has shape {shown(tensors[name].shape)}, but config.json implies {shape}"
            )


def _write_json(path: Path, fields: Mapping[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_weights(
    params: Mapping[str, object], expected: list[Leaf], scale: float, directory: Path, max_shard_bytes: int
) -> None:
    """Holds one shard in memory at a time; the output matrix is multiplied by scale.

    Raises OSError, and ValueError for parameters of another network.
    """
    mode = (directory / "config.json").stat().st_mode & 0o777  # that of the umask
    flat = traverse_util.flatten_dict(params)
    if scale != 1:
        flat[("head",)] = np.asarray(flat[("head",)], np.float32) * np.float32(scale)
    found = {path: np.shape(leaf) for path, leaf in flat.items()}
    if found != {leaf.path: leaf.shape for leaf in expected}:
        raise ValueError(f"parameters {found} are not those of the configuration")
    sizes = {name: 4 * math.prod(leaf.stored_shape) for leaf in expected for name in leaf.names}
    shards = _plan_shards(sizes, max_shard_bytes)
    stored = _stored(flat, expected)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SAFETENSORS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: next(stored) for name in names}
        try:
            safetensors.numpy.save_file(tensors, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:  # of a full disk too
            raise OSError(one_line(str(error))) from error
        os.chmod(directory / file, mode)  # only its owner can read what save_file writes
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(directory / SAFETENSORS_INDEX, index)


def _plan_shards(sizes: dict[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names of tensors by shard, in order; a tensor above the limit has its own shard."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _stored(flat: dict[tuple[str, ...], object], expected: list[Leaf]) -> Iterator[np.ndarray]:
    """The tensors of the checkpoint, by leaf, then by layer."""
    for leaf in expected:
        parameter = np.asarray(flat[leaf.path], np.float32)
        for layer in range(len(leaf.names)):
            yield leaf.to_stored(parameter[layer] if leaf.stacked else parameter)
