"""What a decoder is (`ModelConfig`) and how it is computed (`ComputeConfig`), kept apart.

The first is a property of the weights and goes with them; the second may change from one run to the next.
"""

from dataclasses import dataclass
from typing import Literal

from rlhf.errors import UserError, require_positive


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer, described by its choices.

    Attributes:
        vocab_size: number of token embeddings.
        width: size of the residual stream.
        layers: number of blocks.
        heads: attention heads.
        kv_heads: key/value heads shared by groups of query heads (2305.13245); None for as many as `heads`.
        head_dim: size of one head; None for width / heads.
        mlp_width: hidden size of the feed-forward part.
        context: longest sequence in tokens.
        norm: root-mean-square (1910.07467) or layer normalisation, before each part and at the end.
        norm_epsilon: added to the variance.
        position: rotary (2104.09864), learned or no position encoding.
        rope_theta: base of the rotary frequencies.
        activation: non-linearity of the feed-forward part.
        gated_mlp: multiply the activation by a second projection (2002.05202).
        attention_bias: biases in the query, key, value and output projections.
        mlp_bias: biases in the feed-forward projections.
        tied_embeddings: the output matrix is the embedding, transposed.
        initializer_std: standard deviation of freshly drawn weights.
    """

    vocab_size: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int = 384
    context: int = 512
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    position: Literal["rope", "learned", "none"] = "rope"
    rope_theta: float = 10000.0
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated_mlp: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = True
    initializer_std: float = 0.02

    def __post_init__(self):
        sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "context")
        require_positive(self, *sizes, section="model: ")
        if self.heads % self.key_value_heads:
            raise UserError(
                f"model: heads ({self.heads}) is not a multiple of kv_heads ({self.key_value_heads})",
                fix="choose kv_heads that divides heads.",
            )
        if self.head_dim is None and self.width % self.heads:
            raise UserError(
                f"model: width ({self.width}) is not a multiple of heads ({self.heads})",
                fix="choose a width that heads divides, or set head_dim.",
            )

    @property
    def key_value_heads(self) -> int:
        """Number of key/value heads, resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """Size of one head, resolved."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of what writes into the residual stream.

        Smaller by the square root of the number of writes, two a block, so that the stream's variance does not grow with
        depth (GPT-2).
        """
        return self.initializer_std / (2 * self.layers) ** 0.5


@dataclass(frozen=True)
class ComputeConfig:
    """How the network is computed.

    Attributes:
        dtype: activations and matrix products; reductions, softmax and losses stay float32.
        parameter_dtype: storage of the parameters.
        remat: what the backward pass recomputes: nothing, all but matrix products, or whole blocks.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    parameter_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
