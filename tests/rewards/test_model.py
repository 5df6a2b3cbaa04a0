"""The one number that a response is scored with is read at its last real token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.rewards.model import last_token_index, score_sequences

ARCHITECTURE = ModelConfig(vocab_size=16, width=16, layers=2, heads=2, mlp_width=16, context=16, initializer_std=0.4)
LENGTHS = (6, 1, 4)


@pytest.fixture(scope="module")
def scorer() -> SequenceScorer:
    return SequenceScorer(Transformer(ARCHITECTURE, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7).filter(any), min_size=1, max_size=5))
def test_last_token_is_the_last_that_is_real(rows):
    expected = [max(column for column, real in enumerate(row) if real) for row in rows]
    np.testing.assert_array_equal(last_token_index(jnp.asarray(rows)), expected)


@pytest.mark.parametrize("filler", [0, 9])
@pytest.mark.parametrize("left, right", [(0, 3), (3, 0), (2, 1)])
def test_scores_are_those_at_the_last_token_whatever_the_padding(scorer, left, right, filler):
    random = np.random.default_rng(0)
    tokens = np.full((3, max(LENGTHS) + left + right), filler, np.int32)
    mask = np.zeros(tokens.shape, bool)
    alone = np.zeros((3, 9), np.int32)
    for row, length in enumerate(LENGTHS):
        # Left padding ends where the sequence begins; right padding begins where it ends.
        start = max(LENGTHS) + left - length if left else 0
        alone[row, :length] = random.integers(1, 16, length)
        tokens[row, start : start + length] = alone[row, :length]
        mask[row, start : start + length] = True
    everywhere = scorer(jnp.asarray(alone), jnp.asarray(np.arange(9) < np.array(LENGTHS)[:, None], jnp.int32))
    expected = [everywhere[row, length - 1] for row, length in enumerate(LENGTHS)]
    scores = jax.jit(lambda tokens, mask: score_sequences(scorer, tokens, mask))(tokens, mask)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.std(expected) > 0.05
