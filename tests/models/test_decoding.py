"""Generation: cache, greedy, sampling, beam search. Oracles: teacher forcing, numpy, and transformers' generate."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_cached_logits_equal_teacher_forcing, numpy_params, random_ids, small_config

from cotmi_jax.errors import UserError
from cotmi_jax.models.decoding import Decoding, Generated, filter_logits, generate, top_k
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef

LENGTHS = (9, 3, 1, 6, 4, 9, 2, 7)  # of the sources, padded to 9
MAX_TOKENS = 8
EOS = 1
DEEP = dict(num_encoder_layers=2, num_decoder_layers=2)
GREEDY = Decoding("greedy", max_tokens=MAX_TOKENS)
BEAM = Decoding("beam", max_tokens=MAX_TOKENS, num_beams=4)


class Generator:
    """A student and inputs for which its outputs have many lengths, some cut at MAX_TOKENS."""

    def __init__(self) -> None:
        self.student = StudentDef.of(small_config(**DEEP))
        self.params = numpy_params(self.student, seed=35)
        head = 3.0 * self.params["head"]  # peaked distributions, and a frequent eos
        self.params["head"] = head.at[:, EOS].multiply(2.0)
        self.inputs = random_ids(np.random.default_rng(5), LENGTHS, 9)
        self.forced = jax.jit(lambda params, inputs, tokens: self.student.bind(params)(inputs, tokens))
        self._generated: dict[Decoding, Generated] = {}

    def generate(self, decoding: Decoding) -> Generated:
        """For the inputs; computed once."""
        if decoding not in self._generated:
            self._generated[decoding] = self.generate_for(self.inputs, decoding)
        return self._generated[decoding]

    def generate_for(self, inputs: np.ndarray, decoding: Decoding) -> Generated:
        run = jax.jit(lambda params, inputs: generate(self.student.bind(params), inputs, decoding))
        return jax.tree.map(np.asarray, run(self.params, inputs))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Under teacher forcing."""
        return np.asarray(self.forced(self.params, self.inputs, tokens))

    def log_probability(self, tokens: np.ndarray) -> np.ndarray:
        """Of each row up to and including its eos, under teacher forcing, in nats [B]."""
        log_probability = jax.nn.log_softmax(self.logits(tokens))
        chosen = np.take_along_axis(np.asarray(log_probability), tokens[..., None], axis=-1)[..., 0]
        return np.where(np.arange(tokens.shape[1]) < lengths_of(tokens)[:, None], chosen, 0.0).sum(axis=1)


def lengths_of(tokens: np.ndarray) -> np.ndarray:
    """Number of tokens of each row up to and including the first eos; the whole row without one."""
    ended = tokens == EOS
    return np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, tokens.shape[1])


def assert_pad_after_eos(tokens: np.ndarray) -> None:
    beyond = np.arange(tokens.shape[1]) >= lengths_of(tokens)[:, None]
    assert beyond.any() and not tokens[beyond].any()


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator()


@pytest.fixture(scope="module")
def greedy(generator: Generator) -> Generated:
    return generator.generate(GREEDY)


@pytest.fixture(scope="module")
def torch_generator(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same student in transformers: generate(**options) → (tokens padded to MAX_TOKENS, scores or None)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory: Path = tmp_path_factory.mktemp("hf") / "student"
    save_hf(generator.params, generator.student.config, directory, vocabulary_file=None)
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()

    def run(**options: Any) -> tuple[np.ndarray, np.ndarray | None]:
        ids = torch.tensor(generator.inputs.astype(np.int64))
        options |= dict(max_new_tokens=MAX_TOKENS, do_sample=False, return_dict_in_generate=True, output_scores=True)
        out = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), **options)
        tokens = np.pad(out.sequences.numpy()[:, 1:], ((0, 0), (0, MAX_TOKENS + 1 - out.sequences.shape[1])))
        tokens[np.arange(MAX_TOKENS) >= lengths_of(tokens)[:, None]] = 0  # transformers pads beams with eos
        return tokens, out.sequences_scores.numpy() if "sequences_scores" in out else None

    return run


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, dict(gated=False, tied=True, scan_layers=False)], ids=["scan", "unrolled"])
def test_cached_logits_equal_those_of_teacher_forcing(changes: dict[str, Any]) -> None:
    student = StudentDef.of(small_config(**(DEEP | changes)))
    draw = np.random.default_rng(0)
    inputs, targets = random_ids(draw, LENGTHS, 9), draw.integers(2, 32, (len(LENGTHS), 7))
    assert_cached_logits_equal_teacher_forcing(student, numpy_params(student), inputs, targets)


@pytest.mark.slow
def test_greedy_takes_the_highest_logit_and_scores_it(generator: Generator, greedy: Generated) -> None:
    inside = np.arange(MAX_TOKENS) < lengths_of(greedy.tokens)[:, None]
    np.testing.assert_array_equal(generator.logits(greedy.tokens).argmax(axis=-1)[inside], greedy.tokens[inside])
    np.testing.assert_allclose(greedy.score, generator.log_probability(greedy.tokens), rtol=1e-4, atol=1e-4)
    assert_pad_after_eos(greedy.tokens)
    assert len(set(lengths_of(greedy.tokens))) >= 4 and (lengths_of(greedy.tokens) == MAX_TOKENS).any()


@pytest.mark.slow
def test_greedy_equals_transformers(greedy: Generated, torch_generator: Any) -> None:
    np.testing.assert_array_equal(greedy.tokens, torch_generator(num_beams=1)[0])


def test_one_beam_is_greedy(generator: Generator, greedy: Generated) -> None:
    beam = generator.generate(Decoding("beam", max_tokens=MAX_TOKENS, num_beams=1, length_penalty=0.0))
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_allclose(beam.score, greedy.score, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0])
def test_beam_search_equals_transformers(
    length_penalty: float, generator: Generator, greedy: Generated, torch_generator: Any
) -> None:
    beam = generator.generate(dataclasses.replace(BEAM, length_penalty=length_penalty))
    lengths = lengths_of(beam.tokens)
    assert len(set(lengths)) >= 3 and (lengths == MAX_TOKENS).any() and (beam.tokens != greedy.tokens).any()
    expected = generator.log_probability(beam.tokens) / lengths**length_penalty
    np.testing.assert_allclose(beam.score, expected, rtol=1e-4, atol=1e-4)
    assert_pad_after_eos(beam.tokens)
    tokens, scores = torch_generator(num_beams=4, length_penalty=length_penalty, early_stopping=False)
    np.testing.assert_array_equal(beam.tokens, tokens)
    np.testing.assert_allclose(beam.score, scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("decoding", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_rows_of_padding_change_no_other_row(decoding: Decoding, generator: Generator) -> None:
    plain = generator.generate(decoding)
    padded = generator.generate_for(np.insert(generator.inputs, (0, 4, 8), 0, axis=0), decoding)
    real = np.ones(11, bool)
    real[[0, 5, 10]] = False
    np.testing.assert_array_equal(padded.tokens[real], plain.tokens)
    np.testing.assert_allclose(padded.score[real], plain.score, rtol=1e-5)
    assert not padded.tokens[~real].any()
    np.testing.assert_array_equal(padded.score[~real], 0.0)


class Chain:
    """In place of a student, a Markov chain: the next token's logits are a row of a table. Counts its steps."""

    def __init__(self, table_VxV: np.ndarray):
        self.table_VxV, self.steps = jnp.asarray(table_VxV, jnp.float32), 0
        self.config = SimpleNamespace(pad_id=0, eos_id=EOS, vocab_size=len(table_VxV))

    def encode(self, inputs_BxS: jax.Array) -> jax.Array:
        return jnp.zeros((*inputs_BxS.shape, 1))

    def init_cache(self, encoded_BxSxD: jax.Array, length: int) -> dict[str, jax.Array]:
        return {name: jnp.zeros((1, len(encoded_BxSxD), length, 1, 1)) for name in ("key", "value")}

    def _count(self) -> None:
        self.steps += 1

    def decode_step(self, token_B: jax.Array, position: jax.Array, cache: Any, source_valid_BxS: jax.Array) -> Any:
        jax.debug.callback(self._count)
        return self.table_VxV[token_B], cache


def generate_chain(chain: Chain, inputs: np.ndarray, decoding: Decoding, key: jax.Array | None = None) -> Generated:
    out = jax.jit(lambda inputs, key: generate(chain, inputs, decoding, key))(inputs, key)  # type: ignore[arg-type]
    jax.effects_barrier()
    return jax.tree.map(np.asarray, out)


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_the_loop_ends_when_every_real_row_has_ended(method: str) -> None:
    """0 → 3 → 2 → eos, almost surely. Rows of padding get no tokens and do not prolong the loop."""
    table = np.full((8, 8), -30.0)
    table[0, 3] = table[3, 2] = table[2, EOS] = table[EOS, 5] = 30.0
    inputs = np.array([[4, 1], [0, 0], [1, 0]])
    decoding = Decoding(method, max_tokens=20, num_beams=2, length_penalty=0.0)
    chain = Chain(table)
    out = generate_chain(chain, inputs, decoding, jax.random.key(0))
    expected = [3, 2, EOS] + [0] * 17
    np.testing.assert_array_equal(out.tokens, [expected, [0] * 20, expected])
    assert chain.steps == (4 if method == "beam" else 3)  # the second finished beam comes a step later
    idle = Chain(table)
    generate_chain(idle, np.zeros((2, 3), int), decoding, jax.random.key(0))
    assert idle.steps == 0


LOGITS = np.random.default_rng(7).normal(size=(64, 40)).astype(np.float32) * 2.0
FILTERS = [dict(temperature=0.7), dict(top_k=5), dict(top_k=1), dict(top_k=99), dict(top_p=0.8), dict(top_p=0.01)]


@pytest.mark.parametrize("options", [*FILTERS, dict(temperature=1.7, top_k=9, top_p=0.6)], ids=str)
def test_filters_equal_those_of_transformers(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.tensor(LOGITS)
    for warper, name in (("Temperature", "temperature"), ("TopK", "top_k"), ("TopP", "top_p")):
        if name in options:
            logits = getattr(process, f"{warper}LogitsWarper")(options[name])(None, logits)
    expected = torch.softmax(logits, dim=-1).numpy()
    filtered = jax.nn.softmax(filter_logits(jnp.asarray(LOGITS), Decoding("sample", **options)))
    np.testing.assert_array_equal(np.asarray(filtered) > 0, expected > 0)
    np.testing.assert_allclose(filtered, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (dict(top_p=0.45), [1]),
        (dict(top_p=0.55), [1, 3]),
        (dict(top_p=0.85), [0, 1, 3]),
        (dict(top_k=2), [1, 3]),
        (dict(top_k=2, top_p=0.6), [1]),  # 0.5 / 0.8, after top-k, is more than 0.6
        (dict(top_p=0.3, temperature=100.0), [1, 3]),  # nearly equal probabilities at this temperature
        ({}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_filters_by_hand(options: dict[str, Any], kept: list[int]) -> None:
    logits = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]])) + 3.0
    probability = np.asarray(jax.nn.softmax(filter_logits(logits, Decoding("sample", **options))))[0]
    assert list(np.flatnonzero(probability)) == kept


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    expected = probability * counts.sum()
    assert not counts[expected == 0].any()
    return float((((counts - expected) ** 2)[expected > 0] / expected[expected > 0]).sum())


def test_samples_are_distributed_as_the_filtered_model() -> None:
    """4,000 rows, three tokens that depend on the one before; the bounds are the 99.9% quantiles."""
    vocab, rows = 6, 4000
    table = np.random.default_rng(8).normal(size=(vocab, vocab)) * 1.5
    table[:, EOS] = -30.0
    decoding = Decoding("sample", max_tokens=3, temperature=0.8, top_k=3)
    sampled = generate_chain(Chain(table), np.ones((rows, 2), int), decoding, jax.random.key(1))
    probability = np.exp(table / 0.8) * (table >= np.sort(table, axis=1)[:, [-3]])
    probability /= probability.sum(axis=1, keepdims=True)
    first, second, third = sampled.tokens.T
    assert chi_square(np.bincount(first, minlength=vocab), probability[0]) < 13.8  # 2 degrees of freedom
    for before, after in ((first, second), (second, third)):
        for token in np.unique(before):
            counts = np.bincount(after[before == token], minlength=vocab)
            assert chi_square(counts, probability[token]) < 13.8
    # The score is the unfiltered model's at temperature 1.
    log_probability = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    expected = log_probability[0, first] + log_probability[first, second] + log_probability[second, third]
    np.testing.assert_allclose(sampled.score, expected, rtol=1e-4, atol=1e-4)


def test_a_key_fixes_the_sample() -> None:
    table = np.random.default_rng(8).normal(size=(6, 6))
    inputs, decoding = np.ones((50, 2), int), Decoding("sample", max_tokens=6)
    one, again, other = (generate_chain(Chain(table), inputs, decoding, jax.random.key(k)).tokens for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.3
    assert_pad_after_eos(one)


def test_invalid_decodings_are_refused() -> None:
    chain, inputs = Chain(np.zeros((6, 6))), np.ones((1, 2), int)
    for options, words in (
        (dict(method="best"), "'best'.*greedy, sample or beam"),
        (dict(max_tokens=0), "max_tokens 0"),
        (dict(num_beams=0), "num_beams 0"),
        (dict(top_k=-1), "top_k -1"),
        (dict(temperature=0.0), "temperature 0.0"),
        (dict(top_p=0.0), "top_p 0.0"),
        (dict(top_p=1.1), "top_p 1.1"),
    ):
        with pytest.raises(UserError, match=words):
            Decoding(**options)
    with pytest.raises(UserError, match="num_beams 4 .* half .* of 6 tokens: lower it"):
        generate_chain(chain, inputs, Decoding("beam", num_beams=4))
    with pytest.raises(ValueError, match="needs a key"):
        generate_chain(chain, inputs, Decoding("sample"))


def test_given_encoder_states_are_used_and_scores_can_be_left_out(generator: Generator, greedy: Generated) -> None:
    """Encoder states of the inputs in reverse order give the outputs of reversed inputs."""

    @jax.jit
    def run(params: Any, inputs: np.ndarray) -> Generated:
        student = generator.student.bind(params)
        return generate(student, inputs, GREEDY, None, student.encode(inputs), scores=False)

    assert run(generator.params, generator.inputs).score is None
    np.testing.assert_array_equal(run(generator.params, generator.inputs).tokens, greedy.tokens)
    swapped = jax.jit(
        lambda params, inputs: generate(
            generator.student.bind(params), inputs, GREEDY, None, generator.student.bind(params).encode(inputs)[::-1]
        )
    )(generator.params, np.concatenate([generator.inputs[:1], generator.inputs[5:6]]))
    np.testing.assert_array_equal(swapped.tokens, greedy.tokens[[5, 0]])


@pytest.mark.parametrize("size", [100, 512, 1000])
def test_top_k_of_long_rows_is_that_of_jax_with_ties(size: int) -> None:
    x = np.random.default_rng(0).integers(0, size // 3, (50, size)).astype(np.float32)  # most numbers several times
    for found, expected in zip(jax.jit(top_k, static_argnums=1)(x, 5), jax.lax.top_k(x, 5), strict=True):
        np.testing.assert_array_equal(found, expected)
