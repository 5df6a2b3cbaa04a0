"""Comparisons in packed rows: nothing is lost, and each knows where its two answers end."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.encoding import EncodedPair
from rlhf.data.pair_packing import pack_rankings, ranking_length, rankings_of

ROW = 32


def test_the_answers_of_a_pair_are_branches_of_its_prompt():
    pair = EncodedPair(np.array([1, 2]), np.array([3, 9]), np.array([9]), margin=0.5, weight=0.25)
    batch = pack_rankings([[pair]], 6, pad_token=7)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 3, 9, 9, 7]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(batch.branch_ids, [[0, 0, 1, 1, 2, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 2, 0]])
    assert (batch.chosen_end.tolist(), batch.rejected_end.tolist()) == ([[3]], [[4]])
    assert (batch.margin.tolist(), batch.weight.tolist()) == ([[0.5]], [[0.25]])
    with pytest.raises(ValueError, match="has 5 tokens, expected 1 to 4"):
        pack_rankings([[pair]], 4)


def draw(generator, length):
    return generator.integers(1, 50, length).astype(np.int32)


def ranked_list(answer_lengths, origin, generator):
    """All pairs of answers, the first preferred, with weights and margins of their own."""
    prompt, answers = draw(generator, 2), [draw(generator, length) for length in answer_lengths]
    return [
        EncodedPair(prompt, better, worse, margin=float(place), weight=1.0 + place, origin=origin)
        for place, (better, worse) in enumerate(combinations(answers, 2))
    ]


def test_answers_of_a_ranked_list_are_computed_once_and_its_comparisons_stay_together():
    generator = np.random.default_rng(0)
    pairs = ranked_list([3, 4, 5, 6], "file:1", generator) + ranked_list([2, 2], "file:2", generator)
    first, second = rankings_of(pairs)
    assert (len(first), len(second)) == (6, 1)
    assert ranking_length(first) == 2 + 3 + 4 + 5 + 6
    batch = pack_rankings([first, second], 20)
    assert sorted(np.count_nonzero(batch.weight, axis=1)) == [1, 6]
    assert sorted(batch.branch_ids.max(axis=1)) == [2, 4]


def test_pairs_of_unknown_origin_stand_alone():
    pair = EncodedPair(np.array([1]), np.array([2]), np.array([3]))
    assert [len(ranking) for ranking in rankings_of([pair, EncodedPair(**{**vars(pair), "index": 1})])] == [1, 1]


@given(lists=st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=4), min_size=1, max_size=12))
def test_every_comparison_is_packed_once_with_its_own_ends_margin_and_weight(lists):
    generator = np.random.default_rng(0)
    pairs = [pair for number, lengths in enumerate(lists) for pair in ranked_list(lengths, f"file:{number}", generator)]
    batch = pack_rankings(rankings_of(pairs), ROW)
    found = []
    for row, place in zip(*np.nonzero(batch.weight), strict=True):
        sequences = []
        for end in (batch.chosen_end[row, place], batch.rejected_end[row, place]):
            branches = batch.branch_ids[row]
            same_branch = (branches == 0) | (branches == branches[end])
            inside = np.flatnonzero((batch.segment_ids[row] == batch.segment_ids[row, end]) & same_branch)
            assert inside[-1] == end
            np.testing.assert_array_equal(batch.positions[row, inside], np.arange(len(inside)))
            sequences.append(tuple(batch.tokens[row, inside].tolist()))
        found.append((*sequences, float(batch.margin[row, place]), float(batch.weight[row, place])))
    expected = [
        ((*pair.prompt, *pair.chosen), (*pair.prompt, *pair.rejected), pair.margin, pair.weight) for pair in pairs
    ]
    assert sorted(found) == sorted(expected)
