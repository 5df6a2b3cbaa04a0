"""Rows of two answers: where the answers are, what is mismatched, and what fillers weigh."""

import numpy as np
import pytest

from rlhf.data.answer_rows import comparison_rows, labelled_rows
from rlhf.data.encoding import EncodedPair
from rlhf.data.loader import fill_up


def tokens(*values):
    return np.array(values, np.int32)


PAIRS = [
    EncodedPair(tokens(3), tokens(5, 6), tokens(7), weight=0.5),
    EncodedPair(tokens(3, 4), tokens(8), tokens(9, 10, 11)),
]


def test_both_answers_stand_after_their_prompt():
    rows = comparison_rows(PAIRS, 6)
    np.testing.assert_array_equal(rows.tokens[0], [[3, 5, 6, 0, 0, 0], [3, 7, 0, 0, 0, 0]])
    np.testing.assert_array_equal(rows.answer_mask[1].astype(int), [[0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(rows.segment_ids[1], [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(rows.weight, [0.5, 1.0])
    np.testing.assert_array_equal(fill_up(rows, 4).weight, [0.5, 1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="row 1 has 5 tokens, expected at most 4"):
        comparison_rows(PAIRS, 4)


def test_a_mismatched_answer_is_of_another_prompt_even_where_neighbours_share_one():
    answers = [(pair.prompt, answer) for pair in PAIRS for answer in (pair.chosen, pair.rejected)]
    rows = labelled_rows(answers, [True, False, True, False], 6)
    mismatched = [row[mask].tolist() for row, mask in zip(rows.tokens[:, 1], rows.answer_mask[:, 1], strict=True)]
    assert mismatched == [[9, 10, 11], [9, 10, 11], [7], [7]]
    np.testing.assert_array_equal(rows.desirable, [True, False, True, False])
    short = labelled_rows([answers[3], answers[0], answers[3]], [True] * 3, 5)
    assert short.answer_mask[:, 1].sum(axis=1).tolist() == [2, 3, 2]
