"""A model as pytrees for compiled programs: its structure, what is trained, and what is not.

Gradients and optimizer state exist for the trainable part only. Which part a variable belongs to is said by its type:
`nnx.Param` is trained, everything else is frozen.
"""

from flax import nnx


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Takes a model apart into (graphdef, trainable, frozen)."""
    return nnx.split(model, nnx.Param, ...)


def merge_model(graphdef: nnx.GraphDef, *states: nnx.State) -> nnx.Module:
    """Puts a model together again from its structure and the states it was split into."""
    return nnx.merge(graphdef, *states)
