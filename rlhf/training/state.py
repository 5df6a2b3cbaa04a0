"""What a training run carries from step to step, as one pytree."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import register_dataclass
from jaxtyping import Array, Int

from rlhf.parallel.host_arrays import put
from rlhf.parallel.rules import laid_out


@register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A training run between two steps.

    Attributes:
        step: batches consumed, those of skipped updates included.
        trainable: the parameters that are trained.
        frozen: everything else of the model; training never changes it, and checkpoints leave it out.
        optimizer_state: moments in float32, number of updates.
        skipped: updates skipped in a row up to now, because the loss or the gradient was not finite.
    """

    step: Int[Array, ""]
    trainable: Any
    frozen: Any
    optimizer_state: Any
    skipped: Int[Array, ""]


def replicate_scalars(tree: Any, like: Any) -> Any:
    """Put arrays that live on one device onto all devices of the mesh on which `like` lives, if it lives on a mesh."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(like) if isinstance(leaf.sharding, NamedSharding)]
    if not shardings:
        return tree
    replicated = NamedSharding(shardings[0].mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf.sharding, NamedSharding) else put(leaf, replicated), tree)


def abstract_like(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, without their values."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def create_train_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, trainable: Any = nnx.Param
) -> tuple[nnx.GraphDef, TrainState]:
    """Split a model and begin its optimizer state; moments are sharded as their parameters are.

    The arrays are shared with `model`. A train step donates the trainable ones, after which `model` cannot be used until
    the trained ones are put back with `nnx.update`.

    Args:
        model: parameters already where they belong (on one device, or sharded over a mesh).
        optimizer: makes and updates the optimizer state.
        trainable: nnx filter of what is trained.

    Returns:
        The graph definition, with which `nnx.merge(graphdef, state.trainable, state.frozen)` gives a model, and the state.
    """
    graphdef, parameters, frozen = nnx.split(model, trainable, ...)
    return graphdef, replicate_scalars(_before_training(parameters, frozen, optimizer), parameters)


def outline_train_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, trainable: Any, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
    """What `create_train_state` gives, as shapes laid out over a mesh, without any values.

    Args:
        model: of shapes with their shardings in the place of arrays.
        optimizer: makes the optimizer state.
        trainable: nnx filter of what is trained.
        mesh: that the model is laid out over.
    """
    graphdef, parameters, frozen = nnx.split(model, trainable, ...)
    shapes = jax.eval_shape(lambda parameters: _before_training(parameters, None, optimizer), parameters)
    return graphdef, replace(laid_out(shapes, mesh), trainable=parameters, frozen=frozen)


def _before_training(parameters: Any, frozen: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=parameters,
        frozen=frozen,
        optimizer_state=optimizer.init(parameters),
        skipped=jnp.zeros((), jnp.int32),
    )
