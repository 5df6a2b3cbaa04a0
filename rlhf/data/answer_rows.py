"""Comparisons and labelled answers as rows of prompt and answer, for learning from log-ratios."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rlhf.data.batches import AnswerBatch
from rlhf.data.encoding import EncodedPair

Tokens = Int[np.ndarray, " time"]
PromptAndAnswer = tuple[Tokens, Tokens]


def comparison_rows(pairs: Sequence[EncodedPair], row_length: int, *, pad_token: int = 0) -> AnswerBatch:
    """Rows of the preferred and the other answer.

    Args:
        pairs: the comparisons.
        row_length: tokens a row; each prompt with either answer is at most that long (ValueError if not).
        pad_token: id written into padding.

    Returns:
        NumPy arrays; the reference's log-probabilities are 0 and to be filled in.
    """
    answers = [((pair.prompt, pair.chosen), (pair.prompt, pair.rejected)) for pair in pairs]
    weights = [pair.weight for pair in pairs]
    return _rows(answers, [True] * len(pairs), weights, row_length, pad_token)


def labelled_rows(
    answers: Sequence[PromptAndAnswer], labels: Sequence[bool], row_length: int, *, pad_token: int = 0
) -> AnswerBatch:
    """Rows of an answer and, after the same prompt, the nearest earlier answer to another prompt, cut where the row ends.

    Args:
        answers: prompt and answer.
        labels: which answers are good.
        row_length: tokens a row; each prompt with its own answer is at most that long (ValueError if not).
        pad_token: id written into padding.

    Returns:
        NumPy arrays, as of `comparison_rows`.
    """
    pairs = []
    for row, (prompt, answer) in enumerate(answers):
        mismatched = _answer_to_another_prompt(answers, row)[: row_length - len(prompt)]
        pairs.append(((prompt, answer), (prompt, mismatched)))
    return _rows(pairs, labels, [1.0] * len(pairs), row_length, pad_token)


def _answer_to_another_prompt(answers: Sequence[PromptAndAnswer], row: int) -> Tokens:
    prompt = answers[row][0].tobytes()
    others = (answers[row - step] for step in range(1, len(answers)))
    return next((answer for other, answer in others if other.tobytes() != prompt), answers[row - 1][1])


def _rows(pairs, desirable: Sequence[bool], weights: Sequence[float], row_length: int, pad_token: int) -> AnswerBatch:
    shape = (len(pairs), 2, row_length)
    tokens = np.full(shape, pad_token, np.int32)
    segment_ids, answer_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, pair in enumerate(pairs):
        for column, (prompt, answer) in enumerate(pair):
            end = len(prompt) + len(answer)
            if end > row_length:
                raise ValueError(f"row {row} has {end} tokens, expected at most {row_length}")
            tokens[row, column, :end] = np.concatenate([prompt, answer])
            segment_ids[row, column, :end] = 1
            answer_mask[row, column, len(prompt) : end] = True
    return AnswerBatch(
        tokens=tokens,
        segment_ids=segment_ids,
        answer_mask=answer_mask,
        reference_log_probs=np.zeros(shape[:2], np.float32),
        desirable=np.asarray(desirable, bool),
        weight=np.asarray(weights, np.float32),
    )
