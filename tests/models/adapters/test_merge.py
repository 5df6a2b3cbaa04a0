"""Merged and unmerged adapters compute the same, and what cannot be merged says so."""

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.adapters.merge import merge, unmerge
from rlhf.models.partition import AdapterConstant, AdapterParam


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_merged_is_a_plain_model_that_computes_the_same(kind, adapted, base, outputs):
    before = outputs(base)
    merged = merge(adapted(kind))
    assert nnx.graphdef(merged) == nnx.graphdef(base)
    np.testing.assert_allclose(outputs(merged), outputs(adapted(kind)), atol=1e-5)
    np.testing.assert_array_equal(outputs(base), before)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_unmerged_the_base_comes_back(kind, adapted, base):
    model = adapted(kind)
    again = unmerge(merge(model), model)
    of_base = nnx.Not(nnx.Any(AdapterParam, AdapterConstant))
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-5),
        nnx.to_pure_dict(nnx.state(again, of_base)),
        nnx.to_pure_dict(nnx.state(base)),
    )
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again, AdapterParam), nnx.state(model, AdapterParam))


def test_biases_scale_with_ia3_and_bitfit_goes_back_where_the_base_has_biases(make_model, moved, outputs):
    biased = make_model(attention_bias=True, mlp_bias=True)
    for kind in ("ia3", "bitfit"):
        model = moved(insert(biased, AdapterConfig(kind), nnx.Rngs(0)))
        merged = merge(model)
        assert nnx.graphdef(merged) == nnx.graphdef(biased)
        np.testing.assert_allclose(outputs(merged), outputs(model), atol=1e-5)


def test_what_cannot_be_merged_or_taken_out(adapted, base):
    for kind in ("prefix", "prompt", "bottleneck"):
        with pytest.raises(UserError, match=f"kind {kind} cannot be merged"):
            merge(adapted(kind))
    with pytest.raises(UserError, match="brought biases that the base's architecture does not have"):
        merge(adapted("bitfit"))
    with pytest.raises(UserError, match="has no adapter"):
        merge(base)
    with pytest.raises(UserError, match="a merged DoRA adapter cannot be taken out"):
        unmerge(merge(adapted("dora")), adapted("dora"))
