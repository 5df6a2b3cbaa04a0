"""rlhf: aligning language models with human feedback, in JAX and Flax.

The package is imported in floors, the lowest first: `losses` (formulas), `models` (the network), `data`, `world` (the embedded
alignment world), `rewards`, `generation`, `training`, `evaluation`, `report` and `stages` (one file a stage). Importing `rlhf`
itself loads none of them, so that `import rlhf` is quick and starts no device.
"""

__version__ = "0.1.0"
