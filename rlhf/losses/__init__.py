"""The formulas of alignment, as pure functions on arrays: nothing here knows of models, batches, files or devices.

Each can be used alone (`from rlhf.losses import clipped_surrogate`). Those that are minimised return a weighted sum and
its weight and leave the division to the caller, so that adding up over micro-batches and devices is exact for sequences
of unequal length.
"""

from rlhf.losses.advantages import explained_variance, generalized_advantages, whiten
from rlhf.losses.kl import adaptive_kl_coefficient, kl_estimate, kl_shaped_rewards
from rlhf.losses.language_model import cross_entropy, token_log_probs, token_log_probs_and_entropy
from rlhf.losses.masking import masked_mean, masked_sum
from rlhf.losses.policy_gradient import clipped_surrogate, clipped_value_loss
from rlhf.losses.preference import pairwise_accuracy, pairwise_loss

__all__ = [
    "adaptive_kl_coefficient",
    "clipped_surrogate",
    "clipped_value_loss",
    "cross_entropy",
    "explained_variance",
    "generalized_advantages",
    "kl_estimate",
    "kl_shaped_rewards",
    "masked_mean",
    "masked_sum",
    "pairwise_accuracy",
    "pairwise_loss",
    "token_log_probs",
    "token_log_probs_and_entropy",
    "whiten",
]
