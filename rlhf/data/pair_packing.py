"""Comparisons into rows: a prompt and its answers are a segment, and a comparison is two columns of it.

The comparisons of a ranked list stay together: K answers give K(K−1)/2 comparisons in one element of the batch (2203.02155,
section 3.5). Nothing is computed twice: an answer that several comparisons name is there once, and so is the prompt, which all
answers continue.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Int

from rlhf.data.batches import PairBatch
from rlhf.data.encoding import EncodedPair
from rlhf.data.labelled_pairs import LabelledPairBatch
from rlhf.data.packing import best_fit_decreasing, check_lengths

Ranking = list[EncodedPair]
"""The comparisons of one record: a pair, or all pairs of a ranked list."""


def rankings_of(pairs: Sequence[EncodedPair]) -> list[Ranking]:
    """Puts together the neighbours with one prompt from one record; a pair of unknown origin stands alone."""
    return [
        list(group) for _, group in groupby(pairs, key=lambda pair: (pair.origin or pair.index, pair.prompt.tobytes()))
    ]


def ranking_length(ranking: Ranking) -> int:
    """Tokens of a ranking: its prompt once, and each of its answers once."""
    return len(ranking[0].prompt) + sum(map(len, _answers(ranking).values()))


def pack_rankings(
    rankings: Sequence[Ranking], row_length: int, *, pad_token: int = 0, labelled: bool = False
) -> PairBatch:
    """Packs rankings into rows as `pack_sequences` does with sequences.

    Args:
        rankings: the comparisons, those of a ranked list together.
        row_length: tokens a row; each ranking is at most that long (ValueError if not).
        pad_token: id written into padding.
        labelled: make a `LabelledPairBatch`, which holds more than the order of two answers.

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
        branch_ids=np.zeros((len(rows), row_length), np.int32),
        positions=np.zeros((len(rows), row_length), np.int32),
        chosen_end=np.zeros(places, np.int32),
        rejected_end=np.zeros(places, np.int32),
        margin=np.zeros(places, np.float32),
        weight=np.zeros(places, np.float32),
    )
    if labelled:
        labels = {name: np.zeros(places, np.float32) for name in ("preference", "chosen_safe", "rejected_safe")}
        batch = LabelledPairBatch(**vars(batch), **labels)
    for row, members in enumerate(rows):
        _fill_row(batch, row, members)
    return batch


def most_tokens_of_best(batch: PairBatch) -> int:
    """The most tokens that the best answers of a row's prompts have together; a prompt's best answer is its first branch."""
    return int((np.asarray(batch.branch_ids) == 1).sum(axis=1).max())


def _fill_row(batch: PairBatch, row: int, rankings: Sequence[Ranking]) -> None:
    column = place = 0

    def lay(tokens, segment, branch, first_position):
        nonlocal column
        columns = slice(column, column + len(tokens))
        batch.tokens[row, columns] = tokens
        batch.segment_ids[row, columns] = segment
        batch.branch_ids[row, columns] = branch
        batch.positions[row, columns] = first_position + np.arange(len(tokens))
        column = columns.stop

    for segment, ranking in enumerate(rankings, start=1):
        prompt, last = ranking[0].prompt, {}
        lay(prompt, segment, 0, 0)
        for branch, (key, answer) in enumerate(_answers(ranking).items(), start=1):
            lay(answer, segment, branch, len(prompt))
            last[key] = column - 1
        for pair in ranking:
            batch.chosen_end[row, place] = last[pair.chosen.tobytes()]
            batch.rejected_end[row, place] = last[pair.rejected.tobytes()]
            batch.margin[row, place], batch.weight[row, place] = pair.margin, pair.weight
            if isinstance(batch, LabelledPairBatch):
                batch.preference[row, place] = pair.preference
                batch.chosen_safe[row, place], batch.rejected_safe[row, place] = pair.chosen_safe, pair.rejected_safe
            place += 1


def _answers(ranking: Ranking) -> dict[bytes, Int[np.ndarray, " answer_time"]]:
    """The different answers, by their bytes."""
    return {answer.tobytes(): answer for pair in ranking for answer in (pair.chosen, pair.rejected)}
