"""From a rollout to experience: log-probabilities, values, rewards, advantages.

    prompts + responses ─▶ log-probs of policy and reference, values, reward-model scores
                        ─▶ reward[b, t] = −coefficient · kl[b, t]  (+ combined score at the last response token)
                        ─▶ generalized advantages and returns

The policy's log-probabilities are computed anew by the same function as the reference's and as the update's, not taken from the
sampler: so the KL is exactly 0 while policy and reference are equal, and the first ratio of an update is 1.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf.generation.rollout import Rollout
from rlhf.losses.advantages import explained_variance, generalized_advantages, whiten
from rlhf.losses.kl import kl_estimate, kl_shaped_rewards
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.rewards.combine import CombineConfig, combine_scores
from rlhf.rewards.model import score_sequences
from rlhf.rl.batches import Experience, Scores
from rlhf.rl.config import PPOConfig


@dataclass(frozen=True)
class ScoringModels:
    """The models that a rollout is scored with.

    Attributes:
        policy: the one that sampled the responses.
        reference: the SFT policy.
        value: one value a position.
        helpfulness: reward model, or None.
        safety: reward model, or None.
    """

    policy: Transformer
    reference: Transformer
    value: SequenceScorer
    helpfulness: SequenceScorer | None
    safety: SequenceScorer | None


def response_log_probs(
    model: Transformer,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    response_time: int,
    *,
    temperature: float,
    logits_chunk: int | None,
) -> tuple[Float[Array, "batch response_time"], Float[Array, "batch response_time"]]:
    """Log-probability of each response token, and the entropy of the distribution it was drawn from, at the given temperature.

    Logits are computed at the response's positions only, in chunks.
    """
    hidden = model(tokens, mask.astype(jnp.int32))
    return model.token_log_probs_and_entropy(
        hidden[:, -response_time - 1 : -1],
        tokens[:, -response_time:],
        temperature=temperature,
        chunk_size=logits_chunk,
    )


def response_values(
    value_model: SequenceScorer, tokens: Int[Array, "batch time"], mask: Bool[Array, "batch time"], response_time: int
) -> Float[Array, "batch response_time"]:
    """Value of the state before each response token: read one position earlier."""
    return value_model(tokens, mask.astype(jnp.int32))[:, -response_time - 1 : -1]


def score_rollout(
    models: ScoringModels,
    rollout: Rollout,
    rule_scores: Float[Array, " batch"],
    kl_coefficient: Float[Array, ""],
    end_token: int,
    config: PPOConfig,
) -> tuple[Experience, Scores, Float[Array, " batch"], dict[str, Float[Array, ""]]]:
    """Scores a rollout and turns it into experience. Pure; call it under `jax.jit`.

    Args:
        models: policy, reference, value and reward models.
        rollout: prompts and responses.
        rule_scores: programmatic rewards, computed from the texts on the host.
        kl_coefficient: weight of the KL penalty now.
        end_token: a response without it is penalised.
        config: discount, decay, whitening, combination.

    Returns:
        The experience, the scores, the KL to the reference of each response (nats, summed over its tokens), and metrics.
    """
    tokens, mask, response_mask = rollout.tokens, rollout.mask, rollout.response_mask
    response_time = response_mask.shape[1]
    log_probs_of = partial(
        response_log_probs,
        tokens=tokens,
        mask=mask,
        response_time=response_time,
        temperature=config.temperature,
        logits_chunk=config.logits_chunk,
    )
    log_probs, entropy = log_probs_of(models.policy)
    reference_log_probs, _ = log_probs_of(models.reference)
    values = response_values(models.value, tokens, mask, response_time)

    helpfulness, safety, combined, combine_metrics = reward_model_scores(models, rollout, config.combine)
    has_ended = jnp.any((tokens[:, -response_time:] == end_token) & response_mask, axis=1)
    score = combined + config.rule_weight * rule_scores - config.missing_end_penalty * ~has_ended

    kl = kl_estimate(log_probs, reference_log_probs, config.kl.estimator)
    rewards = kl_shaped_rewards(score, kl, response_mask, kl_coefficient)
    if config.whiten_rewards:
        rewards = whiten(rewards, response_mask, shift_mean=False)
    advantages, returns = generalized_advantages(
        rewards, values, response_mask, discount=config.discount, decay=config.gae_decay
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, response_mask)

    experience = Experience(tokens, mask, response_mask, log_probs, values, advantages, returns)
    log_ratio = jnp.where(response_mask, log_probs - reference_log_probs, 0.0)
    penalty = -kl_coefficient * jnp.where(response_mask, kl, 0.0).sum(axis=1)
    metrics = rollout_metrics(log_ratio, entropy, score, penalty, experience, has_ended, kl_coefficient)
    metrics |= {f"combine/{name}": total / weight for name, (total, weight) in combine_metrics.items()}
    return experience, Scores(helpfulness, safety, rule_scores, score), log_ratio.sum(axis=1), metrics


def reward_model_scores(models: ScoringModels, rollout: Rollout, combine: CombineConfig):
    """Scores of both reward models and what they combine to; a model that is not there scores 0 and leaves the other alone."""
    nothing = jnp.zeros(rollout.tokens.shape[0], jnp.float32)
    helpfulness, safety = (
        nothing if model is None else score_sequences(model, rollout.tokens, rollout.mask)
        for model in (models.helpfulness, models.safety)
    )
    if models.helpfulness is None or models.safety is None:
        return helpfulness, safety, helpfulness + safety, {}
    return helpfulness, safety, *combine_scores(combine, helpfulness, safety, rollout.is_safety)


def rollout_metrics(
    log_ratio: Float[Array, "batch response_time"],
    entropy: Float[Array, "batch response_time"],
    score: Float[Array, " batch"],
    penalty: Float[Array, " batch"],
    experience: Experience,
    has_ended: Bool[Array, " batch"],
    kl_coefficient: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    """Metrics of a rollout under the names of TRL's PPO, with KL and entropy also per token.

    `objective/kl` is the k1 estimate summed over a response's tokens and averaged over responses, whatever estimator the penalty
    uses; `objective/kl_per_token` divides by the number of tokens, which is what some other code bases call "kl".
    `objective/entropy` is summed over a response in the same way.
    """
    mask = experience.response_mask
    tokens = mask.sum()
    lengths = mask.sum(axis=1)
    masked_entropy = jnp.where(mask, entropy, 0.0)
    return {
        "objective/kl": log_ratio.sum(axis=1).mean(),
        "objective/kl_per_token": log_ratio.sum() / tokens,
        "objective/kl_coefficient": kl_coefficient,
        "objective/entropy": masked_entropy.sum(axis=1).mean(),
        "objective/entropy_per_token": masked_entropy.sum() / tokens,
        "objective/scores": score.mean(),
        "objective/scores_std": score.std(),
        "objective/non_score_reward": penalty.mean(),
        "objective/rlhf_reward": (score + penalty).mean(),
        "objective/response_length": lengths.mean(),
        "val/num_eos_tokens": has_ended.sum().astype(jnp.float32),
        "val/explained_variance": explained_variance(experience.values, experience.returns, mask),
    }
