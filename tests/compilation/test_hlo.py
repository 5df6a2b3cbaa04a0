"""HLO text, hand-made and of programs compiled for this CPU: loops count in full, everything else once."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf.compilation.costs import count_costs
from rlhf.compilation.hlo import parse
from rlhf.parallel.mesh import MeshConfig, make_mesh

LOOP = """
HloModule jit_f, is_scheduled=true

%fused (param_0: f32[8,4,16], param_1: s32[]) -> f32[4,16] {
  %param_0 = f32[8,4,16]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,4,16]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,4,16}
  ROOT %reshape = f32[4,16]{1,0} reshape(%layer)
}

%body (state: (s32[], f32[2,4], f32[8,4,16])) -> (s32[], f32[2,4], f32[8,4,16]) {
  %state = (s32[], f32[2,4]{1,0}, /*index=2*/f32[8,4,16]{2,1,0:T(8,128)}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %x = f32[2,4]{1,0} get-tuple-element(%state), index=1
  %weights = f32[8,4,16]{2,1,0} get-tuple-element(%state), index=2
  %kernel = f32[4,16]{1,0} fusion(%weights, %turn), kind=kLoop, calls=%fused
  %product = f32[2,16]{1,0} dot(%x, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %back = f32[2,4]{1,0} dot(%product, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %sum = f32[2,4]{1,0} all-reduce(%back), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %one = s32[] constant(1)
  %next = s32[] add(%turn, %one)
  ROOT %result = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) tuple(%next, %sum, %weights)
}

%condition (state.1: (s32[], f32[2,4], f32[8,4,16])) -> pred[] {
  %state.1 = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) parameter(0)
  %turn.1 = s32[] get-tuple-element(%state.1), index=0
  %turns = s32[] constant(8)
  ROOT %less = pred[] compare(%turn.1, %turns), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (start: (s32[], f32[2,4], f32[8,4,16])) -> f32[2,4] {
  %start = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) parameter(0)
  %loop = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[2,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_turns():
    program = parse(LOOP)
    assert program.runs() == {"main": 1, "body": 8, "fused": 8}
    costs = count_costs(program)
    assert costs.flops == 8 * 2 * (2 * 16 * 4 * 2)
    (traffic,) = costs.collectives.values()
    assert costs.collectives.keys() == {"all-reduce"} and traffic.count == 8
    assert traffic.bytes == 8 * 2 * (2 * 4 * 4) * 3 / 4


def splash(part: str, blocks: str, queries: str = "2,4,1024,128") -> str:
    """A program of one call of the kernel, as the TPU's compiler writes it."""
    return f"""
HloModule jit_f, is_scheduled=true

ENTRY %main (q: bf16[{queries}], k: bf16[2,4,1024,128]) -> bf16[{queries}] {{
  %q = bf16[{queries}]{{3,2,1,0}} parameter(0)
  %k = bf16[2,4,1024,128]{{3,2,1,0}} parameter(1)
  %next = s8[{blocks}]{{2,1,0}} constant({{...}})
  %mask = s8[{blocks}]{{2,1,0}} constant({{...}})
  ROOT %splash_mha_{part}_segmented_no_residuals.1 = bf16[{queries}]{{3,2,1,0}} custom-call(%next, %mask, %q, %k, %k)
}}
"""


@pytest.mark.parametrize(
    ("part", "blocks", "queries", "expected"),
    [
        ("fwd", "1,2,2", "2,4,1024,128", 2 * 3 / 4),  # products, and the share of the blocks that are computed
        ("dq", "1,2,2", "2,4,1024,128", 3 * 3 / 4),
        ("dkv", "1,8,8", "2,4,1024,128", 4 * 9 / 16),
        ("fwd", "1,8,2", "2,4,1024,128", 2 * 1 / 4),  # a window
        ("fwd", "1,2,4", "2,4,512,128", 2 * 5 / 8),  # half of the queries, all keys
    ],
)
def test_products_inside_the_attention_kernel_count(part, blocks, queries, expected):
    time = int(queries.split(",")[2])
    assert count_costs(parse(splash(part, blocks, queries))).flops == expected * 2 * (2 * 4 * time * 1024 * 128)


def test_of_stacked_layers_a_turn_reads_one():
    layer, x, product = 4 * 16 * 4, 2 * 4 * 4, 2 * 16 * 4
    number = 4
    a_turn = (
        (2 * layer + number)  # slice it out, by its number
        + (x + layer + product)
        + (product + layer + x)
        + 2 * x  # all-reduce
        + 3 * number  # count
    )
    assert count_costs(parse(LOOP)).memory_bytes == 8 * a_turn


def test_what_the_compiler_knows_of_a_loop_comes_first():
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert count_costs(parse(known)).flops == 5 / 8 * count_costs(parse(LOOP)).flops


def test_turns_that_the_compiler_has_put_together_count_once():
    in_pairs = LOOP.replace(
        "%next = s32[] add(%turn, %one)", "%half = s32[] add(%turn, %one)\n  %next = s32[] add(%half, %one)"
    )
    assert parse(in_pairs).runs()["body"] == 4
    in_threes = LOOP.replace("%one = s32[] constant(1)", "%one = s32[] constant(3)")
    assert parse(in_threes).runs()["body"] == 3  # the last one is not full, and counts as if it were


def test_a_loop_counts_from_where_the_one_before_has_come_to():
    """So a long response is sampled: in several loops, between which the cache grows."""
    second = (
        LOOP[LOOP.index("%condition") : LOOP.index("%add (")].replace("%condition", "%further").replace("(8)", "(20)")
    )
    loops = """  %zero = s32[] constant(3)
  %from = s32[] copy(%zero)
  %x = f32[2,4]{1,0} get-tuple-element(%start), index=1
  %weights = f32[8,4,16]{2,1,0} get-tuple-element(%start), index=2
  %first = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) tuple(%from, %x, %weights)
  %loop.1 = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) while(%first), condition=%condition, body=%body
  %to = s32[] get-tuple-element(%loop.1), index=0
  %again = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) tuple(%to, %x, %weights)
  %loop = (s32[], f32[2,4]{1,0}, f32[8,4,16]{2,1,0}) while(%again), condition=%further, body=%body
"""
    entry = LOOP.index("ENTRY")
    lines = LOOP[entry:].splitlines(keepends=True)
    chained = LOOP[:entry] + second + "".join([*lines[:2], loops, *lines[3:]])
    assert parse(chained).runs()["body"] == (8 - 3) + (20 - 8)


def test_permutes_of_one_channel_count_each():
    line = "  %sum = f32[2,4]{1,0} all-reduce(%back), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add"
    ring = LOOP.replace(
        line,
        "  %forward = f32[2,4]{1,0} collective-permute(%back), channel_id=3, source_target_pairs={{0,1},{1,0}}\n"
        "  %sum = f32[2,4]{1,0} collective-permute(%back), channel_id=3, source_target_pairs={{1,0},{0,1}}",
    )
    (traffic,) = count_costs(parse(ring)).collectives.values()
    assert (traffic.count, traffic.bytes) == (8 * 2, 8 * 2 * (2 * 4 * 4))


def test_parts_of_one_collective_count_once():
    line = "  %sum = f32[2,4]{1,0} all-reduce(%back)"
    twice = LOOP.replace(
        line, line.replace("%sum", "%start_of_sum") + ", channel_id=3, replica_groups={{0,1,2,3}}\n" + line
    )
    assert count_costs(parse(twice)).collectives == count_costs(parse(LOOP)).collectives


def test_a_program_on_two_nodes():
    (traffic,) = count_costs(parse(LOOP), 2).collectives.values()  # groups of 4 on nodes of 2
    assert traffic.bytes_between_nodes == traffic.bytes / 2
    (within,) = count_costs(parse(LOOP), 4).collectives.values()
    assert within.bytes_between_nodes == 0


@pytest.mark.parametrize(
    ("target", "source", "moved"), [("S(1)", "", 4096), ("", "S(1)", 4096), ("", "", 8192), ("S(1)", "S(1)", 0)]
)
def test_a_copy_that_goes_on_meanwhile_moves_what_lies_in_main_memory(target, source, moved):
    """Weights are brought into the chip's own memory while it computes; that they are read there moves nothing."""
    array = "f32[1024]{{0:T(1024){}}}".format
    program = f"""HloModule copies
ENTRY %main (weights: f32[1024]) -> f32[1024] {{
  %weights = {array(source)} parameter(0)
  %begun = ({array(target)}, {array(source)}, u32[]{{:S(2)}}) copy-start(%weights)
  ROOT %done = {array(target)} copy-done(%begun)
}}
"""
    assert count_costs(parse(program)).memory_bytes == pytest.approx(moved, abs=4)


def test_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("hello")


# A product of matrices as the TPU compiler writes it: the batch of 4 as a window that meets one place each.
CONVOLUTION = """
ENTRY %main (a: bf16[4,128,32], b: bf16[4,32,64]) -> bf16[4,128,64] {
  %a = bf16[4,128,32]{2,1,0} parameter(0)
  %b = bf16[4,32,64]{2,1,0} parameter(1)
  ROOT %c = bf16[4,128,64]{2,1,0} convolution(%a, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""


def test_a_product_written_as_a_convolution_counts_as_the_product():
    assert count_costs(parse(CONVOLUTION)).flops == 2 * 4 * 128 * 32 * 64


def test_a_convolution_counts_only_what_meets_the_input():
    text = """
ENTRY %main (a: f32[1,5,3], b: f32[3,3,2]) -> f32[1,5,2] {
  %a = f32[1,5,3]{2,1,0} parameter(0)
  %b = f32[3,3,2]{2,1,0} parameter(1)
  ROOT %c = f32[1,5,2]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""
    assert count_costs(parse(text)).flops == 2 * 13 * 3 * 2


@pytest.fixture(scope="module")
def layers_on_eight_devices():
    """Eight layers under a scan, parameters spread over all devices and gathered where they are used; as compiled here."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    def f(x, kernels):
        def layer(x, kernel):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(kernel, whole)), None

        return jax.lax.scan(layer, x, kernels)[0]

    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=rows)
    kernels = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=parts)
    return jax.jit(f, out_shardings=rows).lower(x, kernels).compile()


def test_a_program_compiled_here(layers_on_eight_devices):
    costs = count_costs(parse(layers_on_eight_devices.as_text()))
    assert costs.flops == 6 * 2 * (16 / 8) * 32 * 32
    assert costs.collectives["all-gather"].count in (1, 6)  # inside the loop, or once before it
    assert costs.network_bytes == pytest.approx(6 * 32 * 32 * 4 * 7 / 8)


def test_a_sum_of_which_each_device_takes_its_part_can_count_as_scattered():
    """A gradient, summed over all devices, of which each keeps the part that it updates."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    rows, parts = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), (None, "fsdp")))
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=rows)
    gradient = jax.jit(lambda x: (x.T @ jnp.tanh(x)) * 2, out_shardings=parts).lower(x).compile()
    program, size = parse(gradient.as_text()), 32 * 32 * 4
    assert count_costs(program).collectives["all-reduce"].bytes == 2 * size * 7 / 8
    scattered = count_costs(program, scatters_sums=True).collectives
    assert scattered.keys() == {"reduce-scatter"} and scattered["reduce-scatter"].bytes == size * 7 / 8
    whole = jax.jit(lambda x: (x.T @ jnp.tanh(x)) * 2, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(x)
    kept = count_costs(parse(whole.compile().as_text()), scatters_sums=True).collectives
    assert kept["all-reduce"].bytes == 2 * size * 7 / 8


def test_a_slice_of_a_padded_array_reads_the_slice():
    """So the TPU's compiler writes that a product takes its part of an operand."""
    program = """HloModule slices
%fused (whole: f32[1024,16], at: s32[]) -> f32[4,16] {
  %whole = f32[1024,16]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %padded = f32[1024,17]{1,0} pad(%whole, %zero), padding=0_0x1_0
  ROOT %part = f32[4,16]{1,0} dynamic-slice(%padded, %at, %zero), dynamic_slice_sizes={4,16}
}
ENTRY %main (whole: f32[1024,16], at: s32[]) -> f32[4,16] {
  %whole = f32[1024,16]{1,0} parameter(0)
  %at = s32[] parameter(1)
  ROOT %part = f32[4,16]{1,0} fusion(%whole, %at), kind=kLoop, calls=%fused
}
"""
    read_and_written = 2 * (4 * 16 * 4)
    assert count_costs(parse(program)).memory_bytes == pytest.approx(read_and_written, abs=4)


def test_weights_that_a_fusion_within_a_fusion_turns_over_are_read():
    """So the TPU's compiler writes the products of decoding: what only looks at a matrix otherwise is a fusion of its own."""
    program = """HloModule product
%turned (weights: f32[8,16]) -> f32[16,8] {
  %weights = f32[8,16]{0,1} parameter(0)
  ROOT %bitcast = f32[16,8]{1,0} bitcast(%weights)
}
%fused (rows: f32[2,16], weights: f32[8,16]) -> f32[2,8] {
  %rows = f32[2,16]{1,0} parameter(0)
  %weights = f32[8,16]{0,1} parameter(1)
  %matrix = f32[16,8]{1,0} fusion(%weights), kind=kLoop, calls=%turned
  ROOT %product = f32[2,8]{1,0} convolution(%rows, %matrix), dim_labels=bf_io->bf
}
ENTRY %main (rows: f32[2,16], weights: f32[8,16]) -> f32[2,8] {
  %rows = f32[2,16]{1,0} parameter(0)
  %weights = f32[8,16]{0,1} parameter(1)
  ROOT %product = f32[2,8]{1,0} fusion(%rows, %weights), kind=kOutput, calls=%fused
}
"""
    assert count_costs(parse(program)).memory_bytes == 4 * (2 * 16 + 16 * 8 + 2 * 8)


@pytest.mark.parametrize(("target", "moved"), [("S(1)", 1024), ("", 2048)])
def test_a_part_that_is_copied_meanwhile_is_all_that_is_read(target, moved):
    """Chips with little memory of their own are brought a matrix in parts: of 4,096 bytes these are 1,024."""
    program = f"""HloModule parts
ENTRY %main (weights: f32[1024]) -> f32[256] {{
  %weights = f32[1024]{{0:T(1024)}} parameter(0)
  %begun = ((f32[1024]{{0:T(1024)}}), f32[256]{{0:T(1024){target}}}, s32[]{{:S(2)}}) slice-start(%weights), slice={{[256:512]}}
  ROOT %done = f32[256]{{0:T(1024){target}}} slice-done(%begun)
}}
"""
    assert count_costs(parse(program)).memory_bytes == moved
