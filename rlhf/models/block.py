"""One layer of the stack: attention and feed-forward part, and how they write into the residual stream."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from rlhf.models.attention import Attention
from rlhf.models.cache import LayerCache
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.mlp import Mlp
from rlhf.models.norm import Norm
from rlhf.models.placement import Placement
from rlhf.parallel.rules import constrain


class Block(nnx.Module):
    """Attention and feed-forward part, each added to the residual stream, with norms where `norm_placement` puts them.

    Attributes:
        attention_adapter: None, or a module called on what attention is about to add to the residual stream, whose result
            is added instead.
        mlp_adapter: the same for the feed-forward part.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config = config
        if config.norm_placement != "output":
            self.attention_norm = Norm(config, compute)
            if config.residual != "parallel_one_norm":
                self.mlp_norm = Norm(config, compute)
        if config.norm_placement in ("output", "both"):
            self.attention_output_norm = Norm(config, compute)
            self.mlp_output_norm = Norm(config, compute)
        self.attention = Attention(config, compute, rngs)
        self.mlp = Mlp(config, compute, rngs)
        self.attention_adapter = nnx.data(None)
        self.mlp_adapter = nnx.data(None)

    def __call__(
        self,
        hidden: Float[Array, "batch time width"],
        placement: Placement,
        cache: LayerCache | None,
        slot: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "batch time width"], LayerCache | None]:
        """The residual stream after this layer, and the cache with the new keys; arguments as for `Attention`."""
        inner = self.attention_norm(hidden) if self._normalises_input else hidden
        mixed, cache = self.attention(inner, placement, cache, slot)
        if self.attention_adapter is not None:
            mixed = self.attention_adapter(mixed)
        if self.config.residual != "sequential":
            shared = self.config.residual == "parallel_one_norm"
            transformed = self._transform(inner if shared else self.mlp_norm(hidden))
            return _constrain(hidden + mixed + transformed), cache
        if self._normalises_output:
            mixed = self.attention_output_norm(mixed)
        hidden = _constrain(hidden + mixed)
        if self.config.norm_placement == "after":
            hidden = self.attention_norm(hidden)
        transformed = self._transform(self.mlp_norm(hidden) if self._normalises_input else hidden)
        if self._normalises_output:
            transformed = self.mlp_output_norm(transformed)
        hidden = _constrain(hidden + transformed)
        return (self.mlp_norm(hidden) if self.config.norm_placement == "after" else hidden), cache

    @property
    def _normalises_input(self) -> bool:
        return self.config.norm_placement in ("before", "both")

    @property
    def _normalises_output(self) -> bool:
        return self.config.norm_placement in ("output", "both")

    def _transform(self, inner):
        transformed = self.mlp(inner)
        return transformed if self.mlp_adapter is None else self.mlp_adapter(transformed)


def _constrain(hidden: jax.Array) -> jax.Array:
    return constrain(hidden, ("batch", "time", None))
