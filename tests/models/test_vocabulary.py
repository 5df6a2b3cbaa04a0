import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.data.tokenizers import check_vocabulary, load_tokenizer, train_tokenizer
from rlhf.generation.sampling import SamplingConfig, sample_tokens
from rlhf.losses import token_log_probs_and_entropy
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import load_scorer, load_transformer, read_config, read_model_config, save_scorer, save_transformer
from rlhf.models.vocabulary import count_tokens, fit_config, resize_vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["USER: a AI: b"] * 4, 262)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, make_model):
    return make_model(tied_embeddings=request.param)


def test_new_rows_are_the_mean_and_old_ones_stay(model, sequences, hidden_states):
    larger = resize_vocabulary(model, 53)
    assert (larger.config.vocab_size, larger.config.token_count) == (56, 53)
    rows = np.asarray(larger.embedding[...])
    np.testing.assert_array_equal(rows[:48], model.embedding[...])
    np.testing.assert_allclose(rows[48:], np.broadcast_to(rows[:48].mean(axis=0), (8, 32)), rtol=1e-5, atol=1e-6)
    tokens = sequences[0][None]
    hidden = hidden_states(larger, tokens, np.ones_like(tokens))
    np.testing.assert_array_equal(hidden, hidden_states(model, tokens, np.ones_like(tokens)))
    before, after = model.logits(hidden), larger.logits(hidden)
    np.testing.assert_allclose(after[..., :48], before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after[..., 48:53], before.mean(axis=-1, keepdims=True).repeat(5, axis=-1), atol=1e-4)


def test_rows_of_no_token_are_never_predicted_and_never_trained(model):
    marked = resize_vocabulary(model, 40)
    assert marked.config.vocab_size == 48
    hidden = jax.random.normal(jax.random.key(0), (2, 5, 32))
    targets = jnp.arange(10).reshape(2, 5)
    log_probs, entropy = marked.token_log_probs_and_entropy(hidden, targets, temperature=0.7, chunk_size=4)
    kernel = marked.output_kernel()[:, :40]
    expected, expected_entropy = token_log_probs_and_entropy(hidden, kernel, targets, temperature=0.7)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy, rtol=1e-5, atol=1e-5)
    for sampling in (SamplingConfig(temperature=5.0), SamplingConfig(top_k=45), SamplingConfig(temperature=0.0)):
        drawn, drawn_log_probs = sample_tokens(
            jax.random.key(1), jnp.tile(marked.logits(hidden[0]), (100, 1)), sampling
        )
        assert drawn.max() < 40 and np.isfinite(drawn_log_probs).all()

    def loss(kernel):
        return -token_log_probs_and_entropy(hidden, kernel, targets, token_count=40)[0].sum()

    gradient = jax.grad(loss)(marked.output_kernel())
    assert np.abs(gradient[:, :40]).max() > 0 and not np.asarray(gradient[:, 40:]).any()


def test_a_model_with_enough_rows_is_left_alone(model):
    assert resize_vocabulary(model, 48) is model
    assert fit_config(model.config, None) is model.config


def test_a_folder_s_model_is_fitted_to_its_tokenizer(make_model, tokenizer, tmp_path, caplog):
    model = make_model(tied_embeddings=False, vocab_size=256)
    save_transformer(model, tmp_path / "small", tokenizer)
    assert count_tokens(tmp_path / "small") == len(tokenizer) > 256
    with caplog.at_level(logging.WARNING):
        larger = load_transformer(tmp_path / "small")
    assert "8 rows were added" in caplog.text
    assert larger.config == read_model_config(tmp_path / "small")
    check_vocabulary(load_tokenizer(tmp_path / "small"), larger.config.vocab_size, "")
    assert larger.config.token_count == len(tokenizer)

    save_transformer(larger, tmp_path / "larger", tokenizer)
    raw = read_config(tmp_path / "larger")
    assert (raw["vocab_size"], raw["rlhf_token_count"]) == (264, len(tokenizer))
    again = load_transformer(tmp_path / "larger")
    assert again.config == larger.config
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(again), nnx.state(larger)))

    save_scorer(SequenceScorer(model, rngs=nnx.Rngs(0)), tmp_path / "scorer", tokenizer)
    scorer = load_scorer(tmp_path / "scorer", rngs=nnx.Rngs(0))
    assert scorer.transformer.config == dataclasses.replace(larger.config, tied_embeddings=True)
    assert np.isfinite(scorer(jnp.array([[len(tokenizer) - 1]]), jnp.ones((1, 1), int))).all()
