"""Matrices in 8 and 4 bits, against the formulas in float64."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.description import base_size
from rlhf.models.adapters.insert import insert
from rlhf.models.partition import trained
from rlhf.models.quantized import (
    NF4_VALUES,
    QuantizedKernel,
    block_size,
    dequantize_int8,
    dequantize_nf4,
    quantize,
    quantize_int8,
    quantize_nf4,
)

ROWS = np.random.default_rng(0).normal(size=(5, 3, 96)).astype(np.float32)
ROWS[0, 0, :16] = 0  # a block of nothing but zeros


def reference(rows: np.ndarray, block: int, values: np.ndarray) -> np.ndarray:
    """Each weight as the nearest of `values` times its block's largest absolute weight; float64, block by block."""
    result = np.empty(rows.shape)
    for index in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1], block):
            part = rows[index][start : start + block].astype(np.float64)
            scale = np.abs(part).max()
            ratios = part / scale if scale else part
            nearest = np.abs(ratios[:, None] - values).argmin(axis=1)
            result[index][start : start + block] = values[nearest] * scale
    return result


def test_nf4_values_are_the_quantiles_of_the_paper():
    offset = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2  # 2305.14314, section 3
    quantile = np.vectorize(NormalDist().inv_cdf)
    above = quantile(np.linspace(offset, 0.5, 9)[:-1])
    below = -quantile(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, below, [0]]))
    np.testing.assert_allclose(NF4_VALUES, expected / expected.max(), atol=1e-6)


@pytest.mark.parametrize("block", [16, 48])
def test_int8_rounds_to_the_nearest_of_255_values(block):
    codes, scales = quantize_int8(jnp.asarray(ROWS), block)
    assert codes.dtype == jnp.int8 and scales.shape == (5, 3, 96 // block)
    expected = reference(ROWS, block, np.arange(-127, 128) / 127)
    np.testing.assert_allclose(dequantize_int8(codes, scales), expected, atol=1e-6)


@pytest.mark.parametrize("block", [16, 48])
def test_nf4_takes_the_nearest_of_its_16_values_and_two_fit_a_byte(block):
    codes, scales = quantize_nf4(jnp.asarray(ROWS), block)
    assert codes.dtype == jnp.uint8 and codes.shape == (5, 3, 48)
    expected = reference(ROWS, block, NF4_VALUES.astype(np.float64))
    np.testing.assert_allclose(dequantize_nf4(codes, scales), expected, atol=1e-6)


def test_block_sizes_divide_a_row():
    assert [block_size(row) for row in (4096, 288, 96, 7)] == [64, 48, 48, 7]


@pytest.mark.parametrize("storage, bits, error", [("int8", 9.0, 0.05), ("nf4", 5.0, 0.6)])
def test_a_quantised_model_computes_nearly_the_same_from_fewer_bits(storage, bits, error, make_model, hidden_states):
    base = make_model()
    model = quantize(base, storage)
    kernels = [module for _, module in nnx.iter_modules(model) if isinstance(module, QuantizedKernel)]
    assert len(kernels) == 7 and base_size(model) == base_size(base)
    stored = sum(8 * leaf.nbytes for kernel in kernels for leaf in jax.tree.leaves(nnx.state(kernel)))
    assert stored / sum(np.prod(kernel.shape) for kernel in kernels) <= bits
    tokens = np.random.default_rng(1).integers(0, 48, (2, 12))
    expected = hidden_states(base, tokens, np.ones_like(tokens))
    found = hidden_states(model, tokens, np.ones_like(tokens))
    difference = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error / 30 < difference < error
    by_hand = nnx.clone(base)
    for name in ("query", "key", "value", "output"):
        projection = getattr(by_hand.blocks.attention, name)
        projection.kernel.set_value(getattr(model.blocks.attention, name).kernel[...])
    for name in ("gate", "up", "down"):
        getattr(by_hand.blocks.mlp, name).kernel.set_value(getattr(model.blocks.mlp, name).kernel[...])
    np.testing.assert_allclose(found, hidden_states(by_hand, tokens, np.ones_like(tokens)), atol=1e-5)


def test_only_an_adapter_is_trained_on_a_quantised_base(make_model):
    model = quantize(make_model(), "int8")
    with pytest.raises(UserError, match=r"set model\.adapter, or model\.base_storage"):
        trained(model)
    adapted = insert(model, AdapterConfig(dora=True), nnx.Rngs(0))
    assert trained(adapted) is not nnx.Param
    assert quantize(make_model(), "full") is make_model()


def test_nf4_needs_an_even_row():
    with pytest.raises(UserError, match="rows of 7"):
        quantize_nf4(jnp.ones((2, 7)), 7)
