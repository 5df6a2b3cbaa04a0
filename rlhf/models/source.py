"""Where a stage's network comes from: a folder with weights, or a description to be initialised afresh."""

from dataclasses import dataclass, field
from pathlib import Path

from flax import nnx

from rlhf.errors import UserError
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import is_scorer, load_scorer, load_transformer, read_config
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


def load_reward_model(folder: str | Path, compute: ComputeConfig, key: str) -> SequenceScorer:
    """Loads a trained reward model.

    Args:
        folder: model folder or stage folder.
        compute: dtypes and rematerialisation to run it with.
        key: what names the folder, for the message.

    Raises:
        UserError: the folder holds a language model, which has no head that scores: a fresh one would score at random.
    """
    if not is_scorer(read_config(folder)):
        raise UserError(
            f"{key}: {folder} holds a language model, not a reward model",
            fix="give the folder of a reward model, such as `rlhf reward` writes.",
        )
    return load_scorer(folder, compute, rngs=nnx.Rngs(0))
