"""The call of `jax.nn.dot_product_attention`. Its cuDNN kernel needs a GPU; the same call without the kernel runs anywhere."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.kernels.dot_product import dot_product
from rlhf.parallel.mesh import MeshConfig, make_mesh

ON_A_GPU = Path(__file__).with_name("cudnn_on_a_gpu.py")
HAS_GPU = Path("/dev/nvidiactl").exists()
HAS_CUDA = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def without_kernel(call):
    return dot_product(call, implementation="xla")


@pytest.mark.parametrize("window", [None, 3])
def test_it_is_the_plain_formula(make_call, plain, assert_agree, window):
    assert_agree(without_kernel, plain, make_call(window=window))


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 2}, {"data": 2, "tensor": 2, "sequence": 2}])
def test_on_each_device_its_part(make_call, plain, assert_agree, sizes):
    assert_agree(without_kernel, plain, make_call(window=5), make_mesh(MeshConfig(**sizes)))


@pytest.mark.skipif(not HAS_CUDA, reason="JAX is installed without CUDA (pip install 'rlhf[gpu]')")
@pytest.mark.skipif(not HAS_GPU, reason="this computer has no NVIDIA GPU, without which there is no cuDNN kernel")
def test_the_kernel_on_a_gpu_is_the_plain_formula(make_call, plain, tmp_path, repository):
    """Packed rows with padding, causal, two heads a key head, with a window and without; forward and backward, in bfloat16."""
    calls = [make_call(256, 64), make_call(128, 128, window=40), make_call(256, 128, kv_heads=1)]
    narrowed, expected = zip(*(narrow_and_compute(call, plain) for call in calls), strict=True)
    (tmp_path / "calls").write_bytes(pickle.dumps(narrowed))
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment |= {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": str(repository)}
    words = [sys.executable, ON_A_GPU, tmp_path / "calls", tmp_path / "results"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for found, wanted in zip(pickle.loads((tmp_path / "results").read_bytes()), expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(b).max())  # of eight bits, as bfloat16 has


def narrow_and_compute(call, plain) -> tuple[dict, list[np.ndarray]]:
    """A call's fields with numbers that bfloat16 has, and what the plain formula makes of them in float32."""
    fields = {name: np.asarray(value) if isinstance(value, jax.Array) else value for name, value in vars(call).items()}
    arguments = [jnp.asarray(fields[name], jnp.bfloat16).astype(jnp.float32) for name in ("queries", "keys", "values")]
    target = np.random.default_rng(0).normal(size=call.queries.shape).astype(np.float32)

    def objective(queries, keys, values):
        mixed = plain(type(call)(**{**fields, "queries": queries, "keys": keys, "values": values}))
        return jnp.sum(mixed * target), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))(*arguments)
    narrowed = {**fields, **dict(zip(("queries", "keys", "values"), map(np.asarray, arguments), strict=True))}
    return narrowed | {"target": target}, [np.asarray(array) for array in (mixed, *gradients)]
