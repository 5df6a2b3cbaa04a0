"""What the score program hands to the update and to the log."""

from dataclasses import dataclass

from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int


@register_dataclass
@dataclass(frozen=True)
class Scores:
    """The scalar rewards of each response, before the KL penalty.

    Attributes:
        helpfulness: score of the helpfulness reward model (0 without one).
        safety: score of the safety reward model (0 without one).
        rule: score of the programmatic rewards (0 without any).
        combined: what the policy is rewarded with at its last token, penalties included.
    """

    helpfulness: Float[Array, " batch"]
    safety: Float[Array, " batch"]
    rule: Float[Array, " batch"]
    combined: Float[Array, " batch"]


@register_dataclass
@dataclass(frozen=True)
class Experience:
    """A scored rollout, ready for the update.

    Attributes:
        tokens: prompt and response tokens.
        mask: True on real tokens.
        response_mask: True on response tokens.
        log_probs: of the response tokens under the policy that sampled them.
        reference_log_probs: of the same tokens under the reference, where the loss needs them, else None.
        values: of the states before each response token, under the value model at sampling time; None without one.
        advantages: of each token, whitened if so configured.
        returns: targets of the value model; None without one.
    """

    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]
    response_mask: Bool[Array, "batch response_time"]
    log_probs: Float[Array, "batch response_time"]
    reference_log_probs: Float[Array, "batch response_time"] | None
    values: Float[Array, "batch response_time"] | None
    advantages: Float[Array, "batch response_time"]
    returns: Float[Array, "batch response_time"] | None
