"""A distribution without one of its tokens, against the softmax of the logits that are left."""

import numpy as np
import scipy.special

from rlhf.losses import exclude_token


def test_equal_to_the_softmax_over_the_other_tokens():
    logits = np.random.default_rng(0).normal(scale=3.0, size=(50, 8))
    log_p, log_q = scipy.special.log_softmax(logits, axis=1), scipy.special.log_softmax(logits[:, 1:], axis=1)
    entropy_p, entropy_q = (-(np.exp(part) * part).sum(axis=1) for part in (log_p, log_q))
    log_probs, entropy = exclude_token(*(part.astype(np.float32) for part in (log_p[:, 5], entropy_p, log_p[:, 0])))
    np.testing.assert_allclose(log_probs, log_q[:, 4], atol=1e-4)
    np.testing.assert_allclose(entropy, entropy_q, atol=1e-4)


def test_a_token_of_probability_one_leaves_finite_numbers():
    log_probs, entropy = exclude_token(np.float32([-50.0]), np.float32([0.0]), np.float32([0.0]))
    assert np.isfinite(log_probs).all() and np.isfinite(entropy).all()
