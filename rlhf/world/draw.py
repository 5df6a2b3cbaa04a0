"""Random choices that depend on the seed and on what they are for, and on nothing else."""

import zlib
from collections.abc import Mapping, Sequence
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
    names = list(weights)
    bounds = np.cumsum([weights[name] for name in names])
    return names[int(np.searchsorted(bounds, generator.random() * bounds[-1], side="right"))]
