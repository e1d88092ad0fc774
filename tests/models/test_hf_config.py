"""Reading and writing config.json, and the fields that are refused."""

import json

import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.hf_config import config_from_hf, config_to_hf

V10 = {"model_type": "t5", "vocab_size": 13, "d_model": 6, "d_kv": 2, "d_ff": 5, "num_layers": 2, "num_heads": 3}
V11 = V10 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1}


def test_published_families_are_read() -> None:
    old = config_from_hf(V10 | {"n_positions": 512, "output_past": True, "task_specific_params": {"a": 1}})
    assert (old.gated, old.tied, old.num_decoder_layers) == (False, True, 2)  # as in files of the first releases
    assert (old.relative_buckets, old.relative_max_distance, old.norm_epsilon, old.dropout) == (32, 128, 1e-6, 0.1)
    new = config_from_hf(V11 | {"dense_act_fn": "gelu_new", "is_gated_act": True, "_name_or_path": "x"})
    assert (new.gated, new.tied, new.num_encoder_layers, new.num_decoder_layers) == (True, False, 2, 1)
    v5 = config_from_hf(V11 | {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert v5 == new
    multilingual = V10 | {"model_type": "mt5"}
    assert config_from_hf(multilingual | {"tie_word_embeddings": True, "transformers_version": "5.23.0"}).gated
    assert not config_from_hf(multilingual | {"tie_word_embeddings": True, "transformers_version": "5.0"}).tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_written_configuration_is_read_back(tied: bool) -> None:
    config = T5Config(13, 6, 2, 5, 2, 3, 4, 8, 16, 1e-5, gated=not tied, tied=tied, pad_id=3, eos_id=2, dropout=0.2)
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "longt5"}, "model_type = 'longt5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj = 'gelu'"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu'"),
        ({"is_gated_act": False}, "is_gated_act = False"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id = 2"),
        ({"pad_token_id": None}, "pad_token_id = None"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id = \[1, 2\]"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder = True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = "),
        ({"quantization_config": {"bits": 8}}, "quantization_config = "),
        ({"rope_theta": 1e4}, "rope_theta = 10000.0"),
        ({"d_model": None}, "d_model = None"),
        ({"d_model": "6"}, "d_model = '6'"),
        ({"num_heads": True}, "num_heads = True"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"dropout_rate": 1.0}, "dropout_rate = 1.0"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets = 2"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance = 16"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'"),
        ({"model_type": "mt5", "tie_word_embeddings": True}, "tie_word_embeddings = True"),
    ],
)
def test_unsupported_fields_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=f"^some/config.json: {named}") as raised:
        config_from_hf(V11 | changes, "some/config.json")
    assert "\n" not in str(raised.value)


def test_fields_of_the_size_have_no_default() -> None:
    for name in ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        with pytest.raises(UserError, match=f"{name} = missing"):
            config_from_hf({key: value for key, value in V11.items() if key != name})
