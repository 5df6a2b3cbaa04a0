"""What attention has to know of where the tokens of a batch stand: computed once, and read by every layer."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Int

from rlhf.models.config import LayerKind, ModelConfig
from rlhf.models.positions import Rotation, rope_frequencies, rotation
from rlhf.parallel.rules import constrain


@register_dataclass
@dataclass(frozen=True)
class Placement:
    """Where queries and keys stand, for one layer.

    Attributes:
        mask: True where a query may look.
        rotation: of the queries' tokens; None without rotary positions.
        offsets: position of the key less that of the query, at most 0 where the query may look; None without ALiBi.
        segment_ids: of queries and keys alike, where the mask is no more than this: the same segment, not later, and in the window
            of the model's layers if they have one; else None.
    """

    mask: Bool[Array, "batch time slots"]
    rotation: Rotation | None
    offsets: Int[Array, "batch time slots"] | None
    segment_ids: Int[Array, "batch time"] | None = None


@register_dataclass
@dataclass(frozen=True)
class LayerPlacements:
    """The placement of each layer; layers of one kind share it.

    Attributes:
        of_kinds: a `Placement`, whose arrays have a leading axis of kinds where there are several.
        kind_of_layer: kind of each layer, as an index to that axis.
    """

    of_kinds: Placement
    kind_of_layer: tuple[int, ...] = field(metadata={"static": True})

    def of_layer(self, layer: Int[Array, ""]) -> Placement:
        """The placement of a layer, which may be traced."""
        if not any(self.kind_of_layer):
            return self.of_kinds
        kind = jnp.asarray(np.array(self.kind_of_layer, np.int32))[layer]
        return jax.tree.map(lambda stacked: stacked[kind], self.of_kinds)


def place(
    config: ModelConfig,
    query_positions: Int[Array, "batch time"],
    key_positions: Int[Array, "batch slots"],
    visible: Bool[Array, "batch time slots"],
    segment_ids: Int[Array, "batch time"] | None = None,
) -> LayerPlacements:
    """Works out the placements of all layers.

    Args:
        config: says which kinds of layers there are.
        query_positions: places of the new tokens in their sequences.
        key_positions: places of the tokens that they may look at; of no account where `visible` is False.
        visible: True where a query may look as far as sequence, order and padding go.
        segment_ids: of whole rows whose `visible` says: the same segment, and not later; None where it says more, or less.
    """
    visible = constrain(visible, ("batch", "time", None))
    kinds = tuple(dict.fromkeys(config.layer_kinds))
    needs_offsets = config.position == "alibi" or any(kind.windowed for kind in kinds)
    offsets = None
    if needs_offsets:
        offsets = constrain(key_positions[:, None, :] - query_positions[:, :, None], ("batch", "time", None))

    def placement(kind: LayerKind) -> Placement:
        mask = visible & (offsets > -config.attention.window) if kind.windowed else visible
        return Placement(
            mask,
            _rotation(config, query_positions, kind),
            offsets if config.position == "alibi" else None,
            segment_ids if len({kind.windowed for kind in kinds}) == 1 else None,
        )

    placements = [placement(kind) for kind in kinds]
    if len(kinds) == 1:
        return LayerPlacements(placements[0], (0,) * config.layers)
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *placements)
    return LayerPlacements(stacked, tuple(kinds.index(kind) for kind in config.layer_kinds))


def _rotation(config: ModelConfig, positions: Int[Array, "batch time"], kind: LayerKind) -> Rotation | None:
    if config.position != "rope":
        return None
    frequencies = rope_frequencies(config.rope, config.rotary_size, windowed=kind.windowed)
    return rotation(positions, frequencies if kind.rotated else np.zeros_like(frequencies))
