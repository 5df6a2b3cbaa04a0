"""What the machine can do, measured in the same process as the work: rate of matrix products, memory bandwidth, peak memory."""

import resource
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from products import Product


def seconds_of(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call, its result waited for."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return taken


def product_rates(products: Iterable[Product], dtype: str) -> dict[str, float]:
    """FLOP/s of a product of each of these shapes, by itself; the shapes of a batch's largest products tell the most."""
    rates = {}
    for product in products:
        name = f"{product.rows}x{product.inner}x{product.columns}"
        if name in rates:
            continue
        left = jnp.ones((product.rows, product.inner), dtype)
        right = jnp.ones((product.inner, product.columns), dtype)
        multiply = jax.jit(jnp.matmul)
        jax.block_until_ready(multiply(left, right))
        taken = statistics.median(seconds_of(lambda: multiply(left, right), 7))  # noqa: B023 (called at once)
        rates[name] = 2.0 * product.rows * product.inner * product.columns / taken
    return rates


def memory_bandwidth() -> float:
    """Bytes a second that a sum over an array much larger than the caches reads."""
    array = jnp.ones((64 * 2**20,), jnp.float32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(array))
    return array.nbytes / statistics.median(seconds_of(lambda: total(array), 7))


def peak_bytes() -> int:
    """Largest memory so far: of the device where it says so, else of the process."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    return statistics_of_device.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
