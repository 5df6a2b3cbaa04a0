"""An adapter in words: what was put where, and how much of the model is trained."""

import jax
from flax import nnx

from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import parameter_count
from rlhf.models.partition import AdapterParam, HeadParam
from rlhf.models.quantized import weight_count


def describe_adapter(config: AdapterConfig) -> str:
    """What is inserted."""
    match config.kind:
        case "lora":
            name = "DoRA" if config.dora else "LoRA"
            return f"{name} of rank {config.rank}, alpha {config.alpha:g}, on {', '.join(config.targets)}"
        case "prefix":
            return f"a prefix of {config.length} keys and values in each layer"
        case "prompt":
            return f"a prompt of {config.length} virtual tokens"
        case "bottleneck":
            norms = " and the norms" if config.train_norms else ""
            return f"bottlenecks of width {config.width} after each part of the blocks{norms}"
        case "ia3":
            return "IA3 factors on keys, values and hidden features"
        case "bitfit":
            return "BitFit, the biases"


def describe_trained(model: nnx.Module) -> str:
    """What of a model is trained, in parameters."""
    transformer = getattr(model, "transformer", model)
    head = _size(model, HeadParam)
    if transformer.adapter_config is None:
        return f"Training all {_size(model, nnx.Param):,} parameters"
    adapter, base = parameter_count(model), base_size(model)
    line = f"Training {describe_adapter(transformer.adapter_config)}: {adapter:,} parameters beside a base of {base:,}"
    line += f" ({adapter / base:.2%})"
    return line + (f", and the head's {head:,}" if head else "")


def base_size(model: nnx.Module) -> int:
    """Parameters that are not the adapter's or the head's."""
    return _size(model, nnx.Param) - _size(model, nnx.Any(AdapterParam, HeadParam)) + weight_count(model)


def _size(model: nnx.Module, kind) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kind)))
