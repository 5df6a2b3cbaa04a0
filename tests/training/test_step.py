import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf.errors import UserError
from rlhf.training.compilations import CompilationCounter
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.state import create_train_state
from rlhf.training.step import TrainStep, gradient_step, make_evaluate_step, split_micro_batches

OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.01), 10)


def run(tiny, batches, *, micro_batches=1, optimizer=OPTIMIZER, **model_options):
    graphdef, state = create_train_state(tiny.make_model(**model_options), optimizer)
    step = TrainStep(graphdef, tiny.loss, optimizer, micro_batches)
    metrics = []
    for batch in batches:
        state, measured = step(state, batch)
        metrics.append(jax.device_get(measured))
    return state, metrics


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_accumulation_equals_the_full_batch_for_unequal_weights(tiny, micro_batches):
    """Plain gradient descent, so that the parameters show the gradient itself."""
    descent = optax.sgd(0.1)
    whole, whole_metrics = run(tiny, [tiny.batch_at(0)], optimizer=descent)
    parts, part_metrics = run(tiny, [tiny.batch_at(0)], optimizer=descent, micro_batches=micro_batches)
    for a, b in zip(jax.tree.leaves(whole.trainable), jax.tree.leaves(parts.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    for name, value in whole_metrics[0].items():
        np.testing.assert_allclose(value, part_metrics[0][name], rtol=1e-6, err_msg=name)


def test_metrics_are_means_over_the_whole_weight(tiny):
    batch = tiny.batch_at(0)
    error = np.asarray(tiny.make_model()(batch["x"])) - batch["y"]
    _, [metrics] = run(tiny, [batch], micro_batches=4)
    weight = batch["weight"]
    np.testing.assert_allclose(metrics["loss"], (weight * error**2).sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["abs_error"], (weight * np.abs(error)).sum() / weight.sum(), rtol=1e-5)
    assert metrics["weight"] == weight.sum() and metrics["skipped"] == 0


def test_micro_batches_hold_every_row_once():
    rows = split_micro_batches({"x": jnp.arange(12)}, 3)["x"]
    assert rows.shape == (3, 4) and sorted(rows.ravel().tolist()) == list(range(12))
    with pytest.raises(UserError, match="micro_batches"):
        split_micro_batches({"x": jnp.arange(10)}, 3)


def test_frozen_state_is_kept_and_not_donated(tiny):
    graphdef, state = create_train_state(tiny.make_model(), OPTIMIZER)
    frozen = state.frozen
    step = TrainStep(graphdef, tiny.loss, OPTIMIZER)
    state, _ = step(state, tiny.batch_at(0))
    state, _ = step(state, tiny.batch_at(1))
    assert tiny.bits(frozen) == tiny.bits(state.frozen)
    assert float(nnx.merge(graphdef, state.trainable, state.frozen).offset[...]) == 0.5


def spoil(batch, name):
    return {**batch, name: np.full_like(batch[name], np.nan)}


def test_non_finite_update_is_skipped_wholly_and_counted(tiny):
    good = [tiny.batch_at(0), tiny.batch_at(1)]
    clean, _ = run(tiny, good)
    bad = spoil(tiny.batch_at(5), "x")
    guarded, metrics = run(tiny, [good[0], bad, bad, good[1]])
    assert tiny.bits(guarded.trainable) == tiny.bits(clean.trainable)
    assert tiny.bits(guarded.optimizer_state) == tiny.bits(clean.optimizer_state)
    assert [float(measured["skipped"]) for measured in metrics] == [0, 1, 2, 0]
    assert int(guarded.step) == 4 and int(guarded.skipped) == 0


def test_gradient_alone_can_be_what_is_not_finite(tiny):
    def root_at_zero(model, batch):
        loss = jnp.sqrt(jnp.square(model.stack[...]).sum() * 0.0)
        return loss, jnp.ones(()), {}

    graphdef, state = create_train_state(tiny.make_model(), OPTIMIZER)
    before = tiny.bits(state.trainable)
    state, metrics = TrainStep(graphdef, root_at_zero, OPTIMIZER)(state, tiny.batch_at(0))
    assert float(metrics["loss"]) == 0 and not np.isfinite(metrics["grad_norm"])
    assert int(state.skipped) == 1 and tiny.bits(state.trainable) == before


def test_batch_without_weight_changes_no_gradient(tiny):
    batch = {**tiny.batch_at(0), "weight": np.zeros(8, np.float32)}
    _, [metrics] = run(tiny, [batch], micro_batches=2)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and np.isnan(metrics["abs_error"])


def test_compiled_once(tiny):
    graphdef, state = create_train_state(tiny.make_model(), OPTIMIZER)
    step = TrainStep(graphdef, tiny.loss, OPTIMIZER)
    with CompilationCounter() as first:
        state, _ = step(state, tiny.batch_at(0))
    with CompilationCounter() as later:
        for index in range(1, 6):
            state, _ = step(state, tiny.batch_at(index))
    assert first.count >= 1 and first.seconds > 0 and later.count == 0
    with CompilationCounter() as another_shape:
        step(state, jax.tree.map(lambda leaf: leaf[:4], tiny.batch_at(0)))
    assert another_shape.count >= 1


def test_bfloat16_parameters_stay_bfloat16(tiny):
    state, metrics = run(tiny, [tiny.batch_at(0)] * 2, micro_batches=2, param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(metrics[-1]["loss"])


def test_gradient_step_inside_scan(tiny):
    graphdef, state = create_train_state(tiny.make_model(), OPTIMIZER)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[tiny.batch_at(step) for step in range(3)])

    @jax.jit
    def scanned(state):
        return jax.lax.scan(lambda s, b: gradient_step(graphdef, tiny.loss, OPTIMIZER, s, b, 2), state, stacked)

    state, metrics = scanned(state)
    expected, _ = run(tiny, [tiny.batch_at(step) for step in range(3)], micro_batches=2)
    assert metrics["loss"].shape == (3,) and int(state.step) == 3
    for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(expected.trainable), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_reserved_metric_names_are_refused(tiny):
    graphdef, state = create_train_state(tiny.make_model(), OPTIMIZER)

    def loss(model, batch):
        return *tiny.loss(model, batch)[:2], {"grad_norm": (1.0, 1.0)}

    with pytest.raises(ValueError, match="grad_norm"):
        TrainStep(graphdef, loss, OPTIMIZER)(state, tiny.batch_at(0))


def test_evaluate_step_returns_sums(tiny):
    graphdef, state = create_train_state(tiny.make_model(), OPTIMIZER)
    batch = tiny.batch_at(0)
    sums = make_evaluate_step(graphdef, tiny.loss)(state, batch)
    total, weight, _ = tiny.loss(tiny.make_model(), batch)
    np.testing.assert_allclose(sums["loss"], (total, weight), rtol=1e-6)


def test_eight_devices_agree_with_one_and_keep_their_shardings(tiny):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto, AxisType.Auto))

    def on_mesh(leaf):
        spec = PartitionSpec(None, "fsdp") if leaf.ndim == 2 and leaf.shape[1] % 2 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    class Wide(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 6, rngs=rngs)
            self.second = nnx.Linear(6, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))[:, 0]

    def trained(place_model, place_batch):
        graphdef, state = create_train_state(place_model(Wide(nnx.Rngs(0))), OPTIMIZER)
        step = TrainStep(graphdef, tiny.loss, OPTIMIZER, 2)
        step(jax.tree.map(jnp.copy, state), place_batch(tiny.batch_at(0)))
        before = jax.tree.map(lambda leaf: leaf.sharding, dataclasses.replace(state, frozen=None))
        with CompilationCounter() as counter:
            for index in range(3):
                state, metrics = step(state, place_batch(tiny.batch_at(index)))
        assert counter.count <= 1
        assert jax.tree.map(lambda leaf: leaf.sharding, dataclasses.replace(state, frozen=None)) == before
        return jax.device_get(metrics), state

    def place_model(model):
        nnx.update(model, jax.tree.map(on_mesh, nnx.state(model)))
        return model

    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    one, _ = trained(lambda model: model, lambda batch: batch)
    eight, state = trained(place_model, lambda batch: jax.device_put(batch, rows))
    sharded = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.shape == (5, 6)]
    assert len(sharded) == 2 and all(leaf.sharding.spec == PartitionSpec(None, "fsdp") for leaf in sharded)
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-4, err_msg=name)
