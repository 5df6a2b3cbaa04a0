"""An adapter of every kind on one tiny base, with parameters moved away from where they start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.partition import AdapterParam

KINDS = {
    "lora": AdapterConfig(rank=3, targets=("query", "output", "down")),
    "dora": AdapterConfig(rank=3, targets=("key", "output", "up"), dora=True),
    "prefix": AdapterConfig("prefix", length=3),
    "prefix network": AdapterConfig("prefix", length=3, reparameterization=6),
    "prompt": AdapterConfig("prompt", length=3),
    "bottleneck": AdapterConfig("bottleneck", width=5),
    "ia3": AdapterConfig("ia3"),
    "bitfit": AdapterConfig("bitfit"),
}


@pytest.fixture(scope="session")
def kinds() -> dict[str, AdapterConfig]:
    return KINDS


@pytest.fixture(scope="session")
def base(make_model):
    return make_model()


@pytest.fixture(scope="session")
def moved():
    """A model with noise on all parameters of its adapter; filling of a LoRA's ranks stays zero."""

    def moved(model, size: float = 0.2):
        model = nnx.clone(model)
        for number, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(model, AdapterParam))):
            noise = size * jax.random.normal(jax.random.key(number), variable.shape)
            variable.set_value(variable[...] + noise)
        return model

    return moved


@pytest.fixture(scope="session")
def adapted(base, moved):
    """Makes the base with a moved adapter of a kind in `KINDS`; equal calls give the same object."""

    @functools.cache
    def adapted(kind: str):
        return moved(insert(base, KINDS[kind], nnx.Rngs(1)))

    return adapted


@pytest.fixture(scope="session")
def rows(sequences, pad):
    """(tokens, segment ids) of three sequences, padded on the right."""
    return pad(sequences, 12, "right")


@pytest.fixture(scope="session")
def outputs(hidden_states, rows):
    """Hidden states of a model at the real tokens of `rows`."""

    def outputs(model) -> np.ndarray:
        tokens, segments = rows
        return hidden_states(model, tokens, segments)[np.asarray(segments) > 0]

    return outputs


@pytest.fixture(scope="session")
def decoded(sequences, pad):
    """Hidden states of a model that reads the left-padded rows but for the last token, and then that one, through a cache."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(definition, state, tokens, segments):
        model = nnx.merge(definition, state)
        valid = segments > 0
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        cache = model.new_cache(len(tokens), tokens.shape[1])
        before, cache = model.decode(tokens[:, :-1], positions[:, :-1], valid[:, :-1], cache)
        last, _ = model.decode(tokens[:, -1:], positions[:, -1:], valid[:, -1:], cache)
        return jnp.concatenate([before, last], axis=1)

    def decoded(model) -> np.ndarray:
        tokens, segments = pad(sequences, 12, "left")
        return np.asarray(run(*nnx.split(model), jnp.asarray(tokens), jnp.asarray(segments)))[segments > 0]

    return decoded
