"""Every random key of a run, from one seed: `fold_in(seed, purpose, step)`.

No key is carried from step to step, so a run can be continued from any step and draw the same numbers.
"""

import zlib

import jax
from jaxtyping import PRNGKeyArray


def step_key(seed: int, purpose: str, step: int = 0) -> PRNGKeyArray:
    """The key for one purpose ("rollout", "shuffle", …) at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step)
