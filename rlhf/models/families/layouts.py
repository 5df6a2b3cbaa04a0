"""How one tensor of a checkpoint holds one or several of our parameters.

Ours are kept with all their axes, inputs before outputs: a query kernel is [width, heads, head_dim]. Checkpoints keep matrices,
mostly [outputs, inputs], and some put query, key and value into one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A matrix of the checkpoint, or (without input axes) a vector.

    Attributes:
        input_axes: number of a parameter's leading axes that are inputs; 0 for a bias, whose axes are all outputs.
        transposed: kept as [outputs, inputs], as torch's Linear does; else as [inputs, outputs].
        grouped: of several parameters, outputs are interleaved by key/value head: the queries that share it, its key, its
            value. Else the parameters follow each other.
    """

    input_axes: int = 0
    transposed: bool = True
    grouped: bool = False

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape in the checkpoint of parameters (of one layer) of our shapes."""
        outputs = sum(prod(shape[self.input_axes :]) for shape in shapes)
        if self.input_axes == 0:
            return (outputs,)
        inputs = prod(shapes[0][: self.input_axes])
        return (outputs, inputs) if self.transposed else (inputs, outputs)

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Ours to the checkpoint's."""
        inputs = prod(values[0].shape[: self.input_axes])
        if self.grouped:
            groups = values[-1].shape[self.input_axes]
            parts = [value.reshape(inputs, groups, -1) for value in values]
        else:
            parts = [value.reshape(inputs, -1) for value in values]
        matrix = (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)).reshape(inputs, -1)
        if self.input_axes == 0:
            return matrix[0]
        return matrix.T if self.transposed else matrix

    def split(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """The checkpoint's to ours; views of it where they can be."""
        inputs = prod(shapes[0][: self.input_axes])
        matrix = tensor.T if self.transposed and self.input_axes else tensor.reshape(inputs, -1)
        groups = shapes[-1][self.input_axes] if self.grouped else 1
        sizes = [prod(shape[self.input_axes :]) // groups for shape in shapes]
        by_group = matrix.reshape(inputs, groups, sum(sizes))
        parts = np.split(by_group, np.cumsum(sizes)[:-1], axis=-1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, or one for each layer.

    Attributes:
        name: name in the checkpoint; with `{layer}` in it, each layer of the stack has a tensor of its own.
        parameters: dotted paths of the parameters that it holds.
        layout: how; None when there is one and it is kept as it is.
    """

    name: str
    parameters: tuple[str, ...]
    layout: Layout | None = None

    @property
    def per_layer(self) -> bool:
        """Whether each layer has its own tensor."""
        return "{layer}" in self.name

    def stored_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Shape in the checkpoint, given the shapes of the parameters (of one layer)."""
        return shapes[0] if self.layout is None else self.layout.stored_shape(shapes)

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of the given parameters (of one layer)."""
        return values[0] if self.layout is None else self.layout.join(values)

    def split(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """The parameters (of one layer) in a tensor."""
        return [tensor] if self.layout is None else self.layout.split(tensor, shapes)


def kept(name: str, parameter: str) -> StoredTensor:
    """A tensor that is kept as it is: an embedding, the scale of a norm."""
    return StoredTensor(name, (parameter,))


def matrix(name: str, parameter: str) -> StoredTensor:
    """The kernel of a torch Linear without bias."""
    return StoredTensor(name, (parameter,), Layout(input_axes=1))


def norm(name: str, module: str) -> list[StoredTensor]:
    """A norm: scale and, where it has one, bias; flat in the checkpoint."""
    return [
        StoredTensor(f"{name}.weight", (f"{module}.scale",), Layout()),
        StoredTensor(f"{name}.bias", (f"{module}.bias",), Layout()),
    ]


def linear(
    name: str, *modules: str, input_axes: int = 1, transposed: bool = True, grouped: bool = False
) -> list[StoredTensor]:
    """A linear map that holds one projection or several: kernel and, where it has one, bias."""
    kernels, biases = (tuple(f"{module}.{part}" for module in modules) for part in ("kernel", "bias"))
    return [
        StoredTensor(f"{name}.weight", kernels, Layout(input_axes, transposed, grouped)),
        StoredTensor(f"{name}.bias", biases, Layout(0, grouped=grouped)),
    ]
