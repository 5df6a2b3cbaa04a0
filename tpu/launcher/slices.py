"""TPU slices by name: `v5e-16` → what Cloud TPU and Kubernetes call it, how many chips and hosts it has.

The number in a name counts chips for v5e and v6e, and TensorCores, two a chip, for v4 and v5p, as Google's names do.
Source: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (sections "Configurations") and /tpu/docs/runtimes.
"""

from dataclasses import dataclass

from launcher.problems import LaunchError


@dataclass(frozen=True)
class Generation:
    """A generation of chips.

    Attributes:
        cloud_name: its prefix in Cloud TPU accelerator types.
        cores_per_chip: what a name's number is divided by to have chips.
        runtime: software image of its TPU VMs.
        kubernetes_name: value of GKE's accelerator label.
        dimensions: of its network: 2 (v5e, v6e) or 3.
        largest_host: chips of the largest single-host slice.
    """

    cloud_name: str
    cores_per_chip: int
    runtime: str
    kubernetes_name: str
    dimensions: int
    largest_host: int


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3, 4),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2, 8),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 3, 4),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2, 8),
}
CHIPS_PER_HOST = 4  # of a slice with several hosts
TOPOLOGIES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
        512: "8x8x8",
        1024: "8x8x16",
        2048: "8x16x16",
    },
}


@dataclass(frozen=True)
class Slice:
    """Chips joined by their own network.

    Attributes:
        name: as the user wrote it.
        accelerator_type: of Cloud TPU.
        runtime: software image of its TPU VMs.
        kubernetes_name: value of GKE's accelerator label.
        topology: the grid of chips, as "4x4".
        chips: in all.
        hosts: virtual machines.
    """

    name: str
    accelerator_type: str
    runtime: str
    kubernetes_name: str
    topology: str
    chips: int
    hosts: int


def parse_slice(name: str) -> Slice:
    """The slice of a name such as v5e-16 or v5litepod-16.

    Raises:
        LaunchError: there is no such slice.
    """
    prefix, _, number = name.partition("-")
    generation = next((key for key, value in GENERATIONS.items() if prefix in (key, value.cloud_name)), None)
    if generation is None or not number.isdigit():
        raise LaunchError(
            f"--type {name}: expected a generation and a size, as v5e-16", fix=f"generations: {', '.join(GENERATIONS)}."
        )
    kind = GENERATIONS[generation]
    topologies = TOPOLOGIES[kind.dimensions]
    chips, rest = divmod(int(number), kind.cores_per_chip)
    if rest or chips not in topologies:
        sizes = ", ".join(f"{generation}-{size * kind.cores_per_chip}" for size in topologies)
        raise LaunchError(f"--type {name}: there is no such size", fix=f"choose one of {sizes}.")
    return Slice(
        name=f"{generation}-{number}",
        accelerator_type=f"{kind.cloud_name}-{number}",
        runtime=kind.runtime,
        kubernetes_name=kind.kubernetes_name,
        topology=topologies[chips],
        chips=chips,
        hosts=1 if chips <= kind.largest_host else chips // CHIPS_PER_HOST,
    )
