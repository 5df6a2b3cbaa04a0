"""Prompts and sampled responses side by side, as scoring and updates take them."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Int

from rlhf.data.batches import PromptBatch
from rlhf.generation.generator import Responses


@register_dataclass
@dataclass(frozen=True)
class Rollout:
    """Prompts and the responses that the policy gave, in one row each: left-padded prompt, right-padded response.

    Attributes:
        tokens: prompt and response tokens.
        mask: True on real tokens.
        response_mask: True on response tokens, the end token included.
        is_safety: prompts tagged as safety prompts.
        support: the tokens that each response token was drawn from, where sampling ruled others out; see `Responses`.
    """

    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]
    response_mask: Bool[Array, "batch response_time"]
    is_safety: Bool[Array, " batch"]
    support: Int[Array, "batch response_time kept"] | None = None


def join(prompts: PromptBatch, responses: Responses) -> Rollout:
    """Puts each prompt and its response into one row."""
    return Rollout(
        tokens=jnp.concatenate([prompts.tokens, responses.tokens], axis=1),
        mask=jnp.concatenate([prompts.mask, responses.mask], axis=1),
        response_mask=responses.mask,
        is_safety=prompts.is_safety,
        support=responses.support,
    )
