"""The loss of language modelling: of pretraining, of fine-tuning, and of the text that PPO-ptx trains on beside its rewards.

PPO-ptx adds the gradient of language modelling on pretraining text to each step's (2203.02155, equation 2): what reinforcement
learning would make the policy forget is held by the data that it was learned from.
"""

from rlhf.data.batches import SequenceBatch
from rlhf.models.transformer import Transformer
from rlhf.training.step import LossFunction


def next_token_loss(logits_chunk: int | None) -> LossFunction:
    """Cross-entropy of each target token given those before it, at temperature 1.

    Args:
        logits_chunk: positions whose logits are held at once; None for all.
    """

    def loss(model: Transformer, rows: SequenceBatch):
        hidden = model(rows.tokens, rows.segment_ids)
        targets, counts = rows.tokens[:, 1:], rows.loss_mask[:, 1:]
        return *model.cross_entropy(hidden[:, :-1], targets, counts, chunk_size=logits_chunk), {}

    return loss
