"""Where tokens stand in their sequences, and the two encodings that attention computes from that: rotation and ALiBi."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from rlhf.models.config import RopeConfig

Rotation = tuple[Float32[Array, "batch time half"], Float32[Array, "batch time half"]]
"""Cosines and sines of every position's angles, half as many as there are features to rotate."""


def positions_from_segments(segment_ids: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Position of each token in its segment.

    Args:
        segment_ids: 1, 2, … for the sequences of a row, each in one run; 0 for padding on either side.

    Returns:
        0, 1, 2 … within each segment, 0 at padding.
    """
    columns = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    starts = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    start_columns = lax.cummax(jnp.where(starts, columns, 0), axis=1)
    return jnp.where(segment_ids > 0, columns - start_columns, 0)


def rope_frequencies(config: RopeConfig, size: int, *, windowed: bool = False) -> Float32[np.ndarray, " half"]:
    """Angle per position of each pair of features: theta^(-2i / size) for pair i (2104.09864), lowered by the scaling.

    Args:
        config: base and scaling.
        size: number of features that are rotated.
        windowed: the frequencies of layers with an attention window, which may have a base of their own.
    """
    own_base = windowed and config.window_theta is not None
    theta = config.window_theta if own_base else config.theta
    frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    if own_base or config.scaling == "none":
        return frequencies.astype(np.float32)
    if config.scaling == "linear":
        return (frequencies / config.factor).astype(np.float32)
    # LLaMA 3.1: how many waves fit the original context decides how much of the stretching a frequency gets.
    waves = config.original_context * frequencies / (2 * math.pi)
    low, high = config.low_frequency_factor, config.high_frequency_factor
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return (kept * frequencies + (1 - kept) * frequencies / config.factor).astype(np.float32)


def rotation(positions: Int[Array, "batch time"], frequencies: Float32[np.ndarray, " half"]) -> Rotation:
    """Cosines and sines of position · frequency."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    heads: Float[Array, "batch time *heads head_dim"], rotation: Rotation
) -> Float[Array, "batch time *heads head_dim"]:
    """Rotates the first features of each head, feature i of their first half against i of their second, in float32."""
    over_heads = tuple(range(2, heads.ndim - 1))
    cosine, sine = (jnp.expand_dims(part, over_heads) for part in rotation)
    size = 2 * cosine.shape[-1]
    first, second = jnp.split(heads[..., :size].astype(jnp.float32), 2, axis=-1)
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    rotated = jnp.concatenate(parts, axis=-1).astype(heads.dtype)
    return rotated if size == heads.shape[-1] else jnp.concatenate([rotated, heads[..., size:]], axis=-1)


def alibi_slopes(heads: int) -> Float32[np.ndarray, " heads"]:
    """How fast each head's scores fall with distance (2108.12409): 2^(-8/n), 2^(-16/n) … for n heads, a power of 2.

    For other numbers, the slopes of the power of 2 below and then every second one of the power above.
    """

    def of_power(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 * np.arange(1, count + 1) / count)

    below = 2 ** int(math.log2(heads))
    return np.concatenate([of_power(below), of_power(2 * below)[::2][: heads - below]]).astype(np.float32)
