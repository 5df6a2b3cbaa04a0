"""Rows of batches and where they lie, with one process; with several see tests/stages/processes."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.parallel.host_arrays import WHOLE_BATCHES, BatchLayout, fetch, put
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding


@pytest.fixture(scope="module")
def layout():
    return BatchLayout(batch_sharding(make_mesh(MeshConfig(data=4, fsdp=2))))


def batch(rows: int) -> dict[str, np.ndarray]:
    return {"tokens": np.arange(rows * 3).reshape(rows, 3), "weight": np.arange(rows, dtype=np.float32)}


def test_one_process_reads_and_places_all_rows(layout):
    np.testing.assert_array_equal(layout.own_rows(16), np.arange(16))
    for placed in (layout.place(batch(16)), layout.spread(batch(16))):
        assert {leaf.sharding for leaf in placed.values()} == {layout.sharding}
        for back in (layout.own(placed), fetch(placed)):
            jax.tree.map(np.testing.assert_array_equal, back, batch(16))


def test_without_a_sharding_batches_stay_in_host_memory():
    assert all(isinstance(leaf, np.ndarray) for leaf in WHOLE_BATCHES.spread(batch(5)).values())
    np.testing.assert_array_equal(WHOLE_BATCHES.own_rows(5), np.arange(5))


class TwoProcesses:
    """A sharding of rows in `blocks` blocks, of which each process has some: what a `BatchLayout` asks of it."""

    is_fully_addressable = False

    def __init__(self, own: list[int], blocks: int):
        self.own, self.num_devices = own, blocks

    def addressable_devices_indices_map(self, shape):
        size = shape[0] // self.num_devices
        return {block: (slice(block * size, (block + 1) * size),) for block in self.own}


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_every_row_is_read_by_one_process_wherever_its_devices_are(data):
    blocks = data.draw(st.permutations(range(8)))
    rows = 8 * data.draw(st.integers(1, 4))
    layouts = [BatchLayout(TwoProcesses(own, 8)) for own in (blocks[:4], blocks[4:])]
    parts = [layout.own_rows(rows) for layout in layouts]
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert all(part.tolist() == sorted(part) for part in parts)


def test_own_rows_become_the_parts_that_the_devices_ask_for(monkeypatch):
    asked = {}

    def make(shape, sharding, part):
        asked.update(shape=shape, parts=[part((slice(start, start + 2), slice(None))) for start in (2, 6)])

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    whole = np.arange(32).reshape(16, 2)
    BatchLayout(TwoProcesses([1, 3], 8)).spread(whole)
    assert asked["shape"] == (16, 2)
    np.testing.assert_array_equal(np.concatenate(asked["parts"]), whole[[2, 3, 6, 7]])


def test_put_goes_to_the_default_device_or_where_it_is_told(layout):
    assert put(np.ones(8), None).devices() == {jax.devices()[0]}
    assert put(np.ones(8), layout.sharding).sharding == layout.sharding
