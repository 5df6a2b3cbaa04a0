"""Fitting a model's rows to its tokenizer: rows that stand for no token are never predicted, tokens without a row get one."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf.models.config import ModelConfig
from rlhf.models.transformer import Transformer

logger = logging.getLogger(__name__)

ROW_MULTIPLE = 8
"""Embeddings grow to a multiple of this, so that they can be spread over devices."""


def count_tokens(folder: Path) -> int | None:
    """Highest token id plus 1 of the tokenizer in a model's folder; None where there is none that can be read."""
    file, options = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
        added = (
            json.loads(options.read_text(encoding="utf-8")).get("added_tokens_decoder", {}) if options.is_file() else {}
        )
    except Exception:  # what is wrong with a tokenizer is said where it is loaded to be used
        return None
    return max([*vocabulary.values(), *map(int, added)]) + 1


def mark_tokens(config: ModelConfig, token_count: int | None) -> ModelConfig:
    """The description of a model of whose rows only so many stand for a token; as it is where there are no more rows.

    Args:
        config: as the model is stored.
        token_count: tokens of the tokenizer; None leaves the description as it is.
    """
    if token_count is None or token_count > config.vocab_size:
        return config
    return replace(config, token_count=token_count if token_count < config.vocab_size else None)


def resize_vocabulary(model: Transformer, token_count: int) -> Transformer:
    """Gives every token of a tokenizer a row, and keeps rows of no token from being predicted.

    New rows are the mean of those that stand for tokens, in the embedding and in an output matrix of its own: a new token is
    at first an average one. Where there are rows enough they stay as they are.

    Args:
        model: without an adapter.
        token_count: tokens of the tokenizer.

    Returns:
        A model with the same parameters but for the new rows.
    """
    missing = max(token_count - model.config.vocab_size, 0)
    rows = model.config.vocab_size + -(-missing // ROW_MULTIPLE) * ROW_MULTIPLE
    config = mark_tokens(replace(model.config, vocab_size=rows, token_count=None), token_count)
    if config == model.config:
        return model
    used = model.config.token_count or model.config.vocab_size
    added = rows - model.config.vocab_size

    def extended(rows: Float[Array, "vocab size"]) -> Float[Array, "more_vocab size"]:
        mean = rows[:used].astype(jnp.float32).mean(axis=0, keepdims=True).astype(rows.dtype)
        return jnp.concatenate([rows, jnp.repeat(mean, added, axis=0)])

    state = nnx.state(model)
    if added:
        logger.warning(
            "the tokenizer has %s tokens, the model %s rows: %s rows were added, each the mean of the others. Train it"
            " before you use it.",
            f"{token_count:,}", f"{model.config.vocab_size:,}", added,
        )  # fmt: skip
        state["embedding"] = state["embedding"].replace(extended(model.embedding[...]))
        if not config.tied_embeddings:
            state["head_kernel"] = state["head_kernel"].replace(extended(model.head_kernel[...].T).T)
    definition = nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, compute=model.compute, rngs=nnx.Rngs(0))))
    return nnx.merge(definition, state)
