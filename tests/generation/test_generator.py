"""The compiled sampling loop, held against the full forward pass of the same network without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.data.batches import PromptBatch
from rlhf.generation import generator as generator_module
from rlhf.generation.generator import Responses, generate
from rlhf.generation.rollout import join
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.config import ModelConfig
from rlhf.models.transformer import Transformer
from rlhf.training.compilations import CompilationCounter

PAD, END = 0, 2
LENGTHS = (5, 1, 3, 4)
NEW_TOKENS = 8
MODEL = ModelConfig(
    vocab_size=16, width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, context=32, initializer_std=0.4
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(MODEL, rngs=nnx.Rngs(3))


def make_prompts(extra_left: int = 0, filler: int = PAD) -> PromptBatch:
    random = np.random.default_rng(1)
    width = max(LENGTHS) + extra_left
    tokens, mask = np.full((len(LENGTHS), width), filler, np.int32), np.zeros((len(LENGTHS), width), bool)
    for row, length in enumerate(LENGTHS):
        tokens[row, width - length :] = random.integers(3, MODEL.vocab_size, length)
        mask[row, width - length :] = True
    rows = np.arange(len(LENGTHS), dtype=np.int32)
    return PromptBatch(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(rows % 2 == 0), jnp.asarray(rows))


@pytest.fixture(scope="module")
def generator(model):
    """Generators by temperature, compiled once a shape."""

    @functools.cache
    def make(temperature: float, end_token: int = END):
        definition = nnx.graphdef(model)

        @jax.jit
        def program(state, prompts, key):
            sampled_by = nnx.merge(definition, state)
            settings = {"max_new_tokens": NEW_TOKENS, "end_token": end_token, "pad_token": PAD}
            sampling = SamplingConfig(temperature=temperature)
            return generate(sampled_by, prompts.tokens, prompts.mask, key, sampling=sampling, **settings)

        return lambda prompts, seed=0, state=None: program(state or nnx.state(model), prompts, jax.random.key(seed))

    return make


@pytest.fixture(scope="module")
def logits_of(model):
    """Logits at every position of whole rows by the full forward pass."""
    definition, state = nnx.split(model)

    @jax.jit
    def run(state, tokens, mask):
        merged = nnx.merge(definition, state)
        return merged.logits(merged(tokens, mask.astype(jnp.int32)))

    return lambda tokens, mask: np.asarray(run(state, jnp.asarray(tokens), jnp.asarray(mask)), np.float64)


def rows_of(prompts: PromptBatch, responses: Responses) -> tuple[np.ndarray, np.ndarray]:
    rollout = join(prompts, responses)
    return np.asarray(rollout.tokens), np.asarray(rollout.mask)


def test_greedy_responses_are_those_of_an_argmax_loop_without_cache(generator, logits_of):
    prompts = make_prompts()
    responses = generator(0.0)(prompts)
    width = prompts.tokens.shape[1]
    tokens = np.pad(prompts.tokens, ((0, 0), (0, NEW_TOKENS)))
    mask = np.pad(prompts.mask, ((0, 0), (0, NEW_TOKENS)))
    ended = np.zeros(len(tokens), bool)
    for column in range(width, width + NEW_TOKENS):
        likeliest = logits_of(tokens, mask)[:, column - 1].argmax(axis=-1)
        tokens[:, column], mask[:, column] = np.where(ended, PAD, likeliest), ~ended
        ended |= likeliest == END
    np.testing.assert_array_equal(responses.tokens, tokens[:, width:])
    np.testing.assert_array_equal(responses.mask, mask[:, width:])
    assert len(np.unique(responses.tokens)) > 3
    assert not np.any(responses.log_probs)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probs_are_those_of_the_full_forward_pass(generator, logits_of, temperature):
    prompts = make_prompts()
    responses = generator(temperature)(prompts)
    tokens, mask = rows_of(prompts, responses)
    logits = logits_of(tokens, mask)[:, -NEW_TOKENS - 1 : -1] / temperature
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    drawn = np.take_along_axis(log_probs, tokens[:, -NEW_TOKENS:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(responses.log_probs, np.where(responses.mask, drawn, 0.0), atol=1e-5)


def test_nothing_follows_the_end_token(generator):
    ended, cut = 0, 0
    for seed in range(20):
        responses = generator(1.0)(make_prompts(), seed)
        for tokens, mask in zip(np.asarray(responses.tokens), np.asarray(responses.mask), strict=True):
            (ends,) = np.nonzero((tokens == END) & mask)
            length = ends[0] + 1 if len(ends) else NEW_TOKENS
            np.testing.assert_array_equal(mask, np.arange(NEW_TOKENS) < length)
            assert np.all(tokens[length:] == PAD)
            ended, cut = ended + bool(len(ends)), cut + (not len(ends))
    assert ended > 5 and cut > 5


def test_it_stops_when_all_have_ended(generator, model, monkeypatch):
    """Counts the decoding steps as they run, not as they are traced."""
    first = np.asarray(generator(0.0)(make_prompts()).tokens)
    steps = []
    decode = Transformer.decode

    def counted(self, tokens, positions, valid, cache, layers):
        jax.debug.callback(lambda length: steps.append(int(length)), cache.length)
        return decode(self, tokens, positions, valid, cache, layers)

    monkeypatch.setattr(Transformer, "decode", counted)
    alone = jax.tree.map(lambda leaf: leaf[:1], make_prompts())
    last = next(number for number in range(1, NEW_TOKENS) if first[0, number] not in first[0, :number])
    run = generator.__wrapped__(0.0, int(first[0, last]))
    responses = run(alone)
    jax.effects_barrier()
    assert int(responses.mask.sum()) == last + 1
    # Each token but the last is read once, after the prompt's five.
    assert sorted(steps) == [*range(5, 5 + last)]


@pytest.mark.parametrize("method", ["none", "prompt"])
def test_a_cache_that_grows_changes_nothing(model, monkeypatch, method):
    sampled_by = nnx.clone(model)
    if method == "prompt":
        sampled_by = insert(sampled_by, AdapterConfig(kind="prompt", length=2), nnx.Rngs(0))
    definition, state = nnx.split(sampled_by)
    slots = []

    def sampled(loops):
        monkeypatch.setattr(generator_module, "MOST_LAYERS", loops * MODEL.layers)
        monkeypatch.setattr(generator_module, "LEAST_STEPS", 2)
        settings = {"max_new_tokens": NEW_TOKENS, "end_token": END, "pad_token": PAD, "sampling": SamplingConfig()}
        prompts = make_prompts()

        @jax.jit
        def program(state):
            return generate(nnx.merge(definition, state), prompts.tokens, prompts.mask, jax.random.key(4), **settings)

        return program(state)

    decode = Transformer.decode

    def noted(self, tokens, positions, valid, cache, layers):
        slots.append(cache.slots)
        return decode(self, tokens, positions, valid, cache, layers)

    whole = sampled(1)
    monkeypatch.setattr(Transformer, "decode", noted)
    grown = sampled(3)
    virtual = sampled_by.virtual_tokens
    assert sorted(set(slots)) == [virtual + max(LENGTHS) + tokens for tokens in (3, 6, 8)]
    np.testing.assert_array_equal(grown.tokens, whole.tokens)
    np.testing.assert_array_equal(grown.mask, whole.mask)
    np.testing.assert_allclose(grown.log_probs, whole.log_probs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_left_padding_changes_nothing(generator, temperature):
    plain = generator(temperature)(make_prompts())
    padded = generator(temperature)(make_prompts(extra_left=3, filler=END))
    np.testing.assert_array_equal(padded.tokens, plain.tokens)
    np.testing.assert_array_equal(padded.mask, plain.mask)
    np.testing.assert_allclose(padded.log_probs, plain.log_probs, atol=1e-5)


def test_keys_decide_what_is_drawn(generator):
    draws = [np.asarray(generator(1.0)(make_prompts(), seed).tokens) for seed in (0, 1, 0)]
    np.testing.assert_array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[1])


def test_every_row_and_every_token_has_noise_of_its_own(generator, model):
    """Without weights every token is equally likely everywhere, so only the noise can make tokens differ."""
    weightless = jax.tree.map(jnp.zeros_like, nnx.state(model))
    rows = []
    for seed in range(8):
        responses = generator(1.0)(make_prompts(), seed, weightless)
        rows += [row[keep] for row, keep in zip(*map(np.asarray, (responses.tokens, responses.mask)), strict=True)]
    neighbours = np.concatenate([row[1:] == row[:-1] for row in rows])
    assert len(neighbours) > 60 and neighbours.mean() < 0.25
    firsts = np.array([row[0] for row in rows]).reshape(8, len(LENGTHS))
    assert all(len(set(column)) > 1 for column in firsts) and all(len(set(column)) > 1 for column in firsts.T)
    np.testing.assert_allclose(responses.log_probs, np.where(responses.mask, -np.log(16), 0.0), atol=1e-5)


def test_one_compilation_serves_every_call_of_a_shape(generator):
    generator(1.0)(make_prompts(), 0)
    with CompilationCounter() as compilations:
        for seed in range(3):
            generator(1.0)(make_prompts(), seed)
    assert compilations.count == 0
