"""LoRA: a low-rank change of a projection (2106.09685), with rank-stabilised scaling (2312.03732) and DoRA (2402.09353).

    y = W x + s · B A x        A: inputs → rank, B: rank → outputs, s = alpha / rank or alpha / √rank
    y = m · (W + s B A) x / ‖W + s B A‖        with DoRA; m has a length for each output

The layers of a stack may have different ranks: A and B then have the largest one, filled up with zeros. There both gradients are
products with a zero, so the filling stays zero.
"""

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.partition import AdapterConstant, AdapterParam
from rlhf.models.projection import Projection, project


class LoRA(nnx.Module):
    """The change of one kind of projection in all layers; after slicing, of one projection.

    Args:
        projection: the stacked projection that it is for.
        ranks: of each layer; 0 leaves the layer's projection as it is.
        scalings: factor s of each layer.
        dora: decompose into length and direction.
        rngs: stream `params` draws A: uniform within ±1/√inputs. B is 0, so the model is unchanged at first.

    Attributes:
        down: A, shape [layers, *inputs, rank].
        up: B, shape [layers, rank, *outputs].
        scaling: s, shape [layers].
        magnitude: m, shape [layers, *outputs]; None without DoRA.
    """

    def __init__(
        self,
        projection: Projection,
        ranks: Sequence[int],
        scalings: Sequence[float],
        *,
        dora: bool,
        rngs: nnx.Rngs,
    ):
        kernel = projection.kernel
        last_input = 1 + projection.input_axes
        inputs, outputs = kernel.shape[1:last_input], kernel.shape[last_input:]
        layers, rank = len(ranks), max(ranks)
        drawn = jax.random.uniform(rngs.params(), (layers, *inputs, rank), jnp.float32, -1, 1) / prod(inputs) ** 0.5
        used = jnp.arange(rank) < jnp.asarray(ranks)[:, None]
        drawn = jnp.where(used.reshape(layers, *(1 for _ in inputs), rank), drawn, 0)
        self.down = AdapterParam(drawn, axes=(*kernel.axes[:last_input], None))
        self.up = AdapterParam(
            jnp.zeros((layers, rank, *outputs), jnp.float32), axes=("layers", None, *kernel.axes[last_input:])
        )
        self.scaling = AdapterConstant(jnp.asarray(scalings, jnp.float32), axes=("layers",))
        self.magnitude = nnx.data(None)
        if dora:
            over_inputs = tuple(range(1, last_input))
            norm = jnp.sqrt(jnp.sum(jnp.square(kernel[...].astype(jnp.float32)), axis=over_inputs))
            self.magnitude = AdapterParam(norm, axes=("layers", *kernel.axes[last_input:]))

    def __call__(
        self,
        inputs: Float[Array, "batch time *inputs"],
        outputs: Float[Array, "batch time *outputs"],
        kernel: Float[Array, "*inputs_and_outputs"],
        bias: Float[Array, "*outputs"] | None,
    ) -> Float[Array, "batch time *outputs"]:
        """The changed outputs of one layer's projection."""
        dtype = outputs.dtype
        down, up, scaling = (part[...].astype(dtype) for part in (self.down, self.up, self.scaling))
        change = scaling * project(project(inputs, down), up)
        if self.magnitude is None:
            return outputs + change
        # The length of the changed weights is taken as a constant by the backward pass (2402.09353, section 4.3).
        factor = jax.lax.stop_gradient(1 / output_norms(self.changed(kernel), self.up.ndim - 1)) * self.magnitude[...]
        factor = jnp.where(self.scaling[...] > 0, factor, 1).astype(dtype)
        offset = jnp.zeros((), dtype) if bias is None else bias
        return factor * (outputs - offset + change) + offset

    def changed(self, kernel: Float[Array, "*inputs_and_outputs"]) -> Float32[Array, "*inputs_and_outputs"]:
        """W + s B A of one layer, before any decomposition."""
        return kernel.astype(jnp.float32) + self.scaling[...] * jnp.tensordot(self.down[...], self.up[...], axes=1)

    def merged(self, kernel: Float[Array, "*inputs_and_outputs"]) -> Float32[Array, "*inputs_and_outputs"]:
        """The kernel that does by itself what one layer's projection and this adapter do together."""
        changed = self.changed(kernel)
        if self.magnitude is None:
            return changed
        factor = self.magnitude[...] / output_norms(changed, self.up.ndim - 1)
        return jnp.where(self.scaling[...] > 0, changed * factor, changed)


def output_norms(kernel: Float32[Array, "*inputs_and_outputs"], output_axes: int) -> Float32[Array, "*outputs"]:
    """Length of the weights of each output."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - output_axes))))


def layer_ranks(config: AdapterConfig, name: str, layers: int) -> list[int]:
    """Rank of a projection (`attention.query`) in each layer."""
    return [pattern_value(config.rank_pattern, f"layers.{layer}.{name}", config.rank) for layer in range(layers)]


def layer_alphas(config: AdapterConfig, name: str, layers: int) -> list[float]:
    """Alpha of a projection in each layer."""
    return [pattern_value(config.alpha_pattern, f"layers.{layer}.{name}", config.alpha) for layer in range(layers)]


def layer_scalings(config: AdapterConfig, name: str, layers: int) -> list[float]:
    """Factor of the change in each layer; 0 where there is none."""
    pairs = zip(layer_alphas(config, name, layers), layer_ranks(config, name, layers), strict=True)
    return [alpha / (rank**0.5 if config.rank_stabilized else rank) if rank else 0.0 for alpha, rank in pairs]


def pattern_value(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value whose key, a regular expression, is the end of a name from a dot on, as PEFT compares them; the first counts."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)
