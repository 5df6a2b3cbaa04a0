"""The settings of PPO, by what they decide."""

from dataclasses import dataclass, field
from typing import Literal

from rlhf.errors import UserError, require_positive
from rlhf.rewards.combine import CombineConfig


@dataclass(frozen=True)
class KLConfig:
    """The penalty that keeps the policy near the reference.

    Attributes:
        coefficient: weight of the per-token penalty in the reward (its first value when adaptive).
        controller: keep the coefficient, or adapt it to hold the KL at a target (1909.08593, section 2.2).
        target: KL in nats a response that the adaptive controller holds.
        horizon: how slowly the adaptive controller moves, in episodes.
        estimator: per-token estimate from the two log-probabilities: k1 is the log-ratio, k2 half its square, k3 is
            unbiased and never negative.
    """

    coefficient: float = 0.05
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: float = 6.0
    horizon: int = 10_000
    estimator: Literal["k1", "k2", "k3"] = "k1"


@dataclass(frozen=True)
class PPOConfig:
    """The algorithm (1707.06347, as used in 2203.02155 and 2307.09288).

    Attributes:
        rollout_batch_size: prompts, and so responses, in one iteration.
        minibatch_size: responses in one gradient step.
        micro_batches: parts of a minibatch computed one after the other, to save memory; the result does not change.
        epochs: passes over a rollout.
        response_length: longest response in tokens.
        temperature: of sampling; all log-probabilities of policy and reference are taken at it.
        discount: of later rewards.
        gae_decay: λ of generalized advantage estimation (1506.02438).
        clip_range: of the probability ratio.
        value_clip_range: how far a new value may move from the one at sampling time.
        whiten_rewards: divide per-token rewards by their standard deviation over the batch, leaving the mean.
        whiten_advantages: advantages to mean 0 and standard deviation 1 over the batch.
        missing_end_penalty: taken off the score of a response that never ended.
        kl: the penalty towards the reference.
        combine: how the reward models' scores become one.
        rule_weight: weight of the programmatic rewards' sum, added to the combined score.
        logits_chunk: positions whose logits are held at once; null for all.
    """

    rollout_batch_size: int = 64
    minibatch_size: int = 16
    micro_batches: int = 1
    epochs: int = 4
    response_length: int = 48
    temperature: float = 1.0
    discount: float = 1.0
    gae_decay: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    missing_end_penalty: float = 1.0
    kl: KLConfig = field(default_factory=KLConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    rule_weight: float = 1.0
    logits_chunk: int | None = None

    def __post_init__(self):
        sizes = ("rollout_batch_size", "minibatch_size", "micro_batches", "epochs", "response_length")
        require_positive(self, *sizes, section="ppo.")
        if self.rollout_batch_size % self.minibatch_size:
            raise UserError(
                f"ppo.minibatch_size ({self.minibatch_size}) does not divide ppo.rollout_batch_size ({self.rollout_batch_size})",
                fix="choose sizes that divide, so that every response is seen once an epoch.",
            )
        if self.minibatch_size % self.micro_batches:
            raise UserError(
                f"ppo.micro_batches ({self.micro_batches}) does not divide ppo.minibatch_size ({self.minibatch_size})",
                fix="choose a number of micro-batches that divides the minibatch.",
            )
        if self.temperature <= 0:
            raise UserError(
                f"ppo.temperature is {self.temperature}, but the policy must explore",
                fix="set a temperature above 0 (1 is usual).",
            )
