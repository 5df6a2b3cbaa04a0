"""Attention on TPUs: the splash kernel (Pallas), which skips the blocks of scores in which nobody may look anywhere."""

from math import gcd

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import NamedSharding, PartitionSpec

from rlhf.models.kernels.call import SPLASH_LANES, AttentionCall, Mixed, on_each_device
from rlhf.models.softmax_attention import MIXED
from rlhf.parallel.rules import partition_spec, parts_of

LARGEST_BLOCK = 512


def splash(call: AttentionCall, *, interpret: bool = False) -> Mixed:
    """Attention on each device's part; sums and softmax are float32.

    Heads are filled up with zeros to the size that the kernel takes, which changes no result; the plain formula would write the
    scores of all heads to main memory and read them back.

    Args:
        call: what to compute, with segment ids.
        interpret: run the kernel's operations one by one, on any platform, to see what it computes.
    """
    _, time, kv_heads, group, head_dim = call.queries.shape
    filling = ((0, 0), (0, 0), (0, 0), (0, -head_dim % SPLASH_LANES))
    kernel = _make_kernel(time, kv_heads * group, call.window, call.soft_cap, interpret)

    def on_a_device(queries, keys, values, query_segments, key_segments, kernel):
        by_head = queries.reshape(*queries.shape[:2], -1, head_dim).swapaxes(1, 2)
        by_head *= jnp.asarray(call.scale, queries.dtype)
        filled = [jnp.pad(part, filling) for part in (by_head, keys, values)]
        segments = splash_attention_kernel.SegmentIds(query_segments, key_segments)
        mixed = jax.vmap(kernel)(*filled, segments)[..., :head_dim]
        return mixed.swapaxes(1, 2).reshape(queries.shape)

    mesh = jax.sharding.get_abstract_mesh()
    layout = partition_spec(("kv_heads", "time"))
    kernel_spec = None if mesh.empty else kernel.manual_sharding_spec(NamedSharding(mesh, layout))
    rows, own_time = call.query_spec[:2]
    segment_specs = (PartitionSpec(rows, own_time), PartitionSpec(rows, None))
    specs = (call.query_spec, call.key_spec, call.key_spec, *segment_specs, kernel_spec)
    arrays = (call.queries, call.keys, call.values, call.segment_ids, call.segment_ids)
    return on_each_device(on_a_device, specs)(*arrays, kernel)


def _make_kernel(time: int, heads: int, window: int | None, soft_cap: float | None, interpret: bool):
    """The kernel for the queries of all devices, made of as large blocks as divide a device's part of them."""
    shape, parts = (time, time), parts_of("time")
    if window is None:
        mask = splash_attention_mask.CausalMask(shape, shard_count=parts)
    else:
        mask = splash_attention_mask.LocalMask(shape, (window - 1, 0), offset=0, shard_count=parts)
    rows, columns = gcd(LARGEST_BLOCK, time // parts), gcd(LARGEST_BLOCK, time)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_kv_compute=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_kv_dkv_compute=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        attn_logits_soft_cap=soft_cap,
        head_shards=parts_of("kv_heads"),
        q_seq_shards=parts,
        residual_checkpoint_name=MIXED,
        interpret=interpret,
    )
