"""Random choices that depend on the seed and on what they are for, and on nothing else."""

import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.random import Generator

Item = TypeVar("Item")


def generator_for(seed: int, purpose: str) -> Generator:
    """The random numbers of one purpose; adding a purpose does not disturb the others."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def pick(items: Sequence[Item], generator: Generator) -> Item:
    """One of the items, each as likely as the next."""
    return items[int(generator.integers(len(items)))]


def pick_weighted(weights: Mapping[str, float], generator: Generator) -> str:
    """One of the names, with a chance in proportion to its weight."""
    bounds = list(accumulate(weights.values()))
    return list(weights)[bisect_right(bounds, generator.random() * bounds[-1])]
