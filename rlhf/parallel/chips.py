"""What TPU chips and GPUs can do at best, as their makers publish it; read in November 2026 in stored copies of the pages named.

TPUs: https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. Bandwidth between chips is published for both directions
together (v5e: 400 GB/s, v5p: 1,200 GB/s, v6e: 800 GB/s; of one in older copies, 1,600, 4,800 and 3,200 Gb/s); here it is bytes that
a chip can send a second, over all of its links. Copies differ in the bandwidth of main memory of v5e, 819 GB/s or 800 GiB/s, and of
v6e, 1,600, 1,638 or 1,640 GB/s. Not confirmed: v4's links, 6 of 50 GB/s. What a program can have of a chip's memory is not what is
published (32, 16, 95 and 32 GB): it is what the compiler of libtpu 0.0.51 names when it refuses a program that is too large
("exceeds available HBM (15.75G)").

GPUs, the SXM modules. Operations are those without sparsity, half of the figure that data sheets print first. NVLink's bandwidth
is published for both directions together. Nodes are those of DGX systems, with a network adapter for each GPU. Memory is counted in
units of 1000, as it is published; what a GPU has beyond that is left to CUDA and NCCL. From NVIDIA's own pages:

- NVLink of A100, 600 GB/s:
  https://devblogs.nvidia.com/introducing-hgx-a100-most-powerful-accelerated-server-platform-for-ai-hpc
- NVLink of Hopper (H100, H200), 900 GB/s: https://www.nvidia.com/en-sg/technologies/hopper-architecture
- DGX H100 and H200, 8 GPUs with 640 and 1,128 GB in all, 8 adapters of 400 Gb/s:
  https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-enterprise-ai/latest/core-components.html

NVIDIA's data sheets themselves could not be read. Operations, and size and bandwidth of memory, are as others quote them:
https://glennklockwood.com/garden/processors/A100 and /h100, of H200 https://github.com/jax-ml/scaling-book (gpus.md). Not
confirmed: the rate of the adapters of DGX A100, 200 Gb/s.
"""

from dataclasses import dataclass

GIBIBYTE = 2**30
GIGABYTE = 1e9


@dataclass(frozen=True)
class Node:
    """What holds several devices, which are slower to reach from outside.

    Attributes:
        devices: how many.
        bandwidth: bytes that each of them can send to other nodes a second.
    """

    devices: int
    bandwidth: float


@dataclass(frozen=True)
class Chip:
    """One chip, or one GPU.

    Attributes:
        flops: bfloat16 operations a second.
        usable_memory: bytes of main memory that a program can have.
        memory_bandwidth: bytes a second.
        network_bandwidth: bytes that it can send to its neighbours a second, over all links.
        node: what its neighbours are in; None where all chips are.
    """

    flops: float
    usable_memory: float
    memory_bandwidth: float
    network_bandwidth: float
    node: Node | None = None


CHIPS = {
    "v4": Chip(275e12, 30.75 * GIBIBYTE, 1200e9, 300e9),
    "v5e": Chip(197e12, 15.75 * GIBIBYTE, 819e9, 200e9),
    "v5p": Chip(459e12, 95.73 * GIBIBYTE, 2765e9, 600e9),
    "v6e": Chip(918e12, 31.24 * GIBIBYTE, 1638e9, 400e9),
}
GPUS = {
    "a100-40gb": Chip(312e12, 40 * GIGABYTE, 1555e9, 300e9, Node(8, 25e9)),
    "a100-80gb": Chip(312e12, 80 * GIGABYTE, 2039e9, 300e9, Node(8, 25e9)),
    "h100": Chip(989e12, 80 * GIGABYTE, 3350e9, 450e9, Node(8, 50e9)),
    "h200": Chip(989e12, 141 * GIGABYTE, 4800e9, 450e9, Node(8, 50e9)),
}
