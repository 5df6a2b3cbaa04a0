"""The sampler of the stages that sample from a policy and score what came, made from the configuration keys they share."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rlhf.evaluation.responses import ScoredSampler
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.rl.stopping import stop_minimum
from rlhf.stages.setup import batch_layout


def configured_sampler(
    config: Any,
    policy: Transformer,
    tokenizer: PreTrainedTokenizerBase,
    mesh: Mesh,
    *,
    reward_models: Mapping[str, SequenceScorer],
    reference: Transformer | None = None,
) -> ScoredSampler:
    """What samples and scores as a stage's configuration says; refuses a batch size that the devices cannot share.

    Args:
        config: of best-of-n or evaluate.
        policy: to sample from.
        tokenizer: of the policy.
        mesh: what the models lie on.
        reward_models: by name.
        reference: the policy to measure the KL to, or None.
    """
    return ScoredSampler(
        policy,
        tokenizer,
        sampling=config.sampling,
        max_new_tokens=config.response_length,
        reference=reference,
        reward_models=reward_models,
        combine=config.combine,
        batch_size=config.batch_size,
        layout=batch_layout(mesh, config.batch_size, "batch_size"),
        refill=mesh.size == 1,
        minimum_new_tokens=config.minimum_length,
        stop_strings=config.stop_strings,
        stop_minimum=stop_minimum(config.minimum_length, config.stop_after),
        rollout_weights=config.rollout_weights,
    )
