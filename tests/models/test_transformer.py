import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.cache import KVCache
from rlhf.models.config import AttentionConfig, ComputeConfig, ModelConfig
from rlhf.models.partition import split_model
from rlhf.models.placement import place
from rlhf.models.positions import positions_from_segments
from rlhf.models.transformer import Transformer

KINDS = {
    "llama": {},
    "multi-head, biases, untied": {
        "kv_heads": None,
        "attention_bias": True,
        "mlp_bias": True,
        "tied_embeddings": False,
    },
    "layer norm, learned positions, plain gelu": {
        "norm": "layer",
        "position": "learned",
        "gated_mlp": False,
        "activation": "gelu",
        "mlp_bias": True,
    },
    "no positions, wide heads, one key head": {
        "position": "none",
        "head_dim": 10,
        "kv_heads": 1,
        "activation": "relu",
    },
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def model(request, make_model):
    return make_model(**request.param)


@pytest.fixture(scope="module")
def alone(model, sequences, hidden_states):
    """Hidden states of each sequence in a row of its own, without padding."""
    return [hidden_states(model, sequence[None], np.ones((1, len(sequence)), int))[0] for sequence in sequences]


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, sequences, pad, hidden_states, alone, side):
    tokens, segments = pad(sequences, 12, side)
    found = hidden_states(model, tokens, segments)
    assert np.isfinite(found).all()
    for row, expected in enumerate(alone):
        close(found[row][segments[row] > 0], expected)


def test_packed_sequences_do_not_see_each_other(model, sequences, hidden_states, alone):
    tokens = np.concatenate([*sequences, [0, 0, 0]])[None]
    lengths = [len(sequence) for sequence in sequences]
    segments = np.repeat([*range(1, len(sequences) + 1), 0], [*lengths, 3])[None]
    found = hidden_states(model, tokens, segments)[0]
    for number, expected in enumerate(alone, 1):
        close(found[segments[0] == number], expected)


def test_a_token_does_not_see_later_ones(model, sequences, hidden_states, alone):
    sequence = sequences[0]
    changed = sequence.copy()
    changed[5:] += 1
    tokens = (changed % model.config.vocab_size)[None]
    before, after = alone[0], hidden_states(model, tokens, np.ones_like(tokens))[0]
    close(before[:5], after[:5])
    assert np.abs(before[5:] - after[5:]).max() > 1e-3


def test_decoding_through_the_cache_equals_reading_whole_rows(model, sequences, pad, hidden_states):
    prompts, responses = [sequence[: (len(sequence) + 1) // 2] for sequence in sequences], 4
    rows = [np.concatenate([prompt, np.arange(responses) + 5]) for prompt in prompts]
    length = max(map(len, prompts)) + responses
    tokens, segments = pad(rows, length, "left")
    expected = hidden_states(model, tokens, segments)
    definition, state = nnx.split(model)

    @jax.jit
    def decode(state, tokens, positions, valid, cache):
        return nnx.merge(definition, state).decode(tokens, positions, valid, cache)

    positions = positions_from_segments(jnp.asarray(segments))
    cache = KVCache.create(model.config, model.compute, len(rows), length + 3)
    prompt_length = length - responses
    start = 0
    for end in (prompt_length, *range(prompt_length + 1, length + 1)):
        new = slice(start, end)
        found, cache = decode(state, tokens[:, new], positions[:, new], segments[:, new] > 0, cache)
        real = segments[:, new] > 0
        close(np.asarray(found)[real], expected[:, new][real])
        start = end
    assert int(cache.length) == length
    np.testing.assert_array_equal(cache.valid[:, :length], segments > 0)
    assert not cache.valid[:, length:].any()


@pytest.mark.parametrize("method", [None, "prompt", "prefix"])
@pytest.mark.parametrize("choices", [{}, {"position": "alibi"}, {"attention": AttentionConfig(window=3)}], ids=str)
def test_a_prompt_is_read_as_the_cache_would_have_it_read(make_model, sequences, pad, choices, method):
    model = make_model(**choices)
    if method:
        model = insert(nnx.clone(model), AdapterConfig(method, length=2), nnx.Rngs(0))
    tokens, segments = pad(sequences, 9, "left")
    positions, valid = positions_from_segments(jnp.asarray(segments)), jnp.asarray(segments > 0)
    definition, state = nnx.split(model)

    @jax.jit
    def both(state):
        merged = nnx.merge(definition, state)
        return (
            merged.prefill(tokens, positions, valid, 13),
            merged.decode(tokens, positions, valid, merged.new_cache(len(tokens), 13)),
        )

    (found, cache), (expected, expected_cache) = both(state)
    close(np.asarray(found)[segments > 0], np.asarray(expected)[segments > 0])
    assert int(cache.length) == model.virtual_tokens + 9 == int(expected_cache.length)
    np.testing.assert_array_equal(cache.valid, expected_cache.valid)
    real = np.asarray(cache.valid)[:, None, :, None]
    for layer, expected_layer in zip(cache.layers, expected_cache.layers, strict=True):
        close(np.where(real, layer.keys, 0), np.where(real, expected_layer.keys, 0))
        close(np.where(real, layer.values, 0), np.where(real, expected_layer.values, 0))


def test_a_prompt_is_read_without_scores_of_slots_that_are_empty(make_model):
    model = make_model()
    tokens, slots = np.ones((1, 8), np.int32), 1000

    def text(method, *arguments):
        return jax.jit(lambda: getattr(model, method)(tokens, tokens, tokens > 0, *arguments)[0]).lower().as_text()

    assert f"8x{slots}xf32" in text("decode", model.new_cache(1, slots))
    assert f"8x{slots}xf32" not in text("prefill", slots)


def test_blocks_are_applied_in_the_order_of_the_stack(make_model, sequences, hidden_states):
    model = make_model()
    definition = nnx.graphdef(model.blocks)
    layers = nnx.state(model.blocks)
    tokens, segments = sequences[0][None], np.ones((1, len(sequences[0])), int)
    positions = positions_from_segments(jnp.asarray(segments))
    placements = place(model.config, positions, positions, jnp.tri(tokens.shape[1], dtype=bool)[None])

    @jax.jit
    def apply(layer_state, hidden):
        return nnx.merge(definition, layer_state)(hidden, placements.of_layer(0), None, 0)[0]

    hidden = model.embedding[tokens]
    for layer in range(model.config.layers):
        hidden = apply(jax.tree.map(lambda stacked, layer=layer: stacked[layer], layers), hidden)
    close(hidden_states(model, tokens, segments), model.final_norm(hidden))


def test_each_layer_has_its_own_draw(make_model):
    kernel = np.asarray(make_model().blocks.mlp.up.kernel[...])
    assert len({layer.tobytes() for layer in kernel}) == len(kernel)


def test_every_parameter_names_its_axes(model):
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert len(variable.axes) == variable[...].ndim, path
        assert (variable.axes[0] == "layers") == (path[0] == "blocks"), path


def loss_gradient(model, tokens, segments):
    definition, trainable, frozen = split_model(model)

    def loss(trainable):
        model = nnx.merge(definition, trainable, frozen)
        logits = model.logits(model(tokens, segments))
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) * (segments > 0))

    return jax.jit(jax.grad(loss))(trainable)


def test_recomputing_does_not_change_gradients(make_model, sequences, pad):
    tokens, segments = map(jnp.asarray, pad(sequences, 12, "right"))
    expected = loss_gradient(make_model(), tokens, segments)
    for remat in ("dots", "full"):
        found = loss_gradient(make_model(ComputeConfig(remat=remat)), tokens, segments)
        jax.tree.map(close, jax.tree.leaves(found), jax.tree.leaves(expected))


def test_recomputing_keeps_less(make_model):
    def kept(remat):
        model = make_model(ComputeConfig(remat=remat))
        definition, state = nnx.split(model)
        tokens = jnp.ones((2, 8), int)
        _, backward = jax.eval_shape(
            lambda state: jax.vjp(lambda s: nnx.merge(definition, s)(tokens, tokens), state), state
        )
        return sum(array.size for array in jax.tree.leaves(backward))

    assert kept("full") < kept("dots") < kept("none")


def test_a_layer_that_keeps_its_products_computes_attention_no_more_often_than_one_that_keeps_everything(make_model):
    time = 7  # a size that nothing else has
    tokens = jnp.ones((2, time), int)

    def softmaxes(remat):
        definition, state = nnx.split(make_model(ComputeConfig(remat=remat)))

        def loss(state):
            return jnp.sum(nnx.merge(definition, state)(tokens, tokens))

        text = jax.jit(jax.grad(loss)).lower(state).as_text()
        return len(re.findall(rf"stablehlo.exponential .*x{time}x{time}xf32", text))

    assert softmaxes("none") == softmaxes("dots") == softmaxes("full") - 1 == 2


@pytest.mark.parametrize("shape", [(3,), (2, 4)], ids=["rows", "batch and time"])
def test_logits_of_a_tied_model_are_products_with_its_embedding(make_model, shape):
    model = make_model()
    hidden = np.random.default_rng(0).normal(size=(*shape, model.config.width)).astype(np.float32)
    expected = hidden.astype(np.float64) @ np.asarray(model.embedding[...], np.float64).T
    np.testing.assert_allclose(jax.jit(model.logits)(hidden), expected, rtol=1e-5, atol=1e-5)


def test_a_cpu_multiplies_the_embedding_by_the_hidden_states_and_not_the_other_way_round(make_model):
    model, rows = make_model(), 7
    hidden = jnp.ones((rows, model.config.width))
    program = jax.jit(model.logits).lower(hidden).compile().as_text()
    assert re.search(rf"f32\[{model.config.vocab_size},{rows}\]\S* (?:dot|custom-call)\(", program)


def test_gradients_are_finite_and_reach_every_parameter(model, sequences, pad):
    tokens, segments = map(jnp.asarray, pad([*sequences, []], 12, "left"))
    for path, gradient in nnx.to_flat_state(loss_gradient(model, tokens, segments)):
        assert np.isfinite(gradient[...]).all(), path
        # A bias of all keys moves a query's scores alike, so without rotation softmax does not feel it.
        assert path[-2:] == ("key", "bias") or np.abs(gradient[...]).max() > 1e-6, path


def test_bfloat16_stays_close_and_logits_are_float32(make_model, sequences, pad, hidden_states):
    tokens, segments = map(jnp.asarray, pad(sequences, 12, "right"))
    half = make_model(ComputeConfig(dtype="bfloat16", parameter_dtype="bfloat16"))
    full = make_model()
    hidden = jnp.asarray(hidden_states(half, tokens, segments))
    assert hidden.dtype == jnp.bfloat16
    assert half.logits(hidden).dtype == jnp.float32
    assert {variable.dtype for variable in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("bfloat16")}
    difference = np.abs(half.logits(hidden) - full.logits(hidden_states(full, tokens, segments)))[segments > 0]
    assert 0 < difference.mean() < 0.05


def test_rotation_sees_only_distances(make_model, sequences):
    model, tokens = make_model(), sequences[0][None]
    segments = np.ones_like(tokens)
    shifted = model(tokens, segments, jnp.arange(tokens.shape[1])[None] + 20)
    close(shifted, model(tokens, segments), 1e-4)


def test_learned_positions_beyond_the_context_are_noticed(make_model):
    model = make_model(position="learned", context=4)
    tokens = np.ones((1, 5), int)
    assert np.isnan(model(tokens, tokens)).any()
    assert np.isfinite(model(tokens[:, :4], tokens[:, :4])).all()


def test_tied_logits_are_products_with_the_embedding(make_model):
    model = make_model()
    hidden = jax.random.normal(jax.random.key(0), (2, 3, model.config.width))
    close(model.logits(hidden), hidden @ model.embedding[...].T)
    assert not hasattr(model, "head_kernel")


def test_a_model_that_is_only_described_takes_no_memory(make_model):
    config = dataclasses.replace(make_model().config, width=8192, layers=80, mlp_width=30000)
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert abstract.blocks.mlp.up.kernel.shape == (80, 8192, 30000)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_positions_count_from_0_in_each_segment(lengths, before, after):
    segments = np.repeat([0, *range(1, len(lengths) + 1), 0], [before, *lengths, after])
    expected = np.concatenate([np.zeros(before), *map(np.arange, lengths), np.zeros(after)])
    np.testing.assert_array_equal(positions_from_segments(jnp.asarray(segments[None])), expected[None])


def test_branches_see_the_trunk_and_themselves():
    """Two answers behind one prompt give the hidden states of two whole sequences."""
    config = ModelConfig(vocab_size=40, width=16, layers=2, heads=2, mlp_width=24, context=32)
    model = Transformer(config, rngs=nnx.Rngs(0))
    prompt, first, second = [5, 6, 7], [8, 9], [10, 11, 12, 13]
    row = jnp.array([[*prompt, *first, *second, 0]])
    positions = jnp.array([[0, 1, 2, 3, 4, 3, 4, 5, 6, 0]])
    branch_ids = jnp.array([[0] * 3 + [1] * 2 + [2] * 4 + [0]])
    hidden = model(row, (row > 0).astype(jnp.int32), positions, branch_ids)[0]
    for answer, columns in ((first, slice(3, 5)), (second, slice(5, 9))):
        whole = jnp.array([[*prompt, *answer]])
        alone = model(whole, jnp.ones_like(whole))[0]
        np.testing.assert_allclose(hidden[columns], alone[3:], atol=1e-5)
