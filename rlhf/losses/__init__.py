"""The formulas of alignment, as pure functions on arrays: nothing here knows of models, batches, files or devices.

Each can be used alone (`from rlhf.losses import clipped_surrogate`). Those that are minimised return a weighted sum and
its weight and leave the division to the caller, so that adding up over micro-batches and devices is exact for sequences
of unequal length.
"""

from rlhf.losses.advantages import explained_variance, generalized_advantages, whiten
from rlhf.losses.chunked_cross_entropy import cross_entropy_of_states
from rlhf.losses.excluded_token import exclude_token
from rlhf.losses.kl import adaptive_kl_coefficient, kl_estimate, kl_shaped_rewards
from rlhf.losses.language_model import cross_entropy, token_log_probs, token_log_probs_and_entropy
from rlhf.losses.masking import masked_mean, masked_sum
from rlhf.losses.policy_gradient import clipped_surrogate, clipped_value_loss, surrogate_losses, surrogate_metrics
from rlhf.losses.preference import pairwise_accuracy, pairwise_loss
from rlhf.losses.response_advantages import (
    centred_group_advantages,
    leave_one_out_advantages,
    normalised_group_advantages,
    tied_share,
)
from rlhf.losses.token_average import average_tokens

__all__ = [
    "adaptive_kl_coefficient",
    "average_tokens",
    "centred_group_advantages",
    "clipped_surrogate",
    "clipped_value_loss",
    "cross_entropy",
    "cross_entropy_of_states",
    "exclude_token",
    "explained_variance",
    "generalized_advantages",
    "kl_estimate",
    "kl_shaped_rewards",
    "leave_one_out_advantages",
    "masked_mean",
    "masked_sum",
    "normalised_group_advantages",
    "pairwise_accuracy",
    "pairwise_loss",
    "surrogate_losses",
    "surrogate_metrics",
    "tied_share",
    "token_log_probs",
    "token_log_probs_and_entropy",
    "whiten",
]
