"""Token sequences of many lengths into rectangular arrays: several sequences a row (packing) or one (padding).

In a packed row every sequence has its own segment id; attention, positions and targets stay inside the segment, so the loss is
the same as with one sequence a row, at a fraction of the padding.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from rlhf.data.batches import PromptBatch, SequenceBatch
from rlhf.data.encoding import EncodedPrompt

Sequences = Sequence[tuple[Int[np.ndarray, " time"], Bool[np.ndarray, " time"]]]


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is at least `length`: rounding shapes keeps the number of compiled programs small."""
    return -(-length // multiple) * multiple


def split_long(sequences: Sequences, row_length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts sequences longer than a row into pieces that fit; no token is lost or doubled.

    The first token of a piece has nothing before it to be predicted from, so each cut costs one target.
    """
    return [
        (tokens[start : start + row_length], loss_mask[start : start + row_length])
        for tokens, loss_mask in sequences
        for start in range(0, len(tokens), row_length)
    ]


def pack_sequences(sequences: Sequences, row_length: int, *, pad_token: int = 0) -> SequenceBatch:
    """Packs sequences into as few rows as best-fit decreasing finds: the longest first, each into the fullest row it fits.

    Args:
        sequences: tokens and loss mask of each sequence, 1 to `row_length` tokens long.
        row_length: tokens a row.
        pad_token: id written into padding.

    Returns:
        NumPy arrays [rows, row_length]. A segment's first token is never a target.

    Raises:
        ValueError: a sequence is empty or longer than a row.
    """
    check_lengths([len(tokens) for tokens, _ in sequences], row_length)
    return _lay_out(
        sequences, best_fit_decreasing([len(tokens) for tokens, _ in sequences], row_length), row_length, pad_token
    )


def pad_sequences(sequences: Sequences, row_length: int, *, pad_token: int = 0) -> SequenceBatch:
    """One sequence a row, in order, padded on the right; arguments and errors as in `pack_sequences`."""
    check_lengths([len(tokens) for tokens, _ in sequences], row_length)
    return _lay_out(sequences, [[index] for index in range(len(sequences))], row_length, pad_token)


def pad_prompts(prompts: Sequence[EncodedPrompt], length: int, *, pad_token: int = 0) -> PromptBatch:
    """Prompts padded on the left to `length`, so that all answers begin in the same column (ValueError if longer)."""
    tokens, mask = _pad_rows([prompt.tokens[::-1] for prompt in prompts], length, pad_token)
    return PromptBatch(
        tokens=np.ascontiguousarray(tokens[:, ::-1]),
        mask=np.ascontiguousarray(mask[:, ::-1]),
        is_safety=np.asarray([prompt.is_safety for prompt in prompts], bool),
        index=np.asarray([prompt.index for prompt in prompts], np.int32),
    )


def check_lengths(lengths: Iterable[int], row_length: int) -> None:
    """Raises ValueError where something is empty or longer than a row."""
    for index, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise ValueError(f"sequence {index} has {length} tokens, expected 1 to {row_length} (the length of a row)")


def best_fit_decreasing(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """The sequences of each row. Open rows are found by their free space in a sorted list, so 100,000 sequences take a second."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free space, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(open_rows, (lengths[index], -1))
        if place < len(open_rows):
            free, row = open_rows.pop(place)
        else:
            free, row = row_length, len(rows)
            rows.append([])
        rows[row].append(index)
        if free > lengths[index]:
            insort(open_rows, (free - lengths[index], row))
    return rows


def _lay_out(sequences: Sequences, rows: list[list[int]], row_length: int, pad_token: int) -> SequenceBatch:
    tokens = np.full((len(rows), row_length), pad_token, np.int32)
    segment_ids = np.zeros((len(rows), row_length), np.int32)
    loss_mask = np.zeros((len(rows), row_length), bool)
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members, start=1):
            sequence_tokens, sequence_mask = sequences[index]
            end = start + len(sequence_tokens)
            tokens[row, start:end] = sequence_tokens
            segment_ids[row, start:end] = segment
            loss_mask[row, start + 1 : end] = sequence_mask[1:]
            start = end
    return SequenceBatch(tokens, segment_ids, loss_mask)


def _pad_rows(rows: Sequence[np.ndarray], length: int, pad_token: int) -> tuple[np.ndarray, np.ndarray]:
    check_lengths([len(row) for row in rows], length)
    tokens = np.full((len(rows), length), pad_token, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        mask[index, : len(row)] = True
    return tokens, mask
