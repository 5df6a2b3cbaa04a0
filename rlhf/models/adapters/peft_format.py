"""LoRA adapters as PEFT keeps them: adapter_config.json, and tensors named after the modules of the base's own family.

PEFT names `base_model.model.<module>.lora_A.weight`, [rank, inputs], `….lora_B.weight`, [outputs, rank], and with DoRA
`….lora_magnitude_vector`, [outputs].

Some families have one module for query, key and value, or for gate and up. Such a module's A is the A of each of our projections;
projections that were adapted apart are written as one change of the sum of their ranks, each with its own part of A and B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert, projections
from rlhf.models.adapters.lora import LoRA, layer_ranks, layer_scalings, pattern_value
from rlhf.models.config import ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.layouts import Layout
from rlhf.models.transformer import Transformer
from rlhf.parallel.host_arrays import fetch

PREFIX = "base_model.model."
DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
Tensors = Mapping[str, np.ndarray]

# Options that change what is computed in ways that are not done here, each with the values at which they do nothing.
NEUTRAL_OPTIONS = {
    "bias": ("none",),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True)
class Module:
    """A linear module of the base's family, with what it holds of ours.

    Attributes:
        name: in the checkpoint, with `{layer}` in it.
        members: dotted names in a block (`attention.query`) of our projections.
        layout: how it holds their kernels.
    """

    name: str
    members: tuple[str, ...]
    layout: Layout

    @property
    def up_layout(self) -> Layout:
        """How a B holds the members' parts: as a torch Linear whose inputs are the ranks."""
        return Layout(input_axes=1, grouped=self.layout.grouped)

    @property
    def magnitude_layout(self) -> Layout:
        """How a vector of output lengths holds the members' parts."""
        return Layout(input_axes=0, grouped=self.layout.grouped)


def is_lora(raw: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is that of a LoRA adapter of PEFT."""
    return raw.get("peft_type") == "LORA"


def has_modules(family: Family, config: ModelConfig) -> bool:
    """Whether the family's modules have names that PEFT could use; our own form of a checkpoint has none."""
    return family.tensor_of("blocks.attention.query.kernel", config).per_layer


def to_peft(transformer: Transformer, family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The options and the tensors that PEFT keeps of a LoRA adapter.

    Args:
        transformer: with the adapter.
        family: of the base.

    Raises:
        UserError: DoRA on a part of a module, which PEFT decomposes as a whole.
    """
    config, layers = transformer.adapter_config, transformer.config.layers
    modules = _modules(transformer, family)
    tensors, targets, ranks, alphas = {}, [], {}, {}
    for module in modules:
        inside = []
        for layer in range(layers):
            changes = [_change(transformer, name, layer) for name in module.members]
            if not any(change.factor for change in changes):
                continue
            inside.append(layer)
            full = module.name.format(layer=layer)
            found, factor = _joined(module, changes, config.dora)
            tensors |= {f"{PREFIX}{full}.{part}": value for part, value in found.items()}
            rank = len(found[DOWN])
            alpha = factor * (rank**0.5 if config.rank_stabilized else rank)
            ranks |= {full: rank} if rank != config.rank else {}
            alphas |= {full: alpha} if not np.isclose(alpha, config.alpha) else {}
        whole = [_short_name(module, modules)] if inside else []
        targets += whole if len(inside) == layers else [module.name.format(layer=layer) for layer in inside]
    options = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": not modules[0].layout.transposed,
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
    modules, layers = _modules(base, family), range(base.config.layers)
    ranks, alphas, known = {}, {}, set()
    for module in modules:
        for layer in layers:
            full = module.name.format(layer=layer)
            known |= {f"{PREFIX}{full}.{part}" for part in (DOWN, UP, MAGNITUDE)}
            down = tensors.get(f"{PREFIX}{full}.{DOWN}")
            for member in module.members:
                ranks[f"layers.{layer}.{member}"] = 0 if down is None else len(down)
                alphas[f"layers.{layer}.{member}"] = pattern_value(
                    raw.get("alpha_pattern") or {}, full, raw["lora_alpha"]
                )
    adapted_names = {name.rpartition(".")[2] for name, rank in ranks.items() if rank}
    if tensors.keys() - known or not adapted_names:
        foreign = ", ".join(sorted(tensors.keys() - known)[:4]) or "nothing"
        raise UserError(
            f"{where}: the adapter changes what cannot be adapted here: {foreign}",
            fix="use an adapter of the blocks' linear maps, and check that its base is the one named in adapter_config.json.",
        )
    config = AdapterConfig(
        rank=raw["r"],
        alpha=raw["lora_alpha"],
        targets=tuple(target for target, *_ in projections(base.blocks) if target in adapted_names),
        rank_stabilized=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        rank_pattern={
            name: rank for name, rank in ranks.items() if rank != raw["r"] and name.rpartition(".")[2] in adapted_names
        },
        alpha_pattern={name: alpha for name, alpha in alphas.items() if ranks[name] and alpha != raw["lora_alpha"]},
    )
    adapted = insert(base, config, nnx.Rngs(0))
    for module in modules:
        try:
            _fill(adapted, module, tensors)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{where}: the tensors of {module.name} do not fit the base, or are not all there: {error}",
                fix="check that the base is the one named in adapter_config.json.",
            ) from None
    return adapted


@dataclass(frozen=True)
class Change:
    """The change of one projection in one layer; of rank 0 where it has none.

    Attributes:
        down: A, shape [inputs, rank], all input axes in one.
        up: B, shape [rank, *outputs].
        factor: what B A is multiplied by.
        magnitude: with DoRA, the length of each output's weights, shape [*outputs].
    """

    down: np.ndarray
    up: np.ndarray
    factor: float
    magnitude: np.ndarray | None


def _modules(transformer: Transformer, family: Family) -> list[Module]:
    """The modules that hold what a LoRA can change."""
    names = {f"blocks.{name}.kernel": name for _, name, _ in projections(transformer.blocks)}
    stored = dict.fromkeys(family.tensor_of(path, transformer.config) for path in names)
    return [
        Module(tensor.name.removesuffix(".weight"), tuple(names[path] for path in tensor.parameters), tensor.layout)
        for tensor in stored
    ]


def _short_name(module: Module, modules: list[Module]) -> str:
    """The end of a module's name by which PEFT finds it in every layer, and no other module."""
    inside = module.name.rpartition("{layer}.")[2]
    last = inside.rpartition(".")[2]
    return last if sum(other.name.endswith(f".{last}") for other in modules) == 1 else inside


def _change(transformer: Transformer, name: str, layer: int) -> Change:
    config, layers = transformer.adapter_config, transformer.config.layers
    projection = next(projection for _, other, projection in projections(transformer.blocks) if other == name)
    inputs, outputs = np.split(np.array(projection.kernel.shape[1:]), [projection.input_axes])
    lora = projection.adapter
    rank = layer_ranks(config, name, layers)[layer] if isinstance(lora, LoRA) else 0
    if rank == 0:
        return Change(np.zeros((inputs.prod(), 0), np.float32), np.zeros((0, *outputs), np.float32), 0.0, None)
    return Change(
        np.asarray(lora.down[layer])[..., :rank].reshape(inputs.prod(), rank),
        np.asarray(lora.up[layer])[:rank],
        layer_scalings(config, name, layers)[layer],
        None if lora.magnitude is None else np.asarray(lora.magnitude[layer]),
    )


def _joined(module: Module, changes: list[Change], dora: bool) -> tuple[dict[str, np.ndarray], float]:
    """A module's tensors, and the factor of its change."""
    factor = next(change.factor for change in changes if change.factor)
    down, ups = changes[0].down, [change.up for change in changes]
    if any(change.factor != factor or not np.array_equal(change.down, down) for change in changes):
        starts = np.cumsum([0, *(len(change.up) for change in changes)])
        down, ups = np.concatenate([change.down for change in changes], axis=1), []
        for start, change in zip(starts, changes, strict=False):
            up = np.zeros((starts[-1], *change.up.shape[1:]), np.float32)
            up[start : start + len(change.up)] = change.up * (change.factor / factor)
            ups.append(up)
    tensors = {DOWN: np.ascontiguousarray(down.T), UP: np.ascontiguousarray(module.up_layout.join(ups))}
    if dora:
        if any(change.magnitude is None for change in changes):
            raise UserError(
                f"PEFT decomposes {module.name} as a whole, but only a part of it has DoRA",
                fix=f"adapt all of {', '.join(name.rpartition('.')[2] for name in module.members)} (model.adapter.targets).",
            )
        tensors[MAGNITUDE] = module.magnitude_layout.join([change.magnitude for change in changes])
    return tensors, factor


def _fill(adapted: Transformer, module: Module, tensors: Tensors) -> None:
    """Copies a module's tensors of all layers into the adapters of its members."""
    found = {name: projection.adapter for _, name, projection in projections(adapted.blocks)}
    loras = [found[name] for name in module.members]
    if not all(isinstance(lora, LoRA) for lora in loras):
        return
    downs, ups = ([np.zeros(getattr(lora, part).shape, np.float32) for lora in loras] for part in ("down", "up"))
    lengths = [None if lora.magnitude is None else np.array(fetch(lora.magnitude[...])) for lora in loras]
    for layer in range(adapted.config.layers):
        stem = f"{PREFIX}{module.name.format(layer=layer)}"
        if f"{stem}.{DOWN}" not in tensors:
            continue
        a, b = (tensors[f"{stem}.{part}"].astype(np.float32) for part in (DOWN, UP))
        rank = len(a)
        parts = module.up_layout.split(b, [(rank, *up.shape[2:]) for up in ups])
        for down, up, part in zip(downs, ups, parts, strict=True):
            down[layer, ..., :rank] = a.T.reshape(*down.shape[1:-1], rank)
            up[layer, :rank] = part
        if lengths[0] is not None:
            shapes = [length.shape[1:] for length in lengths]
            parts = module.magnitude_layout.split(tensors[f"{stem}.{MAGNITUDE}"], shapes)
            for length, part in zip(lengths, parts, strict=True):
                length[layer] = part
    for lora, down, up, length in zip(loras, downs, ups, lengths, strict=True):
        lora.down.set_value(jnp.asarray(down))
        lora.up.set_value(jnp.asarray(up))
        if length is not None:
            lora.magnitude.set_value(jnp.asarray(length))


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
