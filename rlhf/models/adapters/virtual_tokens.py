"""Prefix tuning (2101.00190) and prompt tuning (2104.08691): virtual tokens that are trained, before every sequence.

A prefix is keys and values in every layer, a prompt is embeddings below the first. Neither leaves the model unchanged at first:
attention goes to the virtual tokens.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from rlhf.models.config import ModelConfig
from rlhf.models.partition import AdapterParam


class Prefix(nnx.Module):
    """Keys and values of all layers, stacked.

    Attributes:
        keys: shape [layers, kv_heads, length, head_dim].
        values: shape [layers, kv_heads, length, head_dim].
    """

    def __init__(
        self,
        keys: Float32[Array, "layers kv_heads length head_dim"],
        values: Float32[Array, "layers kv_heads length head_dim"],
    ):
        axes = ("layers", "kv_heads", None, "head_dim")
        self.keys = AdapterParam(keys, axes=axes)
        self.values = AdapterParam(values, axes=axes)

    def __call__(self) -> tuple[Float32[Array, "kv_heads length head_dim"], Float32[Array, "kv_heads length head_dim"]]:
        """Keys and values of one layer."""
        return self.keys[...], self.values[...]


def drawn_prefix(config: ModelConfig, length: int, rngs: nnx.Rngs) -> Prefix:
    """A prefix drawn as the model's own weights are."""
    shape = (2, config.layers, config.key_value_heads, length, config.head_size)
    return Prefix(*(config.initializer_std * jax.random.normal(rngs.params(), shape, jnp.float32)))


class PrefixNetwork(nnx.Module):
    """A prefix made by a network with one hidden layer, which trains more steadily (2101.00190, section 4.3).

    Each layer has embeddings and a network of its own, where the paper's layers share the embeddings and the hidden layer.

    Args:
        config: the model it is for.
        length: number of virtual tokens.
        hidden: size of the hidden layer.
        rngs: stream `params` draws the weights.
    """

    def __init__(self, config: ModelConfig, length: int, hidden: int, rngs: nnx.Rngs):
        layers, width = config.layers, config.width
        outputs = (2, config.key_value_heads, config.head_size)

        def drawn(shape: tuple[int, ...], std: float, axes: tuple[str | None, ...]) -> AdapterParam:
            value = std * jax.random.normal(rngs.params(), (layers, *shape), jnp.float32)
            return AdapterParam(value, axes=("layers", *axes))

        self.embeddings = drawn((length, width), 1.0, (None, "residual"))
        self.hidden_kernel = drawn((width, hidden), width**-0.5, ("residual", None))
        self.hidden_bias = AdapterParam(jnp.zeros((layers, hidden)), axes=("layers", None))
        axes = (None, "kv_heads", "head_dim")
        self.output_kernel = drawn((hidden, *outputs), config.initializer_std * hidden**-0.5, (None, *axes))
        self.output_bias = AdapterParam(jnp.zeros((layers, *outputs)), axes=("layers", *axes))

    def __call__(self) -> tuple[Float32[Array, "kv_heads length head_dim"], Float32[Array, "kv_heads length head_dim"]]:
        """Keys and values of one layer."""
        hidden = jnp.tanh(self.embeddings[...] @ self.hidden_kernel[...] + self.hidden_bias[...])
        both = jnp.einsum("lm,mpkh->pklh", hidden, self.output_kernel[...]) + self.output_bias[...][:, :, None]
        return both[0], both[1]

    def folded(self) -> Prefix:
        """The keys and values that the networks of all layers make, as parameters."""
        definition, layers = nnx.split(self)
        return Prefix(*jax.vmap(lambda layer: nnx.merge(definition, layer)())(layers))


class SoftPrompt(nnx.Module):
    """Embeddings of virtual tokens.

    Attributes:
        embeddings: shape [length, width].
    """

    def __init__(self, embeddings: Float[Array, "length width"]):
        self.embeddings = AdapterParam(embeddings.astype(jnp.float32), axes=(None, "residual"))

    @property
    def length(self) -> int:
        """Number of virtual tokens."""
        return self.embeddings.shape[0]

    def __call__(self) -> Float[Array, "length width"]:
        """The embeddings."""
        return self.embeddings[...]


def sampled_prompt(embedding: Float[Array, "vocab width"], length: int, rngs: nnx.Rngs) -> SoftPrompt:
    """A prompt that starts as embeddings of tokens drawn from the vocabulary."""
    return SoftPrompt(embedding[jax.random.randint(rngs.params(), (length,), 0, len(embedding))])
