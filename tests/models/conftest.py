"""Small networks of every kind, and batches for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.transformer import Transformer

TINY = ModelConfig(
    vocab_size=48, width=32, layers=3, heads=4, kv_heads=2, mlp_width=40, context=64, initializer_std=0.2
)


@pytest.fixture(scope="session")
def make_model():
    """Makes a tiny model: the choices given, the rest as in `TINY`. Biases are drawn too, so that losing one shows.

    Equal calls give the same object, for compilation takes longer than everything else; tests do not write to it.
    """

    @functools.cache
    def make(compute: ComputeConfig = ComputeConfig(), seed: int = 0, **choices) -> Transformer:
        model = Transformer(dataclasses.replace(TINY, **choices), compute=compute, rngs=nnx.Rngs(seed))
        key = jax.random.key(seed)
        for number, (path, variable) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.Param))):
            if path[-1].endswith(("bias", "scale")):
                noise = 0.1 * jax.random.normal(jax.random.fold_in(key, number), variable.shape)
                variable.set_value(variable[...] + noise.astype(variable.dtype))
        return model

    return make


@pytest.fixture(scope="session")
def sequences() -> list[np.ndarray]:
    """Three sequences of unequal length."""
    random = np.random.default_rng(0)
    return [random.integers(3, TINY.vocab_size, size=length) for length in (9, 4, 1)]


@pytest.fixture(scope="session")
def hidden_states():
    """Runs a model on rows of tokens, compiled once a shape."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(definition, state, tokens, segments):
        return nnx.merge(definition, state)(tokens, segments)

    def hidden_states(model: Transformer, tokens, segments) -> np.ndarray:
        definition, state = nnx.split(model)
        return np.asarray(run(definition, state, jnp.asarray(tokens), jnp.asarray(segments)))

    return hidden_states


@pytest.fixture(scope="session")
def pad():
    """Puts sequences in rows: (tokens, segment ids)."""

    def rows(sequences, length: int, side: str) -> tuple[np.ndarray, np.ndarray]:
        tokens, segments = np.zeros((2, len(sequences), length), np.int32)
        for row, sequence in enumerate(sequences):
            place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), length)
            tokens[row, place] = sequence
            segments[row, place] = 1
        return tokens, segments

    return rows
