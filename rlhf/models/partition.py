"""A model as pytrees for compiled programs: its structure, what is trained, and what is not.

Gradients and optimizer state exist for the trainable part only. Which part a variable belongs to is said by its type: without
an adapter every `nnx.Param` is trained; with one, the adapter and the scalar head are, and the base stays as it is.
"""

from typing import Any

import jax
from flax import nnx

from rlhf.errors import UserError


class AdapterParam(nnx.Param):
    """A parameter that an adapter brought, or took over from the base to train it."""


class AdapterConstant(nnx.Variable):
    """A number that belongs to an adapter and is not trained."""


class QuantizedParam(nnx.Variable):
    """Codes or scales of a matrix of a frozen base that is stored in few bits."""


class HeadParam(nnx.Param):
    """A parameter of the scalar head of a scorer; the head is trained whether or not there is an adapter."""


def has_adapter(model: nnx.Module) -> bool:
    """Whether an adapter has been inserted into a model."""
    return any(isinstance(variable, AdapterParam) for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def trained(model: nnx.Module) -> Any:
    """The nnx filter of what is trained of a model.

    Raises:
        UserError: the whole model would be, but is stored in few bits.
    """
    if has_adapter(model):
        return nnx.Any(AdapterParam, HeadParam)
    if jax.tree.leaves(nnx.state(model, QuantizedParam)):
        raise UserError(
            "a model whose matrices are stored in few bits cannot be trained itself",
            fix="set model.adapter, or model.base_storage to full.",
        )
    return nnx.Param


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Takes a model apart into (graphdef, trainable, frozen)."""
    return nnx.split(model, trained(model), ...)
