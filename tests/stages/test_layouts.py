"""Gradients, moments and the cache of decoding lie on the mesh as the rules say, inside the programs of the stages."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf.data.batches import SequenceBatch
from rlhf.generation.generator import generate
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.cache import LayerCache
from rlhf.models.config import ModelConfig
from rlhf.models.partition import trained
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding, shard_state, state_shardings
from rlhf.parallel.table import rules_changed
from rlhf.training.next_token import next_token_loss
from rlhf.training.state import create_train_state
from rlhf.training.step import TrainStep

TINY = ModelConfig(vocab_size=16, width=16, layers=2, heads=4, kv_heads=2, mlp_width=24, context=32)
ROWS, TIME = 8, 8


def make_model(kind: str) -> Transformer:
    model = Transformer(TINY, rngs=nnx.Rngs(0))
    return model if kind == "whole" else insert(model, AdapterConfig(rank=2), nnx.Rngs(1))


def on_mesh(model: Transformer, mesh) -> Transformer:
    definition, state = nnx.split(model)
    return nnx.merge(definition, shard_state(state, mesh))


def note(seen: dict, name: Any, array: jax.Array) -> None:
    """Notes, when the program that is being traced is compiled, how an array in the middle of it lies."""
    jax.debug.inspect_array_sharding(array, callback=partial(seen.__setitem__, name))


def noting_gradients(optimizer: optax.GradientTransformation, seen: dict) -> optax.GradientTransformation:
    def update(gradients, state, parameters):
        for path, variable in nnx.to_flat_state(gradients):
            note(seen, path, variable.get_value())
        return optimizer.update(gradients, state, parameters)

    return optax.GradientTransformation(optimizer.init, update)


def layouts(state: nnx.State) -> dict[tuple, NamedSharding]:
    return {path: variable.get_value() for path, variable in nnx.to_flat_state(state)}


@pytest.mark.parametrize(
    ("kind", "micro_batches", "rules"),
    [("whole", 1, {}), ("lora", 2, {}), ("whole", 2, {"embed": None, "mlp": ["tensor", "fsdp"]})],
    ids=["whole", "lora in micro-batches", "other rules in micro-batches"],
)
def test_gradients_and_moments_lie_as_their_parameters(kind, micro_batches, rules):
    mesh, gradients = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), {}
    optimizer = noting_gradients(optax.adam(1e-3), gradients)
    tokens = np.zeros((ROWS, TIME), np.int32)
    batch = jax.device_put(SequenceBatch(tokens, tokens + 1, tokens == 0), batch_sharding(mesh))
    with rules_changed(rules), jax.set_mesh(mesh):
        model = on_mesh(make_model(kind), mesh)
        definition, state = create_train_state(model, optimizer, trained(model))
        expected = layouts(state_shardings(state.trainable, mesh))
        program = TrainStep(definition, next_token_loss(None), optimizer, micro_batches).lower(state, batch).compile()
    after = program.output_shardings[0]
    adam = after.optimizer_state[0]
    shapes = {path: variable.shape for path, variable in nnx.to_flat_state(state.trainable)}
    assert sum(not sharding.is_fully_replicated for sharding in expected.values()) > len(expected) / 2
    for found in (gradients, layouts(after.trainable), layouts(adam.mu), layouts(adam.nu)):
        assert found.keys() == expected.keys()
        for path, sharding in expected.items():
            assert found[path].is_equivalent_to(sharding, len(shapes[path])), (path, found[path], sharding)


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 2, "sequence": 4}], ids=str
)
def test_the_cache_lies_by_rows_and_heads(sizes, monkeypatch):
    mesh, seen, write = make_mesh(MeshConfig(**sizes)), {}, LayerCache.write

    def noting_write(self, keys, values, slot):
        cache = write(self, keys, values, slot)
        note(seen, ("keys", keys.shape[2], len(seen)), cache.keys)
        note(seen, ("values", keys.shape[2], len(seen)), cache.values)
        return cache

    monkeypatch.setattr(LayerCache, "write", noting_write)
    definition, state = nnx.split(on_mesh(make_model("whole"), mesh))
    prompts = jax.device_put(jnp.ones((ROWS, TIME), jnp.int32), batch_sharding(mesh))

    def respond(state, prompts):
        options = {"sampling": SamplingConfig(), "max_new_tokens": 4, "end_token": 2, "pad_token": 0}
        return generate(nnx.merge(definition, state), prompts, prompts > 0, jax.random.key(0), **options)

    with jax.set_mesh(mesh):
        jax.jit(respond).lower(state, prompts).compile()
    assert {time for _, time, _ in seen} == {TIME, 1}  # the prompt's, and those of a token in the loop
    expected = NamedSharding(mesh, P(("data", "fsdp"), "tensor"))
    for place, sharding in seen.items():
        assert sharding.is_equivalent_to(expected, 4), (place, sharding)
