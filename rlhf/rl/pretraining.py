"""PPO-ptx: the gradient of language modelling on pretraining text, added to each step's (2203.02155, equation 2).

What reinforcement learning would make the policy forget is held by the data that it was learned from.
"""

from rlhf.data.batches import SequenceBatch
from rlhf.training.step import LossFunction


def pretraining_loss(logits_chunk: int | None) -> LossFunction:
    """The loss of the pretraining rows: cross-entropy of each target token given those before it, at temperature 1."""

    def loss(policy, rows: SequenceBatch):
        hidden = policy(rows.tokens, rows.segment_ids)
        targets, counts = rows.tokens[:, 1:], rows.loss_mask[:, 1:]
        return *policy.cross_entropy(hidden[:, :-1], targets, counts, chunk_size=logits_chunk), {}

    return loss
