"""LoRA adapters as PEFT keeps them: adapter_config.json, and tensors named after the modules of the base's own family.

PEFT names `base_model.model.<module>.lora_A.weight`, [rank, inputs], `….lora_B.weight`, [outputs, rank], and with DoRA
`….lora_magnitude_vector`, [outputs].
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert, projections
from rlhf.models.adapters.lora import LoRA, layer_alphas, layer_ranks, pattern_value
from rlhf.models.config import ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.projection import Projection
from rlhf.models.transformer import Transformer

PREFIX = "base_model.model."
Tensors = Mapping[str, np.ndarray]

# Options that change what is computed, each with the values at which they do nothing that is not done here.
NEUTRAL_OPTIONS = {
    "bias": ("none",),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
}


def is_lora(raw: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is that of a LoRA adapter of PEFT."""
    return raw.get("peft_type") == "LORA"


def to_peft(transformer: Transformer, family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The options and the tensors that PEFT keeps of a LoRA adapter.

    Args:
        transformer: with the adapter.
        family: of the base.
    """
    config, layers = transformer.adapter_config, transformer.config.layers
    tensors, modules, ranks, alphas = {}, [], {}, {}
    for name, projection in _adapted(transformer):
        module = _module_name(family, name, transformer.config)
        own_ranks = layer_ranks(config, name, layers)
        own_alphas = layer_alphas(config, name, layers)
        inside = [layer for layer in range(layers) if own_ranks[layer]]
        modules += [module.rpartition(".")[2]] if len(inside) == layers else [module.format(layer=i) for i in inside]
        for layer in inside:
            full = module.format(layer=layer)
            ranks |= {full: own_ranks[layer]} if own_ranks[layer] != config.rank else {}
            alphas |= {full: own_alphas[layer]} if own_alphas[layer] != config.alpha else {}
            tensors |= {f"{PREFIX}{full}.{name}": value for name, value in _layer_tensors(projection, layer, own_ranks)}
    options = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "use_rslora": config.rank_stabilized,
        "use_dora": config.dora,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return options, tensors


def from_peft(base: Transformer, family: Family, raw: Mapping[str, Any], tensors: Tensors, where: str) -> Transformer:
    """Puts a LoRA adapter that PEFT wrote into its base.

    The tensors say what is adapted, and with which rank, so that every way to name modules is understood.

    Args:
        base: the model it belongs to.
        family: of the base.
        raw: its adapter_config.json.
        tensors: its adapter_model.safetensors, without a scorer's head.
        where: the folder, for messages.

    Raises:
        UserError: an option that is not supported, or tensors that do not fit the base.
    """
    _check_options(raw, where)
    layers = base.config.layers
    ranks, alphas, targets, left = {}, {}, [], set(tensors)
    for target, name, _ in projections(base.blocks):
        module = _module_name(family, name, base.config)
        found = {}
        for layer in range(layers):
            full = module.format(layer=layer)
            down = tensors.get(f"{PREFIX}{full}.lora_A.weight")
            found[layer] = 0 if down is None else len(down)
            ranks |= {f"layers.{layer}.{name}": found[layer]} if found[layer] != raw["r"] else {}
            alpha = pattern_value(raw.get("alpha_pattern") or {}, full, raw["lora_alpha"])
            alphas |= {f"layers.{layer}.{name}": alpha} if found[layer] and alpha != raw["lora_alpha"] else {}
            left -= {f"{PREFIX}{full}.{part}" for part in PARTS}
        targets += [target] if any(found.values()) else []
    if left or not targets:
        raise UserError(
            f"{where}: the adapter changes what cannot be adapted here: {', '.join(sorted(left)[:4]) or 'nothing'}",
            fix="use an adapter of the blocks' linear maps, and check that its base is the one named in adapter_config.json.",
        )
    config = AdapterConfig(
        rank=raw["r"],
        alpha=raw["lora_alpha"],
        targets=tuple(targets),
        rank_stabilized=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        rank_pattern={name: rank for name, rank in ranks.items() if name.rpartition(".")[2] in targets},
        alpha_pattern=alphas,
    )
    adapted = insert(base, config, nnx.Rngs(0))
    for name, projection in _adapted(adapted):
        _fill(projection, _module_name(family, name, base.config), tensors, where)
    return adapted


PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")


def _adapted(transformer: Transformer) -> Iterator[tuple[str, Projection]]:
    for _, name, projection in projections(transformer.blocks):
        if isinstance(projection.adapter, LoRA):
            yield name, projection


def _module_name(family: Family, name: str, config: ModelConfig) -> str:
    """The family's name of a projection, with `{layer}` in it."""
    path = f"blocks.{name}.kernel"
    stored = family.tensor_of(path, config)
    if len(stored.parameters) > 1:
        raise UserError(
            f"LoRA adapters of {family.model_type} models cannot be exchanged with PEFT: {path} is a part of {stored.name}",
            fix="use another kind of adapter, or merge the adapter.",
        )
    return stored.name.removesuffix(".weight").removesuffix(".kernel")


def _layer_tensors(projection: Projection, layer: int, ranks: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    lora, rank = projection.adapter, ranks[layer]
    down, up = np.asarray(lora.down[layer])[..., :rank], np.asarray(lora.up[layer])[:rank]
    yield "lora_A.weight", np.ascontiguousarray(down.reshape(-1, rank).T)
    yield "lora_B.weight", np.ascontiguousarray(up.reshape(rank, -1).T)
    if lora.magnitude is not None:
        yield "lora_magnitude_vector", np.asarray(lora.magnitude[layer]).reshape(-1)


def _fill(projection: Projection, module: str, tensors: Tensors, where: str) -> None:
    lora = projection.adapter
    down, up = np.zeros(lora.down.shape, np.float32), np.zeros(lora.up.shape, np.float32)
    magnitude = None if lora.magnitude is None else np.array(lora.magnitude[...])
    for layer in range(len(down)):
        stem = f"{PREFIX}{module.format(layer=layer)}"
        if f"{stem}.lora_A.weight" not in tensors:
            continue
        try:
            a, b = (tensors[f"{stem}.{part}"].astype(np.float32) for part in PARTS[:2])
            down[layer, ..., : len(a)] = a.T.reshape(*down.shape[1:-1], len(a))
            up[layer, : len(a)] = b.T.reshape(len(a), *up.shape[2:])
            if magnitude is not None:
                magnitude[layer] = tensors[f"{stem}.{PARTS[2]}"].reshape(magnitude.shape[1:])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{where}: the adapter's tensors of {stem} do not fit the base, or are not all there: {error}",
                fix="check that the base is the one named in adapter_config.json.",
            ) from None
    lora.down.set_value(jnp.asarray(down))
    lora.up.set_value(jnp.asarray(up))
    if magnitude is not None:
        lora.magnitude.set_value(jnp.asarray(magnitude))


def _check_options(raw: Mapping[str, Any], where: str) -> None:
    for option, neutral in NEUTRAL_OPTIONS.items():
        if raw.get(option, neutral[0]) not in neutral:
            raise UserError(
                f"{where}: {option} = {raw[option]!r} in adapter_config.json is not supported; supported: {neutral[0]!r}",
                fix="choose an adapter without it, or merge it into its base with PEFT.",
            )
    for option in ("r", "lora_alpha"):
        if option not in raw:
            raise UserError(f"{where}: adapter_config.json has no {option}", fix="check that PEFT wrote the folder.")
