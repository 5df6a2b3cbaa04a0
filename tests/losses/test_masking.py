"""Masked sums: what is under the mask stays there, in value and in gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import masked_mean, masked_sum


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), rows=st.sampled_from([1, 3]), columns=st.sampled_from([1, 6]))
def test_agree_with_numpy_whatever_lies_under_the_mask(seed, rows, columns):
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, columns)).astype(np.float32)
    mask = random.random((rows, columns)) < 0.5
    garbage = jnp.asarray(np.where(mask, values, random.choice([np.nan, np.inf, 1e38], size=values.shape)))
    total, weight = masked_sum(garbage, mask)
    np.testing.assert_allclose(total, values[mask].sum(dtype=np.float64), atol=1e-5)
    assert weight == mask.sum()
    np.testing.assert_allclose(masked_mean(garbage, mask), values[mask].mean() if mask.any() else 0.0, atol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda x: masked_sum(x, mask)[0])(garbage), mask.astype(np.float32))


def test_accumulated_sums_equal_the_full_batch_for_unequal_lengths():
    values = jnp.arange(12.0).reshape(2, 6)
    mask = jnp.arange(6) < jnp.asarray([[6], [1]])
    full_sum, full_weight = masked_sum(values, mask)
    parts = [masked_sum(values[row], mask[row]) for row in range(2)]
    assert sum(part[0] for part in parts) / sum(part[1] for part in parts) == full_sum / full_weight


def test_half_precision_is_summed_in_float32():
    total, weight = masked_sum(jnp.ones(4096, jnp.bfloat16), jnp.ones(4096, bool))
    assert total == weight == 4096 and total.dtype == jnp.float32
