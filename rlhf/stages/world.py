"""Writes the embedded world's data sets to disk, where the other stages read them like any other data."""

from dataclasses import dataclass, field
from typing import Any

from rlhf.disk import explaining_full_disk
from rlhf.parallel.processes import is_primary_process
from rlhf.stages.folder import begin_writing, close_folder, open_folder
from rlhf.world.build import WorldConfig, build_world, world_files, write_world


@dataclass(frozen=True)
class Config:
    """Generate the embedded world.

    Attributes:
        output: folder to write.
        world: sizes, shares and noise.
    """

    output: str = "runs/world"
    world: WorldConfig = field(default_factory=WorldConfig)


def run(config: Config) -> dict[str, Any]:
    """Builds the world and writes one JSONL file a data set."""
    folder = open_folder(config)
    world = build_world(config.world)
    begin_writing(folder)
    if is_primary_process():
        with explaining_full_disk(folder.path):
            write_world(world, folder.path)
    return close_folder(folder, {"files": {name: str(path) for name, path in world_files(folder.path).items()}})
