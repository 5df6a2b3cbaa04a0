from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.encoding import EncodedPrompt
from rlhf.data.packing import pack_sequences, pad_prompts, pad_sequences, round_up, split_long

ROW = 16


def sequences_of(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [(generator.integers(1, 50, length).astype(np.int32), generator.random(length) < 0.7) for length in lengths]


def segments(batch):
    """Every segment as (tokens, loss mask), as Python tuples."""
    found = []
    for tokens, ids, mask in zip(batch.tokens, batch.segment_ids, batch.loss_mask, strict=True):
        for segment in range(1, ids.max() + 1):
            inside = ids == segment
            assert np.diff(np.flatnonzero(inside)).max(initial=1) == 1, "a segment is contiguous"
            found.append((tuple(tokens[inside].tolist()), tuple(mask[inside].tolist())))
    return found


def expected_segments(sequences):
    return [(tuple(tokens.tolist()), (False, *mask[1:].tolist())) for tokens, mask in sequences]


@given(lengths=st.lists(st.integers(1, ROW), min_size=1, max_size=40), seed=st.integers(0, 3))
def test_packing_keeps_every_sequence_whole_and_alone(lengths, seed):
    sequences = sequences_of(lengths, seed)
    batch = pack_sequences(sequences, ROW, pad_token=99)
    assert Counter(segments(batch)) == Counter(expected_segments(sequences))
    padding = batch.segment_ids == 0
    assert (batch.tokens[padding] == 99).all()
    assert not batch.loss_mask[padding].any()
    # Once padding begins, it goes on to the end of the row.
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()
    # No two rows would fit into one.
    used = sorted((~padding).sum(axis=1))
    assert len(used) < 2 or used[0] + used[1] > ROW


@given(lengths=st.lists(st.integers(1, ROW), min_size=1, max_size=20))
def test_padding_keeps_the_order(lengths):
    sequences = sequences_of(lengths)
    batch = pad_sequences(sequences, ROW)
    assert segments(batch) == expected_segments(sequences)
    assert batch.tokens.shape == (len(lengths), ROW)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=10))
def test_splitting_loses_and_doubles_nothing(lengths):
    sequences = sequences_of(lengths)
    pieces = split_long(sequences, ROW)
    assert max(len(tokens) for tokens, _ in pieces) <= ROW
    for part in (0, 1):
        np.testing.assert_array_equal(
            np.concatenate([piece[part] for piece in pieces]), np.concatenate([s[part] for s in sequences])
        )


@pytest.mark.parametrize("length", [0, ROW + 1])
@pytest.mark.parametrize("arrange", [pack_sequences, pad_sequences])
def test_lengths_that_cannot_be_laid_out(arrange, length):
    with pytest.raises(ValueError, match=f"sequence 1 has {length} tokens"):
        arrange(sequences_of([3, length]), ROW)


def test_prompts_are_padded_on_the_left():
    batch = pad_prompts(
        [EncodedPrompt(np.array([1, 2]), True, 4), EncodedPrompt(np.array([3, 4, 5]), False, 7)], 4, pad_token=99
    )
    np.testing.assert_array_equal(batch.tokens, [[99, 99, 1, 2], [99, 3, 4, 5]])
    np.testing.assert_array_equal(batch.mask, [[False, False, True, True], [False, True, True, True]])
    assert (batch.is_safety.tolist(), batch.index.tolist()) == ([True, False], [4, 7])


def test_round_up():
    assert [round_up(length, 8) for length in (0, 1, 8, 9)] == [0, 8, 8, 16]
