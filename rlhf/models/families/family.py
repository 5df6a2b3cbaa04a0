"""What one checkpoint family is: how its config.json reads, and what it calls each parameter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rlhf.models.config import ModelConfig


@dataclass(frozen=True)
class TensorName:
    """Name and layout of one parameter in a checkpoint.

    Attributes:
        name: name in the checkpoint; with `{layer}` in it, each layer of the stack has a tensor of its own.
        input_axes: number of our leading axes that are inputs, for a matrix kept there as [outputs, inputs]; 0 for a
            vector (a bias), kept flat; None when the shape is kept as it is.
    """

    name: str
    input_axes: int | None = None

    @property
    def per_layer(self) -> bool:
        """Whether each layer has its own tensor."""
        return "{layer}" in self.name

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the checkpoint of a parameter (of one layer) of our shape."""
        if self.input_axes is None:
            return shape
        if self.input_axes == 0:
            return (prod(shape),)
        return prod(shape[self.input_axes :]), prod(shape[: self.input_axes])

    def to_stored(self, value: np.ndarray) -> np.ndarray:
        """Our layout to the checkpoint's."""
        return value if self.input_axes is None else value.reshape(self.stored_shape(value.shape)[::-1]).T

    def from_stored(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The checkpoint's layout to ours."""
        return (tensor if self.input_axes is None else tensor.T).reshape(shape)


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint folder.

    Attributes:
        model_type: value of that key in config.json.
        causal_architecture: class name written for a language model.
        scorer_architecture: class name written for a scorer.
        config_from_hf: reads the description; raises `UserError` for what the network cannot compute.
        config_to_hf: writes it.
        cannot_express: why a description does not fit this family; None when it does.
        names: checkpoint name of every parameter, by its dotted path in `Transformer`.
        head: checkpoint name of a scorer's kernel.
        ignored: ends of names of tensors that are there but carry nothing.
    """

    model_type: str
    causal_architecture: str
    scorer_architecture: str
    config_from_hf: Callable[[Mapping[str, Any], str], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    cannot_express: Callable[[ModelConfig], str | None]
    names: Mapping[str, TensorName]
    head: TensorName
    ignored: tuple[str, ...] = ()
