"""Responses end where a stop string is complete, however it is spelt in tokens; what follows is gone from every mask."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.generation.rollout import Rollout
from rlhf.rl import stopping

WORDS = ["<pad>", "<end>", "a", "b", ".", "ST", "OP", " c. d"]


@pytest.fixture(autouse=True)
def spell(monkeypatch):
    decode = lambda tokens: "".join(WORDS[token] for token in tokens if token > 1)  # noqa: E731
    monkeypatch.setattr(stopping, "text_codec", lambda tokenizer: SimpleNamespace(decode=decode))


@pytest.mark.parametrize(
    "tokens, minimum, length",
    [
        ([2, 3, 4, 2], 0, 3),
        ([4, 2, 3, 4], 0, 1),
        ([4, 2, 3, 4], 2, 4),  # the first comes too early to count
        ([4, 2, 3, 2], 2, None),
        ([2, 4, 2], 2, 2),  # complete just at the minimum
        ([2, 7, 3], 0, 2),  # inside a longer token
        ([2, 5, 6, 3], 0, 3),  # over two tokens
        ([2, 5, 3, 6], 0, None),
    ],
)
def test_fewest_tokens_that_hold_a_stop_string(tokens, minimum, length):
    assert stopping.stop_length(None, np.array(tokens), [".", "STOP"], minimum) == length


def test_masks_and_tokens_after_the_stop_are_padding():
    tokens = jnp.array([[0, 2, 2, 4, 3, 1], [2, 2, 2, 3, 1, 0]])
    mask = jnp.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], bool)
    rollout = Rollout(tokens, mask, mask[:, 2:], jnp.zeros(2, bool))
    cut, stopped = stopping.cut_at_stops(rollout, None, ["."], minimum=0, pad_token=0)
    np.testing.assert_array_equal(stopped, [True, False])
    np.testing.assert_array_equal(cut.tokens, [[0, 2, 2, 4, 0, 0], [2, 2, 2, 3, 1, 0]])
    np.testing.assert_array_equal(cut.mask, [[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(cut.response_mask, [[1, 1, 0, 0], [1, 1, 1, 0]])
