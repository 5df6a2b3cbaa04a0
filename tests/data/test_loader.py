import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.batches import PairBatch, PromptBatch, SequenceBatch
from rlhf.data.loader import batches, fill_up, row_count
from rlhf.errors import UserError


def rows(count):
    """Row i holds the token i."""
    tokens = np.arange(count, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32)
    return SequenceBatch(tokens, np.ones_like(tokens), np.ones_like(tokens, bool))


def row_numbers(batch_iterator, count=None):
    return [batch.tokens[:, 0].tolist() for batch in itertools.islice(batch_iterator, count)]


@given(count=st.integers(4, 30), start=st.integers(0, 40), seed=st.integers(0, 3), shuffle=st.booleans())
@settings(deadline=None, max_examples=30)
def test_continued_is_as_uninterrupted(count, start, seed, shuffle):
    whole = row_numbers(batches(rows(count), 4, seed=seed, shuffle=shuffle), start + 5)
    assert row_numbers(batches(rows(count), 4, seed=seed, start_step=start, shuffle=shuffle), 5) == whole[start:]


@given(count=st.integers(4, 30), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_an_epoch_shows_each_row_at_most_once(count, seed):
    steps = count // 4
    epoch = row_numbers(batches(rows(count), 4, seed=seed, epochs=1))
    assert len(epoch) == steps
    seen = list(itertools.chain(*epoch))
    assert len(seen) == len(set(seen)) == steps * 4


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = np.array(row_numbers(batches(rows(64), 8, seed=0, epochs=2))).reshape(2, 64).tolist()
    other = list(itertools.chain(*row_numbers(batches(rows(64), 8, seed=1, epochs=1))))
    assert first != second != other != first
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != sorted(first)


def test_without_shuffling_the_order_stays():
    assert row_numbers(batches(rows(5), 2, seed=0, shuffle=False, epochs=2)) == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_processes_share_every_batch_out():
    whole = row_numbers(batches(rows(20), 6, seed=3), 7)
    shares = np.array([0, 3]), np.array([1, 2, 4, 5])
    parts = [row_numbers(batches(rows(20), 6, seed=3, own_rows=share), 7) for share in shares]
    assert [[[batch[row] for row in share] for batch in whole] for share in shares] == parts


def test_impossible_batches():
    with pytest.raises(UserError, match=r"batch_size is 8.*only 5 rows"):
        batches(rows(5), 8, seed=0)


def test_filler_rows_count_for_nothing():
    filled = fill_up(rows(5), 4)
    assert row_count(filled) == 8
    assert filled.loss_mask[:5].all() and not filled.loss_mask[5:].any()
    assert filled.segment_ids[5:].all()
    assert row_count(fill_up(rows(8), 4)) == 8
    flags, values = np.ones((3, 2), bool), np.ones(3, np.float32)
    places = np.ones((3, 2), np.float32)
    pairs = fill_up(PairBatch(*[flags] * 6, places, places), 2)
    assert pairs.weight.tolist() == [[1, 1]] * 3 + [[0, 0]]
    prompts = fill_up(PromptBatch(flags, flags, values > 0, np.arange(3)), 2)
    assert prompts.index.tolist() == [0, 1, 2, -1]
    assert prompts.mask.all()
