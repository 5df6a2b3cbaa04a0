"""What adapter is put into a model."""

from dataclasses import dataclass, field, fields
from typing import Literal

from rlhf.errors import UserError, require_positive

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
"""The projections of a block, by our own names, which are the same for every family."""

USED_BY = {
    "rank": ("lora",),
    "alpha": ("lora",),
    "targets": ("lora",),
    "rank_stabilized": ("lora",),
    "dora": ("lora",),
    "rank_pattern": ("lora",),
    "alpha_pattern": ("lora",),
    "length": ("prefix", "prompt"),
    "reparameterization": ("prefix",),
    "width": ("bottleneck",),
    "train_norms": ("bottleneck",),
}


@dataclass(frozen=True)
class AdapterConfig:
    """A small part that is trained in the place of the model.

    A key that the kind has no use for may not be set.

    Attributes:
        kind: lora (2106.09685); prefix: keys and values before each attention (2101.00190); prompt: embeddings before the
            sequence (2104.08691); bottleneck: a small network after each part of a block (1902.00751); ia3: factors on keys,
            values and hidden features (2205.05638); bitfit: the biases (2106.10199).
        rank: lora: inner size of the low-rank change.
        alpha: lora: the change is scaled by alpha / rank.
        targets: lora: which projections, of query, key, value, output, gate, up, down.
        rank_stabilized: lora: scale by alpha / √rank instead (rsLoRA, 2312.03732).
        dora: lora: train the length of each output's weights apart from their direction (2402.09353).
        rank_pattern: lora: other ranks, by the end of a projection's name (query, or layers.3.attention.query) as a regular
            expression; the first that fits counts, and 0 leaves a projection out.
        alpha_pattern: lora: other alphas, in the same way.
        length: prefix, prompt: number of virtual tokens.
        reparameterization: prefix: hidden size of the network a layer that makes keys and values in training and is dropped
            afterwards; 0 trains them directly.
        width: bottleneck: inner size of the small networks.
        train_norms: bottleneck: train the norms' parameters too, as the paper does.
    """

    kind: Literal["lora", "prefix", "prompt", "bottleneck", "ia3", "bitfit"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    rank_stabilized: bool = False
    dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    length: int = 16
    reparameterization: int = 0
    width: int = 16
    train_norms: bool = True

    def __post_init__(self):
        require_positive(self, "rank", "alpha", "length", "width", section="model.adapter.")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise UserError(
                f"model.adapter.targets is {list(self.targets)}", fix=f"choose one or more of {', '.join(TARGETS)}."
            )
        if self.reparameterization < 0 or any(rank < 0 for rank in self.rank_pattern.values()):
            raise UserError(
                "model.adapter: reparameterization and the ranks of rank_pattern may not be negative",
                fix="use 0 to do without.",
            )
        idle = [
            key.name
            for key in fields(self)
            if self.kind not in USED_BY.get(key.name, (self.kind,)) and getattr(self, key.name) != _default(key)
        ]
        if idle:
            raise UserError(
                f"model.adapter: {', '.join(idle)} has no effect on an adapter of kind {self.kind}",
                fix=f"leave it out, or choose another kind ({idle[0]} belongs to {' and '.join(USED_BY[idle[0]])}).",
            )

    def __hash__(self) -> int:
        # A model carries its adapter's configuration in its structure, which jax hashes; the patterns are dicts.
        return hash(repr(self))


def _default(key):
    return getattr(AdapterConfig, key.name) if key.name not in ("rank_pattern", "alpha_pattern") else {}
