"""The call of `jax.nn.dot_product_attention`. Its cuDNN kernel needs a GPU; the same call without the kernel runs anywhere."""

import pytest

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
