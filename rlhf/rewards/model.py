"""Scores of whole responses: one number, read at the response's last token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf.models.heads import SequenceScorer


def last_token_index(mask: Bool[Array, "batch time"]) -> Int[Array, " batch"]:
    """Column of the last real token of each row, whatever the padding's side; 0 for a row of padding only."""
    columns = jnp.arange(mask.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(mask, columns, 0), axis=1)


def score_sequences(
    scorer: SequenceScorer, tokens: Int[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, " batch"]:
    """Scores prompt and response, read at the last real token: the end token, or the last one sampled when it was cut.

    Never at padding, the mistake that gives every short response the score of nothing (2403.17031, detail 12).
    """
    scores = scorer(tokens, mask.astype(jnp.int32))
    return jnp.take_along_axis(scores, last_token_index(mask)[:, None], axis=1)[:, 0]
