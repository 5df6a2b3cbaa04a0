import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.heads import SequenceScorer, Statistic
from rlhf.models.partition import split_model


@pytest.fixture
def batch(sequences, pad):
    return tuple(map(jnp.asarray, pad(sequences, 12, "right")))


def test_the_score_is_the_raw_score_shifted_then_scaled(make_model, batch, hidden_states):
    scorer = SequenceScorer(make_model(), rngs=nnx.Rngs(1))
    definition, state = nnx.split(scorer)
    run = jax.jit(lambda state: nnx.merge(definition, state)(*batch))
    raw = run(state)
    assert raw.shape == batch[0].shape and raw.dtype == jnp.float32
    expected = (hidden_states(scorer.transformer, *batch) @ scorer.kernel[...])[..., 0]
    np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-5)
    scorer.shift.set_value(jnp.float32(2.0))
    scorer.scale.set_value(jnp.float32(3.0))
    np.testing.assert_allclose(run(nnx.state(scorer)), (raw - 2.0) * 3.0, rtol=1e-5, atol=1e-5)


def test_a_head_of_zeros_scores_0_everywhere(make_model, batch):
    assert not SequenceScorer(make_model(), rngs=nnx.Rngs(1), head_init="zeros")(*batch).any()


def test_a_drawn_head_has_the_spread_of_the_paper(make_model):
    kernel = SequenceScorer(make_model(width=1024, layers=1, mlp_width=8), rngs=nnx.Rngs(1)).kernel[...]
    np.testing.assert_allclose(kernel.std(), 1025**-0.5, rtol=0.1)


def test_statistics_are_frozen_and_parameters_are_trained(make_model, batch):
    scorer = SequenceScorer(make_model(), rngs=nnx.Rngs(1))
    definition, trainable, frozen = split_model(scorer)
    assert {path for path, _ in nnx.to_flat_state(frozen)} == {("scale",), ("shift",)}
    assert all(isinstance(variable, Statistic) for _, variable in nnx.to_flat_state(frozen))
    assert ("kernel",) in {path for path, _ in nnx.to_flat_state(trainable)}
    again = nnx.merge(definition, trainable, frozen)
    assert nnx.graphdef(again) == nnx.graphdef(scorer)
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(again), nnx.state(scorer)))
