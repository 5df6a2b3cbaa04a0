"""Comparisons into rows: every answer of a prompt is a segment, and a comparison is two columns of the same row.

The comparisons of a ranked list stay together, and an answer that several of them name is computed once: K answers give
K(K−1)/2 comparisons for K forward passes, in one element of the batch (2203.02155, section 3.5).
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Int

from rlhf.data.batches import PairBatch
from rlhf.data.encoding import EncodedPair
from rlhf.data.packing import best_fit_decreasing, check_lengths

Ranking = list[EncodedPair]
"""The comparisons of one record: a pair, or all pairs of a ranked list."""


def rankings_of(pairs: Sequence[EncodedPair]) -> list[Ranking]:
    """Puts together the neighbours that come from the same record; a pair of unknown origin stands alone."""
    return [list(group) for _, group in groupby(pairs, key=lambda pair: pair.origin or pair.index)]


def ranking_length(ranking: Ranking) -> int:
    """Tokens of a ranking: each of its answers once, every one after the prompt."""
    return sum(map(len, _sequences(ranking).values()))


def pack_rankings(rankings: Sequence[Ranking], row_length: int, *, pad_token: int = 0) -> PairBatch:
    """Packs rankings into rows as `pack_sequences` does with sequences.

    Args:
        rankings: the comparisons, those of a ranked list together.
        row_length: tokens a row; each ranking is at most that long (ValueError if not).
        pad_token: id written into padding.

    Returns:
        NumPy arrays [rows, row_length], and [rows, most comparisons in a row] for what belongs to a comparison.
    """
    lengths = [ranking_length(ranking) for ranking in rankings]
    check_lengths(lengths, row_length)
    rows = [[rankings[index] for index in row] for row in best_fit_decreasing(lengths, row_length)]
    places = (len(rows), max((sum(map(len, row)) for row in rows), default=0))
    batch = PairBatch(
        tokens=np.full((len(rows), row_length), pad_token, np.int32),
        segment_ids=np.zeros((len(rows), row_length), np.int32),
        chosen_end=np.zeros(places, np.int32),
        rejected_end=np.zeros(places, np.int32),
        margin=np.zeros(places, np.float32),
        weight=np.zeros(places, np.float32),
    )
    for row, members in enumerate(rows):
        _fill_row(batch, row, members)
    return batch


def _fill_row(batch: PairBatch, row: int, rankings: Sequence[Ranking]) -> None:
    column = segment = place = 0
    for ranking in rankings:
        last = {}
        for key, sequence in _sequences(ranking).items():
            segment += 1
            batch.tokens[row, column : column + len(sequence)] = sequence
            batch.segment_ids[row, column : column + len(sequence)] = segment
            column += len(sequence)
            last[key] = column - 1
        for pair in ranking:
            batch.chosen_end[row, place] = last[pair.chosen.tobytes()]
            batch.rejected_end[row, place] = last[pair.rejected.tobytes()]
            batch.margin[row, place], batch.weight[row, place] = pair.margin, pair.weight
            place += 1


def _sequences(ranking: Ranking) -> dict[bytes, Int[np.ndarray, " time"]]:
    """Prompt and answer for each different answer, by the answer's bytes."""
    return {
        answer.tobytes(): np.concatenate([pair.prompt, answer])
        for pair in ranking
        for answer in (pair.chosen, pair.rejected)
    }
