"""Sampling on few rows against sampling every prompt in a row of its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.generation.generator import generate
from rlhf.generation.refill import generate_refilled
from rlhf.generation.rollout import Rollout
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.transformer import Transformer
from rlhf.rl.score import response_log_probs

PAD, END, NEW_TOKENS, COUNT = 0, 2, 9, 23
BASE = {"vocab_size": 16, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 24, "context": 32}
GREEDY, PLAIN = SamplingConfig(temperature=0), SamplingConfig()


def make_model(**choices) -> Transformer:
    return Transformer(ModelConfig(**BASE, initializer_std=0.4, **choices), rngs=nnx.Rngs(3))


def with_prompt_adapter() -> Transformer:
    return insert(make_model(), AdapterConfig("prompt", length=3), nnx.Rngs(1))


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(1)
    tokens, mask = np.full((COUNT, 6), PAD, np.int32), np.zeros((COUNT, 6), bool)
    for row, length in enumerate(random.integers(1, 7, COUNT)):
        tokens[row, -length:], mask[row, -length:] = random.integers(3, 16, length), True
    return jnp.asarray(tokens), jnp.asarray(mask)


def run(function, model, prompts, *, seed=0, sampling=PLAIN, **settings):
    definition, state = nnx.split(model)
    settings |= {"sampling": sampling, "max_new_tokens": NEW_TOKENS, "end_token": END, "pad_token": PAD}

    @jax.jit
    def program(state, key):
        return function(nnx.merge(definition, state), *prompts, key, **settings)

    return jax.device_get(program(state, jax.random.key(seed)))


@pytest.mark.parametrize(
    "make",
    [
        make_model,
        partial(make_model, position="learned"),
        partial(make_model, position="alibi"),
        partial(make_model, attention=AttentionConfig(window=4)),
        with_prompt_adapter,
    ],
    ids=["rope", "learned", "alibi", "window", "virtual tokens"],
)
def test_the_likeliest_responses_are_those_of_rows_of_their_own(prompts, make):
    model = make()
    expected = run(generate, model, prompts, sampling=GREEDY)
    found = run(generate_refilled, model, prompts, sampling=GREEDY, rows=4)
    assert len(set(expected.mask.sum(axis=1))) > 2  # of several lengths
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_samples_depend_on_key_and_prompt_and_not_on_the_rows(prompts):
    model = make_model()
    found = [run(generate_refilled, model, prompts, rows=rows) for rows in (1, 6, COUNT)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].tokens, other.tokens)
        np.testing.assert_allclose(found[0].log_probs, other.log_probs, atol=1e-5)
    assert not np.array_equal(found[0].tokens, run(generate_refilled, model, prompts, rows=6, seed=1).tokens)


def test_log_probs_are_those_of_the_whole_sequence(prompts):
    model = make_model()
    found = run(generate_refilled, model, prompts, rows=5)
    tokens, mask = np.concatenate([prompts[0], found.tokens], axis=1), np.concatenate([prompts[1], found.mask], axis=1)
    rollout = Rollout(tokens, mask, found.mask, np.zeros(COUNT, bool))
    expected, _ = response_log_probs(
        model, rollout.tokens, rollout.mask, NEW_TOKENS, temperature=1.0, logits_chunk=None
    )
    np.testing.assert_allclose(found.log_probs, np.where(found.mask, expected, 0.0), atol=1e-5)
    assert (found.tokens[~found.mask] == PAD).all()
    lengths = found.mask.sum(axis=1)
    ended = np.array([row[length - 1] == END for row, length in zip(found.tokens, lengths, strict=True)])
    assert (ended | (lengths == NEW_TOKENS)).all() and 0 < ended.sum() < COUNT


def test_a_token_is_drawn_as_often_as_it_is_likely():
    model, count = make_model(), 4000
    prompts = jnp.full((count, 1), 5, jnp.int32), jnp.ones((count, 1), bool)
    found = run(generate_refilled, model, prompts, rows=256)
    shares = np.bincount(found.tokens[:, 0], minlength=16) / count
    hidden = model(jnp.array([[5]]), jnp.array([[1]]))
    probabilities = np.asarray(jax.nn.softmax(model.logits(hidden)[0, 0]))
    assert np.abs(shares - probabilities).max() < 4 * np.sqrt(0.25 / count)


def test_it_takes_fewer_steps_than_batches_that_wait_for_their_longest(prompts, monkeypatch):
    model = make_model()
    steps = []
    decode = Transformer.decode

    def counted(self, tokens, positions, valid, cache, layers):
        if tokens.shape[1] == 1:
            jax.debug.callback(lambda _: steps.append(1), cache.length)
        return decode(self, tokens, positions, valid, cache, layers)

    monkeypatch.setattr(Transformer, "decode", counted)
    found = run(generate_refilled, model, prompts, rows=4)
    jax.effects_barrier()
    lengths = found.mask.sum(axis=1)
    batches = [lengths[start : start + 4].max() - 1 for start in range(0, COUNT, 4)]
    assert len(steps) < sum(batches)


def test_no_response_ends_before_the_minimum(prompts):
    model = make_model()
    free = run(generate_refilled, model, prompts, rows=4)
    found = run(generate_refilled, model, prompts, rows=4, minimum_new_tokens=4)
    assert free.mask.sum(axis=1).min() < 4 <= found.mask.sum(axis=1).min()
    expected = run(generate, model, prompts, sampling=GREEDY, minimum_new_tokens=4)
    likeliest = run(generate_refilled, model, prompts, sampling=GREEDY, rows=4, minimum_new_tokens=4)
    np.testing.assert_array_equal(likeliest.tokens, expected.tokens)


@pytest.mark.parametrize("function", [generate, partial(generate_refilled, rows=4)], ids=["generate", "refilled"])
def test_the_tokens_that_were_left_stand_beside_each_token(function, prompts):
    """Their renormalised log-probabilities by the whole forward pass are those that the sampler reports."""
    model = make_model()
    found = run(function, model, prompts, sampling=SamplingConfig(0.8, 4, 0.9), minimum_new_tokens=2)
    assert found.support.shape == (COUNT, NEW_TOKENS, 4) and np.any(found.support[found.mask] == -1)
    assert not np.any(found.support[:, :2] == END)
    tokens = jnp.concatenate([prompts[0], found.tokens], axis=1)
    mask = jnp.concatenate([prompts[1], found.mask], axis=1)
    log_probs, _ = response_log_probs(
        model, tokens, mask, NEW_TOKENS, temperature=0.8, logits_chunk=None, support=jnp.asarray(found.support)
    )
    np.testing.assert_allclose(np.where(found.mask, log_probs, 0), found.log_probs, atol=1e-4)
