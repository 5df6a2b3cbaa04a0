"""Attention on GPUs: cuDNN's kernel, by `jax.nn.dot_product_attention`."""

from typing import Literal

import jax

from rlhf.models.kernels.call import AttentionCall, Mixed, on_each_device
from rlhf.parallel.rules import fitting_spec, parts_of


def dot_product(call: AttentionCall, implementation: Literal["cudnn", "xla"] = "cudnn") -> Mixed:
    """Attention on each device's part, for any mask. cuDNN reads it as a bias, [batch, 1, time, slots] in the queries' dtype.

    Args:
        call: what to compute; there may be no soft cap.
        implementation: "xla" is the same call without the kernel, for machines that have none.
    """
    # Beside the mask, which holds it already, because the kernel then leaves out what is later. It counts from the first query that
    # it is given, so where the time axis is divided the mask must do.
    is_causal = call.segment_ids is not None and parts_of("time") == 1

    def on_a_device(queries, keys, values, mask):
        batch, time, _, _, head_dim = queries.shape
        mixed = jax.nn.dot_product_attention(
            queries.reshape(batch, time, -1, head_dim),
            keys.swapaxes(1, 2),
            values.swapaxes(1, 2),
            mask=mask[:, None],
            scale=call.scale,
            is_causal=is_causal,
            implementation=implementation,
        )
        return mixed.reshape(queries.shape)

    mask_spec = fitting_spec(call.mask.shape, ("batch", "time", None))
    specs = (call.query_spec, call.key_spec, call.key_spec, mask_spec)
    return on_each_device(on_a_device, specs)(call.queries, call.keys, call.values, call.mask)
