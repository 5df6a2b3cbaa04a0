"""What the score program hands to the update and to the log."""

from dataclasses import dataclass, replace

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
        cost_values: of the same states under the cost critic; None without one.
        cost_returns: targets of the cost critic; None without one.
        support: the tokens that each response token was drawn from, where sampling ruled others out; see `response_log_probs`.
    """

    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]
    response_mask: Bool[Array, "batch response_time"]
    log_probs: Float[Array, "batch response_time"]
    reference_log_probs: Float[Array, "batch response_time"] | None
    values: Float[Array, "batch response_time"] | None
    advantages: Float[Array, "batch response_time"]
    returns: Float[Array, "batch response_time"] | None
    cost_values: Float[Array, "batch response_time"] | None = None
    cost_returns: Float[Array, "batch response_time"] | None = None
    support: Int[Array, "batch response_time kept"] | None = None

    def of_cost(self) -> "Experience":
        """The same as the cost critic sees it: its values and its targets in the place of the value model's."""
        return replace(self, values=self.cost_values, returns=self.cost_returns)
