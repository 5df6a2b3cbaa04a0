"""Merging an adapter into its base, so that the model is a plain one as fast as the base; and taking it out again."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf.errors import UserError
from rlhf.models.adapters.insert import projections
from rlhf.models.adapters.lora import LoRA
from rlhf.models.partition import AdapterParam
from rlhf.models.projection import Projection
from rlhf.models.transformer import Transformer

MERGEABLE = ("lora", "ia3", "bitfit")


def merge(adapted: Transformer) -> Transformer:
    """A plain model that computes what the base and its adapter compute together. The base's arrays stay as they are.

    Raises:
        UserError: there is no adapter, or one that a plain model cannot express.
    """
    kind = _kind(adapted)
    merged = nnx.clone(adapted)
    if kind == "lora":
        for projection, lora in _loras(merged):
            _set_kernel(projection, _over_layers(lora, LoRA.merged, projection.kernel[...]))
            projection.adapter = nnx.data(None)
    elif kind == "ia3":
        _rescale(merged, lambda factor: factor)
    else:
        _give_back_biases(merged)
    merged.adapter_config = None
    return merged


def unmerge(merged: Transformer, adapted: Transformer) -> Transformer:
    """The adapted model again, its base recovered (to rounding) from the merged one.

    Args:
        merged: what `merge` made of `adapted`.
        adapted: gives the adapter.

    Raises:
        UserError: the merged weights do not tell the base's: DoRA divides by a length that is lost, BitFit writes over the biases.
    """
    kind = _kind(adapted)
    if kind == "bitfit" or adapted.adapter_config.dora:
        name = "DoRA" if adapted.adapter_config.dora else "BitFit"
        raise UserError(f"a merged {name} adapter cannot be taken out again", fix="load the base from its own folder.")
    unmerged = nnx.clone(adapted)
    targets = {name: projection for _, name, projection in projections(merged.blocks)}
    for _, name, projection in projections(unmerged.blocks):
        projection.kernel.set_value(targets[name].kernel[...])
        if projection.has_bias:
            projection.bias.set_value(targets[name].bias[...])
    for projection, lora in _loras(unmerged):
        change = _over_layers(lora, LoRA.changed, jnp.zeros_like(projection.kernel[...]))
        _set_kernel(projection, projection.kernel[...].astype(jnp.float32) - change)
    if kind == "ia3":
        _rescale(unmerged, lambda factor: 1 / factor, keep=True)
    return unmerged


def _kind(adapted: Transformer) -> str:
    if adapted.adapter_config is None:
        raise UserError("the model has no adapter", fix="give the folder of one that has.")
    kind = adapted.adapter_config.kind
    if kind not in MERGEABLE:
        raise UserError(
            f"an adapter of kind {kind} cannot be merged: no plain model computes what it adds",
            fix=f"use the adapter's folder as it is; {', '.join(MERGEABLE)} can be merged.",
        )
    return kind


def _loras(model: Transformer) -> Iterator[tuple[Projection, LoRA]]:
    for _, _, projection in projections(model.blocks):
        if isinstance(projection.adapter, LoRA):
            yield projection, projection.adapter


def _over_layers(
    lora: LoRA, method: Callable, kernel: Float[Array, "layers *inputs_and_outputs"]
) -> Float[Array, "layers *inputs_and_outputs"]:
    definition, layers = nnx.split(lora)
    return jax.vmap(lambda layer, kernel: method(nnx.merge(definition, layer), kernel))(layers, kernel)


def _set_kernel(projection: Projection, kernel: Float[Array, "layers *inputs_and_outputs"]) -> None:
    projection.kernel.set_value(kernel.astype(projection.kernel.dtype))


def _rescale(model: Transformer, factor_of: Callable, *, keep: bool = False) -> None:
    attention, mlp = model.blocks.attention, model.blocks.mlp
    for projection in (attention.key, attention.value):
        factor = factor_of(projection.adapter.scale[...])
        _set_kernel(projection, projection.kernel[...] * factor[:, None])
        if projection.has_bias:
            projection.bias.set_value((projection.bias[...] * factor).astype(projection.bias.dtype))
        if not keep:
            projection.adapter = nnx.data(None)
    _set_kernel(mlp.down, mlp.down.kernel[...] * factor_of(mlp.hidden_adapter.scale[...])[..., None])
    if not keep:
        mlp.hidden_adapter = nnx.data(None)


def _give_back_biases(model: Transformer) -> None:
    plain = nnx.eval_shape(lambda: Transformer(model.config, rngs=nnx.Rngs(0)))
    if nnx.to_flat_state(nnx.state(plain)).paths != nnx.to_flat_state(nnx.state(model)).paths:
        raise UserError(
            "this BitFit adapter cannot be merged: it brought biases that the base's architecture does not have",
            fix="use the adapter's folder as it is.",
        )
    for _, module in nnx.iter_modules(model):
        bias = getattr(module, "bias", None)
        if isinstance(bias, AdapterParam):
            module.bias = nnx.Param(bias[...].astype(model.compute.parameter_dtype), axes=bias.axes)
