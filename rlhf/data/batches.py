"""The token batches that compiled programs take: frozen, registered as pytrees, shapes on every field.

The leading axis is the batch when a loader hands one out, and all examples while they wait in memory.
"""

from dataclasses import dataclass

from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int


@register_dataclass
@dataclass(frozen=True)
class SequenceBatch:
    """Rows of tokens for language modelling, one or several sequences a row.

    Attributes:
        tokens: token ids.
        segment_ids: 1, 2, … for the sequences of a row, 0 for padding; attention stays inside a segment.
        loss_mask: True where the token is a *target* (predicted from the tokens before it); never at a segment's first token.
    """

    tokens: Int[Array, "batch time"]
    segment_ids: Int[Array, "batch time"]
    loss_mask: Bool[Array, "batch time"]


@register_dataclass
@dataclass(frozen=True)
class PairBatch:
    """Comparisons, one or several a row: a prompt, once, and its answers as branches, each scored at its last token.

    Both answers of a comparison are in the same row, so that a row is an example by itself.

    Attributes:
        tokens: token ids.
        segment_ids: 1, 2, … for the prompts of a row with their answers, 0 for padding; attention stays inside a segment.
        branch_ids: 0 for a prompt, 1, 2, … for its answers, which see the prompt and themselves.
        positions: place of each token in its prompt and answer.
        chosen_end: column of the last token of each comparison's preferred answer.
        rejected_end: column of the last token of its other answer.
        margin: required score difference (0 when the data gives none).
        weight: each comparison's weight in the loss; 0 marks a place without one.
    """

    tokens: Int[Array, "batch time"]
    segment_ids: Int[Array, "batch time"]
    branch_ids: Int[Array, "batch time"]
    positions: Int[Array, "batch time"]
    chosen_end: Int[Array, "batch pairs"]
    rejected_end: Int[Array, "batch pairs"]
    margin: Float[Array, "batch pairs"]
    weight: Float[Array, "batch pairs"]


@register_dataclass
@dataclass(frozen=True)
class AnswerBatch:
    """Answers whose log-ratio to a reference is learned from: two a row, each after its prompt, padded on the right.

    The two are the preferred and the other answer of a comparison, or a single labelled answer and, after the same prompt, the
    answer to another one, by which the distance to the reference is measured.

    Attributes:
        tokens: prompt and answer.
        segment_ids: 1 on tokens, 0 on padding.
        answer_mask: True on the tokens of the answer.
        reference_log_probs: log-probability of each answer under the reference, in nats.
        desirable: of a single answer, that it is labelled as good; True for comparisons.
        weight: the row's weight in the loss.
    """

    tokens: Int[Array, "batch 2 time"]
    segment_ids: Int[Array, "batch 2 time"]
    answer_mask: Bool[Array, "batch 2 time"]
    reference_log_probs: Float[Array, "batch 2"]
    desirable: Bool[Array, " batch"]
    weight: Float[Array, " batch"]


@register_dataclass
@dataclass(frozen=True)
class PromptBatch:
    """Prompts to answer, left-padded so that all answers start in the same column.

    Attributes:
        tokens: token ids.
        mask: True on real tokens.
        is_safety: prompts tagged as safety prompts.
        index: position of the prompt in the data set, to find its record again.
    """

    tokens: Int[Array, "batch prompt_time"]
    mask: Bool[Array, "batch prompt_time"]
    is_safety: Bool[Array, " batch"]
    index: Int[Array, " batch"]
