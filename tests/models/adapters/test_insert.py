"""What every kind of adapter does to a model: nothing at first where its paper says so, the paper's formula afterwards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.adapters.bottleneck import Bottleneck
from rlhf.models.adapters.config import TARGETS, AdapterConfig
from rlhf.models.adapters.description import describe_trained
from rlhf.models.adapters.insert import insert, parameter_count
from rlhf.models.adapters.virtual_tokens import Prefix, SoftPrompt
from rlhf.models.heads import SequenceScorer
from rlhf.models.partition import AdapterConstant, AdapterParam, HeadParam, split_model, trained
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import shard_state

ALL = ["lora", "dora", "prefix", "prefix network", "prompt", "bottleneck", "ia3", "bitfit"]
IDENTICAL_AT_FIRST = ["lora", "dora", "bottleneck", "ia3", "bitfit"]


def base_arrays(model) -> dict:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {path: variable[...] for path, variable in flat if not isinstance(variable, AdapterParam)}


@pytest.mark.parametrize("kind", ALL)
def test_identity_at_first_only_where_the_paper_has_it(kind, kinds, base, outputs):
    unchanged = np.allclose(outputs(insert(base, kinds[kind], nnx.Rngs(0))), outputs(base), atol=2e-6)
    assert unchanged == (kind in IDENTICAL_AT_FIRST)


@pytest.mark.parametrize("kind", ALL)
def test_the_base_is_shared_and_stays_as_it_was(kind, adapted, base, outputs):
    before = base_arrays(base)
    model = adapted(kind)
    assert np.abs(outputs(model) - outputs(base)).max() > 1e-2
    assert base.adapter_config is None and not hasattr(base.blocks.attention.query.adapter, "down")
    assert all(array is before[path] for path, array in base_arrays(model).items())


@pytest.mark.parametrize("kind", ["dora", "prefix", "prompt", "bottleneck"])
def test_decoding_through_a_cache_gives_the_same(kind, adapted, outputs, decoded):
    np.testing.assert_allclose(decoded(adapted(kind)), outputs(adapted(kind)), atol=2e-5)


@pytest.mark.parametrize("kind", ALL)
def test_training_moves_the_adapter_and_nothing_else(kind, kinds, base, rows):
    model = insert(base, kinds[kind], nnx.Rngs(0))
    definition, parameters, frozen = split_model(model)
    assert {type(variable) for _, variable in nnx.to_flat_state(parameters)} == {AdapterParam}
    tokens, segments = jnp.asarray(rows[0]), jnp.asarray(rows[1])
    optimizer = optax.adam(0.02)

    def loss(parameters):
        model = nnx.merge(definition, parameters, frozen)
        log_probs = model.token_log_probs(model(tokens, segments)[:, :-1], tokens[:, 1:])
        return -jnp.sum(jnp.where(segments[:, 1:] > 0, log_probs, 0))

    @jax.jit
    def step(carry, _):
        parameters, state = carry
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), (value, gradients)

    @jax.jit
    def train(parameters):
        return jax.lax.scan(step, (parameters, optimizer.init(parameters)), length=12)

    _, (losses, gradients) = train(parameters)
    assert losses[-1] < losses[0] - 0.5
    for path, variable in nnx.to_flat_state(gradients):
        assert np.any(np.asarray(variable[...])), f"nothing ever moves {path}"


def test_without_an_adapter_everything_is_trained(base):
    assert trained(base) is nnx.Param
    scorer = SequenceScorer(insert(base, AdapterConfig(), nnx.Rngs(0)), rngs=nnx.Rngs(0))
    _, parameters, frozen = split_model(scorer)
    assert {type(variable) for _, variable in nnx.to_flat_state(parameters)} == {AdapterParam, HeadParam}
    assert len(jax.tree.leaves(frozen)) > len(jax.tree.leaves(parameters))


@pytest.mark.parametrize(
    "config, expected",
    [
        (AdapterConfig(rank=3, targets=("query", "down")), 3 * 3 * ((32 + 32) + (40 + 32))),
        (AdapterConfig(rank=3, targets=("query",), rank_pattern={r"layers\.1\..*": 5}), (3 + 5 + 3) * 64),
        (AdapterConfig(rank=3, targets=("key",), dora=True), 3 * (3 * (32 + 16) + 16)),
        (AdapterConfig("prefix", length=4), 3 * 4 * 2 * 16),
        (AdapterConfig("prompt", length=4), 4 * 32),
        (AdapterConfig("bottleneck", width=5, train_norms=False), 3 * 2 * (2 * 32 * 5 + 5 + 32)),
        (AdapterConfig("bottleneck", width=5), 3 * 2 * (2 * 32 * 5 + 5 + 32) + 7 * 32),
        (AdapterConfig("ia3"), 3 * (16 + 16 + 40)),
        (AdapterConfig("bitfit"), 3 * (32 + 16 + 16 + 32 + 40 + 40 + 32)),
    ],
    ids=lambda value: value.kind if isinstance(value, AdapterConfig) else str(value),
)
def test_parameter_counts(config, expected, base):
    model = insert(base, config, nnx.Rngs(0))
    assert parameter_count(model) == expected
    scorer = SequenceScorer(model, rngs=nnx.Rngs(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(base, nnx.Param)))
    line = describe_trained(scorer)
    assert f"{expected:,} parameters" in line and "head's 32" in line
    if config.kind not in ("bottleneck", "bitfit") or not config.train_norms:
        assert f"base of {total:,}" in line


def test_a_prefix_of_a_texts_keys_and_values_stands_for_the_text(base, sequences, outputs, hidden_states):
    text = np.concatenate([[5, 9, 31], sequences[0]])[None]
    cache = base.new_cache(1, 3)
    _, cache = base.decode(jnp.asarray(text[:, :3]), jnp.arange(3)[None], jnp.ones((1, 3), bool), cache)
    model = insert(base, AdapterConfig("prefix", length=3), nnx.Rngs(0))
    model.blocks.attention.prefix = Prefix(
        *(jnp.stack([getattr(layer, name)[0] for layer in cache.layers]) for name in ("keys", "values"))
    )
    definition, state = nnx.split(model)
    ones, positions = jnp.ones((1, len(sequences[0])), jnp.int32), 3 + jnp.arange(len(sequences[0]))[None]
    found = nnx.merge(definition, state)(jnp.asarray(text[:, 3:]), ones, positions)
    expected = hidden_states(base, text, np.ones_like(text))[:, 3:]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_prompt_of_a_texts_embeddings_stands_for_the_text_before_every_sequence_of_a_row(
    base, sequences, hidden_states
):
    prompt = np.array([5, 9, 31])
    model = insert(base, AdapterConfig("prompt", length=3), nnx.Rngs(0))
    model.soft_prompt = SoftPrompt(base.embedding[...][prompt])
    packed = np.concatenate([*sequences, [0, 0]])[None]
    segments = np.concatenate([[number + 1] * len(part) for number, part in enumerate([*sequences, [0, 0]])])[None]
    found = hidden_states(model, packed, np.where(segments == len(sequences) + 1, 0, segments))[0]
    start = 0
    for sequence in sequences:
        text = np.concatenate([prompt, sequence])[None]
        expected = hidden_states(base, text, np.ones_like(text))[0, 3:]
        np.testing.assert_allclose(found[start : start + len(sequence)], expected, atol=2e-5)
        start += len(sequence)


def test_a_prompt_takes_its_place_in_the_context(base):
    model = insert(base, AdapterConfig("prompt", length=10), nnx.Rngs(0))
    assert model.config.context == base.config.context - 10
    rows = {tuple(row) for row in np.asarray(base.embedding[...])}
    assert all(tuple(row) in rows for row in np.asarray(model.soft_prompt()))
    with pytest.raises(UserError, match=r"model\.adapter\.length is 64"):
        insert(base, AdapterConfig("prompt", length=64), nnx.Rngs(0))


def test_a_bottleneck_is_the_papers_formula(base, moved):
    config = dataclasses.replace(base.config, layers=1)
    module = moved(Bottleneck(config, 5, jnp.tanh, nnx.Rngs(0)))
    definition, layers = nnx.split(module)
    layer = nnx.merge(definition, jax.tree.map(lambda leaf: leaf[0], layers))
    hidden = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    down, down_bias, up, up_bias = (
        np.asarray(getattr(module, name)[0], np.float64) for name in ("down", "down_bias", "up", "up_bias")
    )
    expected = hidden + np.tanh(hidden @ down + down_bias) @ up + up_bias
    np.testing.assert_allclose(layer(hidden), expected, atol=1e-5)


@pytest.mark.parametrize("part", ["attention_adapter", "mlp_adapter"])
def test_bottlenecks_stand_after_each_part_before_it_is_added(part, base, make_model, outputs):
    """One whose only output is a constant is the same as a bias on the part's last projection."""
    model = insert(base, AdapterConfig("bottleneck"), nnx.Rngs(0))
    constant = 0.3 * jax.random.normal(jax.random.key(3), (3, 32))
    getattr(model.blocks, part).up_bias.set_value(constant)
    biased = insert(base, AdapterConfig("bitfit"), nnx.Rngs(0))
    last = biased.blocks.attention.output if part == "attention_adapter" else biased.blocks.mlp.down
    last.bias.set_value(constant)
    np.testing.assert_allclose(outputs(model), outputs(biased), atol=1e-5)


def test_ia3_scales_keys_values_and_hidden_features(base, adapted, outputs):
    model, scaled = adapted("ia3"), nnx.clone(base)
    attention, mlp = model.blocks.attention, model.blocks.mlp
    for name in ("key", "value"):
        kernel = getattr(scaled.blocks.attention, name).kernel
        kernel.set_value(kernel[...] * getattr(attention, name).adapter.scale[...][:, None])
    down = scaled.blocks.mlp.down.kernel
    down.set_value(down[...] * mlp.hidden_adapter.scale[...][:, :, None])
    np.testing.assert_allclose(outputs(model), outputs(scaled), atol=1e-5)


def test_bitfit_trains_the_biases_there_are_and_brings_those_that_are_missing(make_model):
    biased = make_model(norm="layer", attention_bias=True, mlp_bias=False)
    model = insert(biased, AdapterConfig("bitfit"), nnx.Rngs(0))
    taken = {path[-2:]: variable for path, variable in nnx.to_flat_state(nnx.state(model, AdapterParam))}
    assert {path[-1] for path in taken} == {"bias"} and ("final_norm", "bias") in taken
    np.testing.assert_array_equal(taken[("query", "bias")][...], biased.blocks.attention.query.bias[...])
    np.testing.assert_array_equal(taken[("up", "bias")][...], 0)
    assert taken[("query", "bias")][...] is not biased.blocks.attention.query.bias[...]  # donated in training


def test_lora_ranks_and_factors_of_each_layer(base):
    config = AdapterConfig(
        rank=4,
        alpha=8.0,
        targets=("query", "value", "up"),
        rank_pattern={"layers.1.attention.query": 2, "value": 0, r"layers\.[12]\.mlp.*": 0},
        alpha_pattern={"query": 6.0},
    )
    blocks = insert(base, config, nnx.Rngs(0)).blocks
    np.testing.assert_allclose(blocks.attention.query.adapter.scaling[...], [6 / 4, 6 / 2, 6 / 4])
    assert blocks.attention.value.adapter is None
    np.testing.assert_allclose(blocks.mlp.up.adapter.scaling[...], [2, 0, 0])
    used = np.any(np.asarray(blocks.attention.query.adapter.down[...]) != 0, axis=1)
    assert used.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]
    stable = insert(base, dataclasses.replace(config, rank_stabilized=True), nnx.Rngs(0)).blocks
    np.testing.assert_allclose(stable.attention.query.adapter.scaling[...], [6 / 2, 6 / np.sqrt(2), 6 / 2])


def test_targets_are_the_projections_that_change(base):
    for target in TARGETS:
        blocks = insert(base, AdapterConfig(targets=(target,)), nnx.Rngs(0)).blocks
        parts = {**vars(blocks.attention), **vars(blocks.mlp)}
        assert [name for name in TARGETS if parts[name].adapter is not None] == [target]


def test_sharded_over_a_mesh_it_computes_the_same(adapted, kinds, rows, outputs):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    for kind in ("dora", "prefix network", "bottleneck"):
        definition, state = nnx.split(adapted(kind))
        assert all(
            len(variable.axes) == variable.ndim
            for _, variable in nnx.to_flat_state(state)
            if isinstance(variable, (AdapterParam, AdapterConstant))
        )
        np.testing.assert_allclose(
            outputs(nnx.merge(definition, shard_state(state, mesh))), outputs(adapted(kind)), atol=1e-5
        )


def test_one_adapter_at_a_time(adapted, base):
    with pytest.raises(UserError, match="has an adapter of kind lora already"):
        insert(adapted("lora"), AdapterConfig("ia3"), nnx.Rngs(0))
    with pytest.raises(UserError, match="leave nothing to adapt"):
        insert(base, AdapterConfig(rank_pattern={".*": 0}), nnx.Rngs(0))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "ia3", "rank": 4}, "rank has no effect on an adapter of kind ia3"),
        ({"kind": "lora", "length": 4}, "length has no effect on an adapter of kind lora"),
        ({"kind": "prompt", "alpha_pattern": {"query": 1.0}}, "alpha_pattern has no effect"),
        ({"targets": ("q_proj",)}, "choose one or more of query"),
        ({"rank": 0}, r"model\.adapter\.rank"),
        ({"rank_pattern": {"query": -1}}, "may not be negative"),
    ],
)
def test_configurations_that_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        AdapterConfig(**settings)
