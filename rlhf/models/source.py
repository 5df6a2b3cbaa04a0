"""Where a stage's network comes from: a folder with weights, or a description to be initialised afresh."""

from dataclasses import dataclass, field

import jax
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.hub import load_scorer, load_transformer
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer


@dataclass(frozen=True)
class ModelSource:
    """The network that a stage starts from.

    Attributes:
        init_from: folder with weights, in Hugging Face form or written by an earlier stage.
        architecture: description of a fresh network; used when init_from is not set.
        compute: dtypes and rematerialisation.
    """

    init_from: str | None = None
    architecture: ModelConfig | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)


def load_policy(source: ModelSource, seed: int) -> Transformer:
    """Loads the decoder from its folder, or draws a fresh one."""
    if source.init_from is not None:
        return load_transformer(source.init_from, source.compute)
    if source.architecture is None:
        raise UserError(
            "model: neither init_from nor architecture is set",
            fix="set model.init_from to a folder with weights, or model.architecture (for example configs/models/tiny.yaml).",
        )
    return Transformer(source.architecture, compute=source.compute, rngs=nnx.Rngs(seed))


def load_reward_model(folder: str, compute: ComputeConfig, seed: int = 0) -> SequenceScorer:
    """Loads a scalar-headed model; a causal model's folder gets a fresh head."""
    return load_scorer(folder, compute, rngs=nnx.Rngs(jax.random.key(seed)))
