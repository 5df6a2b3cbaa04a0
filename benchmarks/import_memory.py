"""Host memory of reading a checkpoint: model + 2 × its largest tensor is the promise.

Writes a random LLaMA checkpoint of about 400 MB in shards, reads it in a fresh process, and prints one JSON line: the process's
peak beyond what it held before reading, beside the sizes of the model and of its largest tensor. On a CPU the model itself lies in
host memory; on an accelerator it does not, and the peak is what is left.

Measured on a CPU, in MB, for 409 MB of parameters in float32 whose largest tensor has 50 MB: stored as float32 the peak is 483, as
bfloat16 492, as float16 506; promised are 510.

    python benchmarks/import_memory.py [--stored=bfloat16]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

WIDTH, LAYERS, MLP_WIDTH, VOCABULARY, SHARDS = 1024, 6, 2816, 12288, 4
OPTIONS = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS, "num_attention_heads": 16, "intermediate_size": MLP_WIDTH,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint."""
    outer = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "lm_head.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    matrices = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"} | {
        "mlp.gate_proj": (MLP_WIDTH, WIDTH),
        "mlp.up_proj": (MLP_WIDTH, WIDTH),
        "mlp.down_proj": (WIDTH, MLP_WIDTH),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    return outer | {
        f"model.layers.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in matrices.items()
    }


def write_checkpoint(folder: Path, dtype: np.dtype) -> None:
    """Random weights, in shards."""
    names, index = list(shapes()), {}
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        tensors = {
            name: random.standard_normal(shapes()[name], np.float32).astype(dtype) for name in names[shard::SHARDS]
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(OPTIONS))


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(folder: Path) -> None:
    """Reads the checkpoint and prints what that took; runs in a process of its own."""
    import jax
    from flax import nnx

    from rlhf.models.hub import load_transformer, read_model_config

    read_model_config(folder)  # imports what reading needs
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros(1)))
    before = peak_bytes()
    model = load_transformer(folder)
    jax.block_until_ready(nnx.state(model))
    size = sum(array.nbytes for array in jax.tree.leaves(nnx.state(model)))
    largest = max(4 * int(np.prod(shape)) for shape in shapes().values())
    peak = peak_bytes() - before
    megabytes = {"model": size, "largest_tensor": largest, "peak": peak, "promised": size + 2 * largest}
    print(
        json.dumps(
            {name: round(value / 1e6, 1) for name, value in megabytes.items()} | {"kept": peak <= size + 2 * largest}
        )
    )


def main() -> None:
    """Writes the checkpoint and reads it in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stored", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None:
        read(arguments.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        dtype = ml_dtypes.bfloat16 if arguments.stored == "bfloat16" else np.dtype(arguments.stored)
        write_checkpoint(Path(folder), dtype)
        subprocess.run([sys.executable, __file__, f"--read={folder}"], check=True)


if __name__ == "__main__":
    main()
