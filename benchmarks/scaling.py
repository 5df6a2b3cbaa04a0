"""Step time, memory, traffic and compile time of each mesh, on virtual devices of this machine's CPU.

    python benchmarks/scaling.py [--shape small] [--devices 8] [--json scaling.json]

Virtual devices share the cores, so a perfect mesh takes as long as one device with the same work: `time` is the overhead of
dividing and nothing else. What scales is what a device holds and computes: memory and FLOPs are counted of the program of one
device, as compiled, and so is what it sends to others. A train step of packed rows is measured on every mesh, and a rollout where
`fsdp` divides the weights, with weights gathered where they are used and once.
"""

import argparse
import json
import os
import statistics
import time
from functools import partial
from typing import Any

MESHES = ("data", "fsdp", "tensor", "sequence", "fsdp·tensor", "fsdp·sequence", "fsdp·tensor·sequence")
COLUMNS = {
    "work": "work",
    "mesh": "mesh",
    "step_ratio": "time",
    "argument_ratio": "arrays",
    "temporary_ratio": "temporaries",
    "flops_ratio": "FLOPs",
    "network_megabytes": "sent, MB",
    "compile_seconds": "compile, s",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", help="a model of shapes.py")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices, a power of 2")
    parser.add_argument("--meshes", nargs="+", choices=MESHES, default=MESHES, help="besides one device")
    parser.add_argument("--rows", type=int, default=8, help="of a batch, and prompts of a rollout")
    parser.add_argument(
        "--length", type=int, default=128, help="tokens of a row; of a rollout, half of them are sampled"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed steps after the first")
    parser.add_argument("--json", help="file to write the figures to")
    return parser.parse_args()


def sizes_of(name: str, devices: int) -> dict[str, int]:
    """Sizes of a mesh's axes: 2 on each named one but the first, which gets the rest of the devices."""
    first, *others = name.split("·")
    return {"data": 1} | dict.fromkeys(others, 2) | {first: devices // 2 ** len(others)}


def measure(name: str, program: Any, arguments: tuple, repeats: int) -> dict[str, float]:
    """Compiles a program, runs it, and reads what one device holds, computes and sends.

    Args:
        name: of the work.
        program: jitted.
        arguments: laid out over the mesh that is set; none of them is given away.
        repeats: timed runs.
    """
    import jax
    from machine import seconds_of

    from rlhf.compilation.costs import count_costs
    from rlhf.compilation.hlo import parse as parse_program

    start = time.perf_counter()
    compiled = program.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    memory, costs = compiled.memory_analysis(), count_costs(parse_program(compiled.as_text()))
    jax.block_until_ready(compiled(*arguments))
    return {
        "work": name,
        "compile_seconds": compile_seconds,
        "step_seconds": statistics.median(seconds_of(partial(compiled, *arguments), repeats)),
        "argument_megabytes": memory.argument_size_in_bytes / 1e6,
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
        "gigaflops": costs.flops / 1e9,
        "network_megabytes": costs.network_bytes / 1e6,
    }


def train_step(config: Any, mesh: Any, options: argparse.Namespace) -> dict[str, float]:
    """A step of full fine-tuning on rows of two sequences each."""
    import jax
    import numpy as np
    from flax import nnx

    from rlhf.data.batches import SequenceBatch
    from rlhf.models.transformer import Transformer
    from rlhf.parallel.rules import batch_sharding, shard_state
    from rlhf.training.next_token import next_token_loss
    from rlhf.training.optimizer import OptimizerConfig, make_optimizer
    from rlhf.training.state import create_train_state
    from rlhf.training.step import gradient_step

    shape = (options.rows, options.length)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
    segments = np.broadcast_to(1 + np.arange(options.length) // (options.length // 2), shape).astype(np.int32)
    batch = jax.device_put(SequenceBatch(tokens, segments, np.ones(shape, bool)), batch_sharding(mesh))
    definition, state = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    graphdef, state = create_train_state(nnx.merge(definition, shard_state(state, mesh)), optimizer)
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(partial(gradient_step, graphdef, next_token_loss(None), optimizer), out_shardings=(layout, None))
    return measure("train step", step, (state, batch), options.repeats)


def rollout(config: Any, mesh: Any, options: argparse.Namespace, *, gathered: bool) -> dict[str, float]:
    """Sampling half a row after a prompt of the other half."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from rlhf.generation.generator import generate
    from rlhf.generation.sampling import SamplingConfig
    from rlhf.models.transformer import Transformer
    from rlhf.parallel.rules import batch_sharding, gather_over, shard_state

    definition, state = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
    settings = {"max_new_tokens": options.length // 2, "end_token": -1, "pad_token": 0, "sampling": SamplingConfig()}
    tokens = jax.device_put(jnp.ones((options.rows, options.length // 2), jnp.int32), batch_sharding(mesh))

    @jax.jit
    def sample(state, tokens, key):
        weights = gather_over("fsdp", state) if gathered else state
        return generate(nnx.merge(definition, weights), tokens, tokens > 0, key, **settings)

    name = f"rollout, weights {'gathered' if gathered else 'sharded'}"
    return measure(name, sample, (shard_state(state, mesh), tokens, jax.random.key(0)), options.repeats)


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of every work on every mesh, and their ratios to those of one device."""
    import jax
    from shapes import SHAPES

    from rlhf.parallel.mesh import MeshConfig, make_mesh

    config, found = SHAPES[options.shape], []
    for name in ("one device", *options.meshes):
        mesh = make_mesh(MeshConfig(**({"data": 1} if name == "one device" else sizes_of(name, options.devices))))
        works = [train_step]
        if name == "one device":
            works.append(partial(rollout, gathered=False))
        elif mesh.shape["fsdp"] > 1:
            works += [partial(rollout, gathered=False), partial(rollout, gathered=True)]
        described = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or name
        with jax.set_mesh(mesh):
            found += [work(config, mesh, options) | {"mesh": described} for work in works]
    alone = {row["work"].partition(",")[0]: row for row in found if row["mesh"] == "one device"}
    of_one_device = {
        "step_ratio": "step_seconds",
        "argument_ratio": "argument_megabytes",
        "temporary_ratio": "temporary_megabytes",
        "flops_ratio": "gigaflops",
    }
    for row in found:
        one = alone[row["work"].partition(",")[0]]
        row |= {ratio: row[figure] / one[figure] for ratio, figure in of_one_device.items()}
    return found


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; times, arrays, temporaries and FLOPs as parts of those of one device."""

    def cells(row):
        return [f"{row[key]:.3g}" if isinstance(row[key], float) else row[key] for key in COLUMNS]

    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measures, prints the table and writes the figures."""
    options = parse()
    flags = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    rows = measure_all(options)
    print(as_table(rows))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
