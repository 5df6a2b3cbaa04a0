"""Roles hold what models have in common once, and give each model back whole."""

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.heads import SequenceScorer
from rlhf.models.partition import split_model
from rlhf.rl.roles import Roles


@pytest.fixture(scope="module")
def on_one_base(rl):
    """Four models on one base, and the size of the base."""
    base = rl.make_policy(0)

    def adapted(seed: int):
        return insert(base, AdapterConfig(rank=2), nnx.Rngs(seed))

    models = {
        "policy": adapted(0),
        "value": SequenceScorer(adapted(1), rngs=nnx.Rngs(1)),
        "reference": base,
        "safety": SequenceScorer(insert(base, AdapterConfig("ia3"), nnx.Rngs(0)), rngs=nnx.Rngs(2)),
    }
    return models, sum(leaf.size for leaf in jax.tree.leaves(nnx.state(base)))


def test_a_base_is_held_once(on_one_base):
    models, base = on_one_base
    roles = Roles(models, learning=("policy", "value"))
    held = sum(array.size for array in roles.arrays)
    assert len({id(array) for array in roles.arrays}) == len(roles.arrays)
    ia3, head, statistics, scalings = 2 * (8 + 8 + 24), 16, 2 * 2, 2 * 2 * 2
    assert held == base + ia3 + head + statistics + scalings
    assert f"policy, value, reference, safety share {base:,} parameters" in roles.describe()


def test_every_role_comes_back_whole(on_one_base, rl, forward):
    models, _ = on_one_base
    roles = Roles(models, learning=("policy", "value"))
    rollout = rl.make_rollout()
    assert "safety" in roles and "helpfulness" not in roles
    for name, model in models.items():
        trained = split_model(model)[1] if name in ("policy", "value") else None
        again = roles.model(name, roles.arrays, trained)
        np.testing.assert_array_equal(
            forward(again, rollout.tokens, rollout.mask), forward(model, rollout.tokens, rollout.mask)
        )


def test_models_of_their_own_share_nothing(rl):
    models = {"policy": rl.make_policy(0), "reference": rl.make_policy(0), "safety": rl.make_scorer(1)}
    roles = Roles(models, learning=("policy",))
    sizes = [len(jax.tree.leaves(nnx.state(models[name]))) for name in ("reference", "safety")]
    assert len(roles.arrays) == sum(sizes)
    assert roles.describe() == "No two models share a base"
