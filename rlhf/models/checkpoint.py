"""From a folder's config.json and weights to a module, by the family that the folder belongs to."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.families import family_of
from rlhf.models.families.family import Family
from rlhf.models.families.layouts import StoredTensor
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.models.vocabulary import count_tokens, mark_tokens
from rlhf.models.weights import read_weights


def describe(folder: Path, raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family of a folder, and the language model in it; rows that the folder's tokenizer has no token for are marked.

    Args:
        folder: for messages.
        raw: its config.json.

    Raises:
        UserError: there is no such family, or an option is set that the network cannot compute.
    """
    where = str(folder / "config.json")
    family = family_of(raw.get("model_type"), where)
    return family, mark_tokens(family.config_from_hf(raw, where), count_tokens(folder))


def read_language_model(
    folder: Path, family: Family, config: ModelConfig, compute: ComputeConfig, mesh: Mesh | None
) -> Transformer:
    """Reads a language model."""
    abstract = nnx.eval_shape(lambda: Transformer(config, compute=compute, rngs=nnx.Rngs(0)))
    return _read(folder, family, config, abstract, family.tensors(config), mesh)


def read_scorer(
    folder: Path, family: Family, config: ModelConfig, compute: ComputeConfig, mesh: Mesh | None
) -> SequenceScorer:
    """Reads a scorer; its shift and scale are those of a fresh one."""

    def make() -> SequenceScorer:
        return SequenceScorer(Transformer(config, compute=compute, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

    scorer = _read(folder, family, config, nnx.eval_shape(make), scorer_tensors(family, config), mesh)
    scorer.shift.set_value(jnp.zeros((), jnp.float32))
    scorer.scale.set_value(jnp.ones((), jnp.float32))
    return scorer


def without_output_matrix(config: ModelConfig) -> ModelConfig:
    """The language model inside a scorer, which has no use for the matrix; with tied embeddings there is none."""
    return replace(config, tied_embeddings=True)


def scorer_tensors(family: Family, config: ModelConfig) -> list[StoredTensor]:
    """Where a scorer's parameters are kept."""
    inner = [tensor for tensor in family.tensors(config) if "head_kernel" not in tensor.parameters]
    of_scorer = [
        replace(tensor, parameters=tuple(f"transformer.{path}" for path in tensor.parameters)) for tensor in inner
    ]
    return [*of_scorer, family.head]


def _read(
    folder: Path,
    family: Family,
    config: ModelConfig,
    abstract: nnx.Module,
    tensors: list[StoredTensor],
    mesh: Mesh | None,
) -> Any:
    # The folder may hold an output matrix that the model has not: a copy of the tied embedding, or what a scorer drops.
    output = [tensor.name for tensor in family.tensors(config) if tensor.parameters == ("head_kernel",)]
    unused = tuple(output) if config.tied_embeddings else ()
    graphdef, state = nnx.split(abstract)
    state = read_weights(
        folder,
        state,
        tensors,
        ignored=family.ignored + unused,
        prefix=family.prefix,
        renamed=dict(family.renamed),
        mesh=mesh,
    )
    return nnx.merge(graphdef, state)
