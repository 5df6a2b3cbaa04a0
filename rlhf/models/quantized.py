"""Matrices of a frozen base in 8 or 4 bits (2305.14314), dequantised where they are used.

Blocks of consecutive weights share a scale, the largest of their absolute values. int8 rounds weight / scale · 127 to an integer;
nf4 takes the nearest of sixteen values, the quantiles of a normal distribution, so that each is about equally likely. Scales are
float32 and not quantised again. Inside the scan over the blocks one layer at a time is dequantised, so the whole of a model never
lies there in float.

qwix, which would do this for other modules, replaces weights by changing the module during a forward pass, and flax forbids that
inside a scan.
"""

from math import prod
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, UInt8

from rlhf.errors import UserError
from rlhf.models.partition import QuantizedParam
from rlhf.models.projection import Projection
from rlhf.models.transformer import Transformer

Storage = Literal["full", "int8", "nf4"]
"""How the matrices of a base are stored: as they are, or in 8 or 4 bits."""

BLOCK = 64

# 2305.14314, appendix E: quantiles of the normal distribution, one half of them each side of an exact 0, scaled to [-1, 1].
NF4_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


class QuantizedKernel(nnx.Module):
    """The stacked kernels of one kind of projection; stands in the place of the parameter and reads as one.

    Args:
        kernel: shape [layers, *inputs_and_outputs].
        axes: its logical axes.
        storage: int8 or nf4.

    Attributes:
        codes: int8, shape [layers, first, rest], or two 4-bit codes a byte, [layers, first, rest / 2]; `first` is the first axis
            of a kernel, which may be sharded, `rest` all others.
        scales: shape [layers, first, rest / block].
    """

    def __init__(
        self, kernel: Float[Array, "layers *inputs_and_outputs"], axes: tuple, storage: Literal["int8", "nf4"]
    ):
        layers, *self.layer_shape = kernel.shape
        self.layer_shape = tuple(self.layer_shape)
        self.axes = axes
        self.dtype = kernel.dtype
        self.storage = storage
        rows = kernel.reshape(layers, self.layer_shape[0], prod(self.layer_shape[1:]))
        codes, scales = (quantize_int8 if storage == "int8" else quantize_nf4)(rows, block_size(rows.shape[-1]))
        kept_axes = ("layers", axes[1], None)
        self.codes = QuantizedParam(codes, axes=kept_axes)
        self.scales = QuantizedParam(scales, axes=kept_axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel, as a parameter would have it: with the layers' axis, or after slicing without."""
        return (*self.codes.shape[:-2], *self.layer_shape)

    def __getitem__(self, index) -> Float[Array, "..."]:
        """The dequantised kernel, in the dtype that it had."""
        dequantize = dequantize_int8 if self.storage == "int8" else dequantize_nf4
        return dequantize(self.codes[...], self.scales[...]).reshape(self.shape).astype(self.dtype)[index]


def quantize(transformer: Transformer, storage: Storage) -> Transformer:
    """A model whose blocks' matrices are stored in fewer bits; embeddings, norms and biases stay as they are.

    Raises:
        UserError: nf4, which keeps two weights in a byte, with an odd number of weights in a row.
    """
    if storage == "full":
        return transformer
    quantized = nnx.clone(transformer)
    for _, module in list(nnx.iter_modules(quantized.blocks)):
        if isinstance(module, Projection):
            module.kernel = QuantizedKernel(module.kernel[...], module.kernel.axes, storage)
    return quantized


def block_size(row: int) -> int:
    """Weights that share a scale: as many as divide a row, at most 64."""
    return max(size for size in range(1, BLOCK + 1) if row % size == 0)


def quantize_int8(
    rows: Float[Array, "*rows width"], block: int
) -> tuple[Int[Array, "*rows width"], Float32[Array, "*rows blocks"]]:
    """Codes from -127 to 127, and the scale of each block."""
    scaled, scales = _scaled(rows, block)
    return jnp.round(scaled * 127).astype(jnp.int8).reshape(rows.shape), scales


def dequantize_int8(
    codes: Int[Array, "*rows width"], scales: Float32[Array, "*rows blocks"]
) -> Float32[Array, "*rows width"]:
    """The weights that int8 codes stand for."""
    return _unscaled(codes.astype(jnp.float32) / 127, scales)


def quantize_nf4(
    rows: Float[Array, "*rows width"], block: int
) -> tuple[UInt8[Array, "*rows bytes"], Float32[Array, "*rows blocks"]]:
    """Two codes a byte, the first in the lower half, and the scale of each block."""
    if rows.shape[-1] % 2:
        raise UserError(
            f"nf4 keeps two weights in a byte, but a matrix has rows of {rows.shape[-1]}",
            fix="set model.base_storage to int8.",
        )
    scaled, scales = _scaled(rows, block)
    boundaries = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2
    codes = jnp.searchsorted(jnp.asarray(boundaries), scaled.reshape(rows.shape)).astype(jnp.uint8)
    return codes[..., ::2] | (codes[..., 1::2] << 4), scales


def dequantize_nf4(
    codes: UInt8[Array, "*rows bytes"], scales: Float32[Array, "*rows blocks"]
) -> Float32[Array, "*rows width"]:
    """The weights that pairs of nf4 codes stand for."""
    pairs = jnp.stack([codes & 15, codes >> 4], axis=-1)
    return _unscaled(jnp.asarray(NF4_VALUES)[pairs].reshape(*codes.shape[:-1], -1), scales)


def _scaled(rows, block: int):
    blocks = rows.astype(jnp.float32).reshape(*rows.shape[:-1], -1, block)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    return blocks / jnp.where(scales == 0, 1, scales)[..., None], scales


def _unscaled(values, scales):
    blocks = values.reshape(*scales.shape, -1)
    return (blocks * scales[..., None]).reshape(values.shape)


def weight_count(model: nnx.Module) -> int:
    """Weights that a model's codes stand for."""
    return sum(prod(module.shape) for _, module in nnx.iter_modules(model) if isinstance(module, QuantizedKernel))
