"""Drawn tokens follow the distribution they claim: frequencies, log-probabilities, filters and independence of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf.errors import UserError
from rlhf.generation.sampling import SamplingConfig, choose_tokens, sample_tokens

sample = jax.jit(sample_tokens, static_argnums=2)


def reference_log_probs(logits, config):
    """The distribution by its definition, in float64: temperature, then top-k, then top-p; −inf where ruled out."""
    logits = np.asarray(logits, np.float64) / config.temperature
    order = np.argsort(-logits, kind="stable")
    kept = order[: config.top_k or None]
    probabilities = np.exp(logits[kept] - logits[kept].max())
    probabilities /= probabilities.sum()
    nucleus, reached = [], 0.0
    for token, probability in zip(kept, probabilities, strict=True):
        nucleus.append(token)
        reached += probability
        if reached >= config.top_p:
            break
    log_probs = np.full(len(logits), -np.inf)
    log_probs[nucleus] = logits[nucleus] - np.log(np.exp(logits[nucleus] - logits.max()).sum()) - logits.max()
    return log_probs


CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.7),
    SamplingConfig(top_k=5),
    SamplingConfig(top_p=0.8),
    SamplingConfig(temperature=1.5, top_k=9, top_p=0.6),
    SamplingConfig(top_k=1000),
    SamplingConfig(top_p=1e-6),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("vocabulary", [1, 19, 64])
def test_frequencies_and_log_probs_are_those_of_the_definition(config, vocabulary):
    draws = 20_000
    row = np.random.default_rng(vocabulary).normal(size=vocabulary).astype(np.float32) * 1.5
    tokens, log_probs = sample(jax.random.key(0), jnp.broadcast_to(row, (draws, vocabulary)), config)
    tokens = np.asarray(tokens)
    expected = reference_log_probs(row, config)
    np.testing.assert_allclose(log_probs, expected[tokens], atol=1e-5)
    counts = np.bincount(tokens, minlength=vocabulary)
    possible = np.isfinite(expected)
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], draws * np.exp(expected[possible])).pvalue > 1e-4


def test_a_large_vocabulary_is_drawn_from_whole():
    """Frequencies of groups of tokens that cut across the blocks, over a vocabulary no power of two divides."""
    vocabulary, draws, groups = 1999, 8000, 40
    row = np.random.default_rng(1).normal(size=vocabulary).astype(np.float32)
    tokens = np.asarray(sample(jax.random.key(2), jnp.broadcast_to(row, (draws, vocabulary)), SamplingConfig())[0])
    group = np.arange(vocabulary) % groups
    probabilities = np.exp(row.astype(np.float64))
    expected = np.bincount(group, weights=probabilities / probabilities.sum())
    counts = np.bincount(group[tokens], minlength=groups)
    assert stats.chisquare(counts, draws * expected).pvalue > 1e-4


def test_tokens_rarer_than_one_uniform_can_tell_apart_are_all_within_reach(monkeypatch):
    """Each token of the tail is rarer than the spacing of uniforms; the second uniform still finds every one in its block."""
    vocabulary, block, draws = 4096, 64, 512
    logits = jnp.full((draws, vocabulary), np.log(1e-5 / vocabulary)).at[:, 0].set(0.0)
    uniforms = jnp.stack([jnp.full(draws, 1 - 5e-6), jnp.arange(draws) / draws], axis=1)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: uniforms)
    tokens, _ = sample_tokens(jax.random.key(0), logits, SamplingConfig())
    assert len(np.unique(np.asarray(tokens))) == block


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), allowed=st.integers(1, 5), config=st.sampled_from([CONFIGS[1], CONFIGS[4]]))
def test_impossible_tokens_are_never_drawn(seed, allowed, config):
    random = np.random.default_rng(seed)
    logits = np.full((64, 37), -np.inf, np.float32)
    for row in logits:
        row[random.choice(37, size=allowed, replace=False)] = random.normal(scale=20, size=allowed)
    tokens, log_probs = sample(jax.random.key(seed), logits, config)
    assert np.isfinite(logits[np.arange(64), np.asarray(tokens)]).all()
    assert np.isfinite(log_probs).all() and (np.asarray(log_probs) <= 1e-6).all()


def test_uniforms_at_their_ends_choose_possible_tokens(monkeypatch):
    logits = jnp.asarray([[-jnp.inf, 0.0, 1.0, -jnp.inf, 0.5, -jnp.inf, -jnp.inf]])
    for end, token in ((0.0, 1), (1.0, 4)):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, end=end: jnp.full(shape, end))
        assert sample_tokens(jax.random.key(0), logits, SamplingConfig())[0][0] == token


def test_rounding_of_sums_cannot_choose_an_impossible_token(monkeypatch):
    logits = jnp.asarray([[0.0, -jnp.inf, -jnp.inf, -jnp.inf]])
    monkeypatch.setattr(jnp, "cumsum", lambda weights, axis: jnp.asarray([[0.9, 1.0]]))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, 0.95))
    assert sample_tokens(jax.random.key(0), logits, SamplingConfig())[0][0] == 0


def test_rows_of_nan_stay_in_range():
    tokens, log_probs = sample(jax.random.key(0), jnp.full((4, 19), jnp.nan), SamplingConfig())
    assert (np.asarray(tokens) < 19).all() and np.isnan(log_probs).all()


def test_the_nucleus_includes_the_token_that_crosses():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]])).repeat(500, axis=0)
    tokens, log_probs = sample(jax.random.key(0), logits, SamplingConfig(top_p=0.6))
    assert set(np.asarray(tokens).tolist()) == {0, 1}
    np.testing.assert_allclose(log_probs, np.log(np.asarray([0.5, 0.3]) / 0.8)[np.asarray(tokens)], atol=1e-6)


def test_temperature_acts_before_the_nucleus_is_chosen():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]])).repeat(500, axis=0)
    tokens, _ = sample(jax.random.key(0), logits, SamplingConfig(temperature=4.0, top_p=0.6))
    assert set(np.asarray(tokens).tolist()) == {0, 1, 2}


def test_temperature_zero_is_the_likeliest_token_for_sure():
    logits = jnp.asarray([[0.1, 3.0, 0.2], [5.0, 3.0, 0.2]])
    tokens, log_probs = sample(jax.random.key(0), logits, SamplingConfig(temperature=0.0))
    assert tokens.tolist() == [1, 0] and log_probs.tolist() == [0.0, 0.0]


def test_noise_differs_between_rows_and_keys_and_repeats_for_a_key():
    logits = jnp.zeros((64, 1000))
    first, again, other = (sample(jax.random.key(seed), logits, SamplingConfig())[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.asarray(first) == np.asarray(other)) < 0.1
    assert len(np.unique(np.asarray(first))) > 50


def test_further_rows_change_nothing_for_the_first():
    logits = jax.random.normal(jax.random.key(5), (8, 100))
    few, _ = sample(jax.random.key(0), logits[:3], SamplingConfig())
    many, _ = sample(jax.random.key(0), logits, SamplingConfig())
    np.testing.assert_array_equal(few, many[:3])


def test_half_precision_logits_give_float32_log_probs():
    logits = jax.random.normal(jax.random.key(5), (8, 100)).astype(jnp.bfloat16)
    tokens, log_probs = sample(jax.random.key(0), logits, SamplingConfig())
    expected = jax.nn.log_softmax(logits.astype(jnp.float32))[jnp.arange(8), tokens]
    assert log_probs.dtype == jnp.float32
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"sampling.{next(iter(wrong))}"):
        SamplingConfig(**wrong)


def test_what_the_filters_left_is_told():
    """Against a loop over tokens from the likeliest; the drawn log-probability is that of a softmax over these."""
    random = np.random.default_rng(3)
    logits = random.normal(scale=2, size=(40, 30)).astype(np.float32)
    logits[:5, 4:] = -np.inf
    uniforms = jnp.asarray(random.uniform(size=(40, 2)), jnp.float32)
    config = SamplingConfig(temperature=0.8, top_k=6, top_p=0.7)
    tokens, log_probs, support = map(np.asarray, choose_tokens(uniforms, jnp.asarray(logits), config))
    sizes = set()
    for row, scores in enumerate(logits.astype(np.float64) / 0.8):
        order = [token for token in np.argsort(-scores, kind="stable")[:6] if np.isfinite(scores[token])]
        weights = np.exp(scores[order]) / np.exp(scores[order]).sum()
        left = order[: 1 + int(np.sum(np.cumsum(weights)[:-1] < 0.7))]
        assert [token for token in support[row] if token >= 0] == left
        expected = scores[tokens[row]] - np.log(np.exp(scores[left]).sum())
        assert log_probs[row] == pytest.approx(expected, abs=1e-5)
        sizes.add(len(left))
    assert len(sizes) > 2
    for other in (SamplingConfig(), SamplingConfig(top_p=0.5), SamplingConfig(temperature=0, top_k=3)):
        assert choose_tokens(uniforms, jnp.asarray(logits), other)[2] is None and other.support_size(30) is None
    assert config.support_size(30) == 6 and config.support_size(4) == 4
