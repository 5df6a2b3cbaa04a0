import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.data.tokenizers import check_vocabulary, train_tokenizer
from rlhf.errors import UserError
from rlhf.generation.sampling import SamplingConfig, sample_tokens
from rlhf.losses import token_log_probs_and_entropy
from rlhf.models.bases import Bases
from rlhf.models.hub import load_transformer, read_config, read_model_config, save_transformer
from rlhf.models.source import ModelSource, load_policy
from rlhf.models.vocabulary import count_tokens, mark_tokens, resize_vocabulary


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
    assert mark_tokens(model.config, None) is model.config
    assert mark_tokens(model.config, 50) is model.config


def test_a_folder_s_rows_of_no_token_are_marked(make_model, tokenizer, tmp_path):
    model = make_model(vocab_size=300)
    save_transformer(model, tmp_path / "model", tokenizer)
    again = load_transformer(tmp_path / "model")
    assert again.config.token_count == count_tokens(tmp_path / "model") == len(tokenizer)
    assert read_model_config(tmp_path / "model") == again.config
    save_transformer(again, tmp_path / "without tokenizer", None)
    raw = read_config(tmp_path / "without tokenizer")
    assert (raw["vocab_size"], raw["rlhf_token_count"]) == (300, len(tokenizer))
    assert load_transformer(tmp_path / "without tokenizer").config == again.config


def test_tokens_without_a_row_get_one_if_asked_for(make_model, tokenizer, tmp_path, caplog):
    save_transformer(make_model(tied_embeddings=False, vocab_size=256), tmp_path / "small", tokenizer)
    source = ModelSource(init_from=str(tmp_path / "small"))
    with pytest.raises(UserError, match="embedding only 256 rows"):
        check_vocabulary(tokenizer, load_policy(source, 0).config.vocab_size, "")
    source = dataclasses.replace(source, add_token_rows=True)
    with caplog.at_level(logging.WARNING):
        larger = load_policy(source, 0)
    assert "8 rows were added" in caplog.text
    assert (larger.config.vocab_size, larger.config.token_count) == (264, len(tokenizer))
    check_vocabulary(tokenizer, larger.config.vocab_size, "")
    save_transformer(larger, tmp_path / "larger", tokenizer)
    again = load_transformer(tmp_path / "larger")
    assert again.config == larger.config
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(again), nnx.state(larger)))
    with pytest.raises(UserError, match="would not have the new rows"):
        load_policy(source, 0, Bases())
