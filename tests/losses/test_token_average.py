"""What a token weighs, against loops over responses."""

import numpy as np
import pytest

from rlhf.losses import average_tokens

LENGTHS = (3, 1, 0, 5)


@pytest.mark.parametrize("kind", ["tokens", "responses", "constant"])
def test_equal_to_a_loop_over_responses_whatever_the_padding_holds(kind):
    mask = np.arange(5) < np.array(LENGTHS)[:, None]
    losses = np.random.default_rng(0).normal(size=mask.shape)
    rows = [losses[row, :length] for row, length in enumerate(LENGTHS) if length]
    expected = {
        "tokens": np.concatenate(rows).mean(),
        "responses": np.mean([row.mean() for row in rows]),
        "constant": np.mean([row.sum() / 5 for row in rows]),
    }
    total, weight = average_tokens(np.where(mask, losses, np.nan).astype(np.float32), mask, kind)
    assert weight == (9 if kind == "tokens" else 3)
    np.testing.assert_allclose(total / weight, expected[kind], rtol=1e-6)
