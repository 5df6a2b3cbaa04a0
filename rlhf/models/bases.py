"""The bases of a job's models, each loaded once, however many adapters stand on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from rlhf.models.config import ComputeConfig
from rlhf.models.quantized import Storage, quantize
from rlhf.models.transformer import Transformer
from rlhf.parallel.rules import shard_state


@dataclass
class Bases:
    """Loads a base when it is first asked for; later models get its arrays, not copies of them.

    Whoever has a model from here may not train the base's own parameters: the arrays are everybody's.

    Attributes:
        compute: dtypes and rematerialisation of all of them.
        storage: how the bases' matrices are stored.
        mesh: where they are laid out; None for the default device.
    """

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    storage: Storage = "full"
    mesh: Mesh | None = None
    _loaded: dict[Path, Transformer] = field(default_factory=dict, repr=False)

    def get(self, folder: Path, load: Callable[[], Transformer]) -> Transformer:
        """The base in a folder.

        Args:
            folder: of the base.
            load: reads it, if nobody has before.

        Returns:
            A module of its own, with the arrays that all models on this base share.
        """
        key = folder.resolve()
        if key not in self._loaded:
            self._loaded[key] = self._placed(quantize(load(), self.storage))
        return nnx.clone(self._loaded[key])

    def _placed(self, model: Transformer) -> Transformer:
        if self.mesh is None:
            return model
        definition, state = nnx.split(model)
        return nnx.merge(definition, shard_state(state, self.mesh))
