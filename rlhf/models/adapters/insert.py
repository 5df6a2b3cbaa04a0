"""Putting an adapter into a model: which of the kinds goes where, and what it amounts to.

The blocks of a model are stacked, and so are the parameters of what is put into them: a leading `layers` axis, which the scan over
the blocks slices.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.adapters.bottleneck import Bottleneck
from rlhf.models.adapters.config import TARGETS, AdapterConfig
from rlhf.models.adapters.ia3 import HiddenScale, OutputScale
from rlhf.models.adapters.lora import LoRA, layer_ranks, layer_scalings
from rlhf.models.adapters.virtual_tokens import PrefixNetwork, drawn_prefix, sampled_prompt
from rlhf.models.mlp import ACTIVATIONS
from rlhf.models.norm import Norm
from rlhf.models.partition import AdapterParam
from rlhf.models.projection import Projection
from rlhf.models.transformer import Transformer


def insert(transformer: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> Transformer:
    """A model with an adapter in it, over the same base: its arrays are shared, and stay as they are.

    Args:
        transformer: the base, which keeps working without the adapter.
        config: the adapter.
        rngs: stream `params` draws what is drawn.

    Raises:
        UserError: the base has an adapter already, or nothing of what the configuration names.
    """
    if transformer.adapter_config is not None:
        raise UserError(
            f"the model has an adapter of kind {transformer.adapter_config.kind} already",
            fix="leave model.adapter out to train that one on, or merge it first (rlhf merge).",
        )
    adapted = nnx.clone(transformer)
    _INSERT[config.kind](adapted, config, rngs)
    adapted.adapter_config = config
    return adapted


def projections(blocks: nnx.Module) -> Iterator[tuple[str, str, Projection]]:
    """(target, dotted name in a block, stacked projection) of what a LoRA can change."""
    for target in TARGETS:
        part = "attention" if hasattr(blocks.attention, target) else "mlp"
        if hasattr(getattr(blocks, part), target):
            yield target, f"{part}.{target}", getattr(getattr(blocks, part), target)


def _insert_lora(model: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    found = False
    for target, name, projection in projections(model.blocks):
        ranks = layer_ranks(config, name, model.config.layers)
        if target in config.targets and any(ranks):
            found = True
            projection.adapter = LoRA(
                projection, ranks, layer_scalings(config, name, len(ranks)), dora=config.dora, rngs=rngs
            )
    if not found:
        present = ", ".join(target for target, *_ in projections(model.blocks))
        raise UserError(
            f"model.adapter: targets {list(config.targets)} with these ranks leave nothing to adapt",
            fix=f"choose some of {present}, and ranks above 0.",
        )


def _insert_prefix(model: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    hidden = config.reparameterization
    model.blocks.attention.prefix = (
        PrefixNetwork(model.config, config.length, hidden, rngs)
        if hidden
        else drawn_prefix(model.config, config.length, rngs)
    )


def _insert_prompt(model: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    if config.length >= model.config.context:
        raise UserError(
            f"model.adapter.length is {config.length}, the model's context {model.config.context} tokens",
            fix="choose a shorter prompt.",
        )
    model.soft_prompt = sampled_prompt(model.embedding[...], config.length, rngs)
    # Virtual tokens take their place in the context.
    model.config = replace(model.config, context=model.config.context - config.length)


def _insert_bottleneck(model: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    activation = ACTIVATIONS[model.config.activation]
    model.blocks.attention_adapter = Bottleneck(model.config, config.width, activation, rngs)
    model.blocks.mlp_adapter = Bottleneck(model.config, config.width, activation, rngs)
    if config.train_norms:
        for norm in _modules(model, Norm):
            _take_over(norm, "scale")
            _take_over(norm, "bias")


def _insert_ia3(model: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    attention, mlp = model.blocks.attention, model.blocks.mlp
    attention.key.adapter = OutputScale(attention.key)
    attention.value.adapter = OutputScale(attention.value)
    mlp.hidden_adapter = HiddenScale(mlp.down)


def _insert_bitfit(model: Transformer, config: AdapterConfig, rngs: nnx.Rngs) -> None:
    for norm in _modules(model, Norm):
        _take_over(norm, "bias")
    for projection in _modules(model.blocks, Projection):
        if projection.has_bias:
            _take_over(projection, "bias")
            continue
        kernel, first_output = projection.kernel, 1 + projection.input_axes
        axes = ["residual" if axis == "embed" else axis for axis in kernel.axes[first_output:]]
        shape = (kernel.shape[0], *kernel.shape[first_output:])
        projection.bias = AdapterParam(jnp.zeros(shape, jnp.float32), axes=("layers", *axes))
        projection.has_bias = True


_INSERT = {
    "lora": _insert_lora,
    "prefix": _insert_prefix,
    "prompt": _insert_prompt,
    "bottleneck": _insert_bottleneck,
    "ia3": _insert_ia3,
    "bitfit": _insert_bitfit,
}


def _modules(module: nnx.Module, kind: type[nnx.Module]) -> list[nnx.Module]:
    return [found for _, found in nnx.iter_modules(module) if isinstance(found, kind)]


def _take_over(module: nnx.Module, name: str) -> None:
    """Makes a parameter of the base the adapter's own: a copy, because training gives the memory of the old value away."""
    variable = getattr(module, name, None)
    if variable is not None:
        setattr(module, name, AdapterParam(jnp.array(variable[...], jnp.float32), axes=variable.axes))


def parameter_count(model: nnx.Module) -> int:
    """Parameters of a model's adapter; the zeros that fill up a LoRA of several ranks are not counted."""
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, AdapterParam)))
    return total - _filling(getattr(model, "transformer", model))


def _filling(transformer: Transformer) -> int:
    config = transformer.adapter_config
    filling = 0
    for _, name, projection in projections(transformer.blocks):
        if isinstance(projection.adapter, LoRA):
            ranks = layer_ranks(config, name, transformer.config.layers)
            one_rank = (projection.adapter.down[..., 0].size + projection.adapter.up[:, 0].size) // len(ranks)
            filling += sum(max(ranks) - rank for rank in ranks) * one_rank
    return filling
