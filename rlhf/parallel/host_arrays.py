"""Arrays between the memory of processes and the devices of all of them.

With one process these are `jax.device_put` and `jax.device_get`. With several, a process can fill and read the devices of its
own machine only: it puts its part of an array there, and what it wants whole has to be gathered, by all processes at once.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Int


def put(value: Any, sharding: Sharding | None) -> jax.Array:
    """Puts an array on devices; where these belong to several processes, each puts its part.

    Args:
        value: the same whole array in the memory (or on a device) of every process, or an array that lies on all devices.
        sharding: where to; None for the default device.
    """
    lies_on_all = isinstance(value, jax.Array) and not value.is_fully_addressable
    if sharding is None or sharding.is_fully_addressable or lies_on_all:
        return jax.device_put(value, sharding)
    whole = np.asarray(value)  # `jax.device_put` would send all of it around to see whether processes agree
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def fetch(tree: Any) -> Any:
    """A pytree of arrays as NumPy arrays, whole on every process. All processes have to call it, with the same arrays.

    Args:
        tree: arrays on devices or in host memory, scalars.
    """
    return jax.device_get(jax.tree.map(_gathered, tree))


def _gathered(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


@dataclass(frozen=True)
class BatchLayout:
    """Where the rows of a batch lie: which of them this process reads, and on which devices they are put.

    Attributes:
        sharding: of the rows; None leaves batches in host memory, whole, to be put where the program runs.
    """

    sharding: NamedSharding | None = None

    def own_rows(self, count: int) -> Int[np.ndarray, " own"]:
        """The rows of a batch of `count` that the devices of this process hold, in order.

        Processes hold different rows, unless a mesh axis that rows are not spread over (tensor, sequence) goes from one to another.
        """
        if not self._spans_processes:
            return np.arange(count)
        held = {part[0].indices(count) for part in self.sharding.addressable_devices_indices_map((count,)).values()}
        return np.concatenate([np.arange(*part) for part in sorted(held)])

    def place(self, own: Any) -> Any:
        """The batch on the devices of all processes, from the rows that each process has read.

        Args:
            own: pytree of arrays with the rows `own_rows` of this process.
        """
        if self.sharding is None:
            return own
        if not self._spans_processes:
            return jax.device_put(own, self.sharding)
        return jax.tree.map(self._from_own_rows, own)

    def spread(self, batch: Any) -> Any:
        """As `place`, from a whole batch in the memory of every process, of which each takes its rows."""
        return self.place(jax.tree.map(lambda leaf: leaf[self.own_rows(len(leaf))], batch))

    def own(self, batch: Any) -> Any:
        """This process's rows of a batch that lies on the devices, as NumPy arrays. The inverse of `place`."""
        return jax.tree.map(self._to_own_rows if self._spans_processes else np.asarray, batch)

    @property
    def _spans_processes(self) -> bool:
        return self.sharding is not None and not self.sharding.is_fully_addressable

    def _from_own_rows(self, own: np.ndarray) -> jax.Array:
        blocks = self.sharding.num_devices  # a number of rows that every layout divides
        count = len(own) * blocks // len(self.own_rows(blocks))
        rows = self.own_rows(count)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            first = np.searchsorted(rows, start)
            return own[first : first + stop - start]

        return jax.make_array_from_callback((count, *own.shape[1:]), self.sharding, part)

    def _to_own_rows(self, array: jax.Array) -> np.ndarray:
        shards = jax.device_put(array, self.sharding).addressable_shards
        parts = {shard.index[0].indices(len(array))[0]: shard.data for shard in shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


WHOLE_BATCHES = BatchLayout()
