import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.partition import split_model
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding, constrain, shard_state, state_shardings

CONFIG = ModelConfig(
    vocab_size=48, width=32, layers=2, heads=4, kv_heads=2, mlp_width=24, attention_bias=True, tied_embeddings=False
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(1), (8, 6), 0, CONFIG.vocab_size)
    return tokens, (jnp.arange(6) >= jnp.arange(8)[:, None] % 3).astype(jnp.int32)


@pytest.mark.parametrize("announced", [True, False], ids=["mesh set", "mesh not set"])
def test_eight_devices_compute_what_one_does(model, mesh, batch, announced):
    definition, state = nnx.split(model)

    def logits(state, tokens, segments):
        model = nnx.merge(definition, state)
        return model.logits(model(tokens, segments))

    expected = jax.jit(logits)(state, *batch)
    sharded, placed = shard_state(state, mesh), jax.device_put(batch, batch_sharding(mesh))
    if not announced:
        np.testing.assert_allclose(jax.jit(logits)(sharded, *placed), expected, rtol=1e-5, atol=1e-5)
        return
    with jax.set_mesh(mesh):
        program = jax.jit(logits).lower(sharded, *placed).compile()
        np.testing.assert_allclose(program(sharded, *placed), expected, rtol=1e-5, atol=1e-5)
    # One sum over `tensor` for attention and one for the feed-forward part of the scanned block, one for the embedding.
    assert len(re.findall(r" all-reduce\(", program.as_text())) == 3


def test_parameters_and_their_moments_lie_alike(model, mesh):
    _, trainable, _ = split_model(model)
    adam = shard_state(optax.adamw(1e-3).init(trainable), mesh)[0]
    parameters = shard_state(trainable, mesh)
    layouts = [
        jax.tree.map(lambda array: array.sharding.spec, jax.tree.leaves(tree))
        for tree in (parameters, adam.mu, adam.nu)
    ]
    assert layouts[0] == layouts[1] == layouts[2]
    attention = parameters["blocks"]["attention"]
    assert attention["query"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert attention["output"]["kernel"].sharding.spec == PartitionSpec(None, "tensor", None, "fsdp")
    assert parameters["embedding"].sharding.spec == PartitionSpec("tensor", "fsdp")
    assert adam.count.sharding.is_fully_replicated


def test_moments_of_other_shapes_are_kept_whole(model, mesh):
    _, trainable, _ = split_model(model)
    state = shard_state(optax.adafactor(1e-3, min_dim_size_to_factor=8).init(trainable), mesh)
    assert any(leaf.sharding.is_fully_replicated and leaf.ndim == 2 for leaf in jax.tree.leaves(state))


def test_a_scorer_with_its_statistics_can_be_sharded(model, mesh):
    state = shard_state(nnx.state(SequenceScorer(model, rngs=nnx.Rngs(1))), mesh)
    assert state["shift"].sharding.is_fully_replicated


def test_shardings_need_shapes_only(mesh):
    abstract = nnx.state(nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0))))
    shardings = state_shardings(abstract, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(abstract)
    assert shardings["head_kernel"].get_value().spec == PartitionSpec("fsdp", "tensor")


@pytest.mark.parametrize(
    ("choices", "sizes", "message"),
    [
        ({"vocab_size": 51}, {"tensor": 2}, r"mesh\.tensor = 2 does not divide the axis 'vocab' of embedding.*51"),
        (
            {"kv_heads": 2},
            {"tensor": 4},
            r"'kv_heads' of blocks\.attention\.key\.kernel.*\n.*mesh\.tensor to one of 1, 2",
        ),
    ],
)
def test_axes_that_do_not_divide_are_refused(choices, sizes, message):
    state = nnx.state(
        Transformer(ModelConfig(**{"vocab_size": 48, "width": 32, "layers": 2} | choices), rngs=nnx.Rngs(0))
    )
    with pytest.raises(UserError, match=message):
        state_shardings(state, make_mesh(MeshConfig(**sizes)))


def test_vectors_that_do_not_divide_are_kept_whole(mesh):
    vector = nnx.State({"bias": nnx.Param(jnp.zeros((2, 5)), axes=("layers", "mlp"))})
    assert state_shardings(vector, mesh)["bias"].get_value().spec == PartitionSpec()


def test_constraining_without_a_mesh_does_nothing():
    array = jnp.zeros((3, 2))
    assert constrain(array, ("batch", "time")) is array


def test_constraining_keeps_whole_what_does_not_divide(mesh):
    with jax.set_mesh(mesh):
        laid_out = jax.jit(lambda array: constrain(array, ("batch", "mlp")))(jnp.zeros((3, 4)))
    assert laid_out.sharding.spec == PartitionSpec(None, "tensor")
