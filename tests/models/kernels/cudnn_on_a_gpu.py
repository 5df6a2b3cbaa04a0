"""Computes calls of attention by the kernel that is chosen on this computer's GPU: `cudnn_on_a_gpu.py CALLS RESULTS`.

For a process of its own, since the tests have begun JAX on the CPU. CALLS is a pickled list of dictionaries: the fields of an
`AttentionCall` in NumPy's arrays, and `target`, which the mix is multiplied by to have something to derive. RESULTS becomes a
list, for each call, of the mix and the gradients of queries, keys and values.
"""

import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf.models.kernels.call import AttentionCall
from rlhf.models.kernels.choice import attend_by_kernel, choose_kernel
from rlhf.parallel.mesh import MeshConfig, make_mesh


def compute(fields: dict) -> list[np.ndarray]:
    target = fields.pop("target")

    def objective(queries, keys, values):
        call = AttentionCall(**{**fields, "queries": queries, "keys": keys, "values": values})
        kernel = choose_kernel("auto", call, has_bias=False)
        assert kernel == "cudnn", f"chosen: {kernel}"
        mixed = attend_by_kernel(kernel, call)
        return jnp.sum(mixed.astype(jnp.float32) * target), mixed

    arguments = [jnp.asarray(fields[name], jnp.bfloat16) for name in ("queries", "keys", "values")]
    program = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)).lower(*arguments).compile()
    assert "__cudnn$fmha" in program.as_text()
    (_, mixed), gradients = program(*arguments)
    return [np.asarray(array, np.float32) for array in (mixed, *gradients)]


if __name__ == "__main__":
    calls, results = map(Path, sys.argv[1:])
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        computed = [compute(fields) for fields in pickle.loads(calls.read_bytes())]
    results.write_bytes(pickle.dumps(computed))
