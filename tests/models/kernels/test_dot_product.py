"""The call of `jax.nn.dot_product_attention`; its cuDNN kernel needs a GPU, the same call without the kernel runs anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.kernels.choice import choose_kernel
from rlhf.models.kernels.dot_product import dot_product
from rlhf.parallel.mesh import MeshConfig, make_mesh


def without_kernel(call):
    return dot_product(call, implementation="xla")


@pytest.mark.parametrize("window", [None, 3])
def test_it_is_the_plain_formula(make_call, plain, assert_agree, window):
    assert_agree(without_kernel, plain, make_call(window=window))


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 2, "tensor": 2, "sequence": 2}])
def test_on_each_device_its_part(make_call, plain, assert_agree, sizes):
    assert_agree(without_kernel, plain, make_call(window=5), make_mesh(MeshConfig(**sizes)))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 100])
def test_the_kernel_is_the_plain_formula(make_call, plain, window):
    call = make_call(256, 64, window=window)
    call = jax.tree_util.tree_map(lambda leaf: leaf, call)
    narrow = type(call)(
        *(part.astype(jnp.bfloat16) for part in (call.queries, call.keys, call.values)),
        *(call.mask, call.segment_ids, call.window, call.scale, call.soft_cap),
    )
    assert choose_kernel("auto", narrow, has_bias=False) == "cudnn"
    real = np.asarray(call.segment_ids > 0)[:, :, None, None, None]
    np.testing.assert_allclose(dot_product(narrow) * real, plain(call) * real, atol=3e-2)
