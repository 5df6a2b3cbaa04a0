"""The models of a PPO run by role, with every array that no update changes held once, however many roles have it.

With adapters, policy, reference, value model and reward models stand on one base: each role is an adapter and perhaps a head, and
what they have in common is passed to the compiled programs once. Without, the roles have no array in common, and the same code
passes five models.
"""

from collections import Counter
from collections.abc import Collection, Mapping

import jax
from flax import nnx
from jaxtyping import Array

from rlhf.models.partition import split_model


class Roles:
    """Takes models apart into what is trained, which lives elsewhere, and what is frozen, which is kept here.

    Args:
        models: role to model.
        learning: the roles that are trained.

    Attributes:
        arrays: the frozen arrays of all roles, each once. Compiled programs take them as an argument and give them to `model`.
    """

    def __init__(self, models: Mapping[str, nnx.Module], learning: Collection[str]):
        self.arrays: list[Array] = []
        self._definitions, self._structures, self._places = {}, {}, {}
        place_of: dict[int, int] = {}
        for role, model in models.items():
            if role in learning:
                self._definitions[role], _, frozen = split_model(model)
            else:
                self._definitions[role], frozen = nnx.split(model)
            leaves, self._structures[role] = jax.tree.flatten(frozen)
            for leaf in leaves:
                if id(leaf) not in place_of:
                    place_of[id(leaf)] = len(self.arrays)
                    self.arrays.append(leaf)
            self._places[role] = [place_of[id(leaf)] for leaf in leaves]

    def __contains__(self, role: str) -> bool:
        return role in self._definitions

    def definition(self, role: str) -> nnx.GraphDef:
        """The structure of a role's model."""
        return self._definitions[role]

    def frozen(self, role: str, arrays: list[Array] | None = None) -> nnx.State:
        """What of a role's model is not trained.

        Args:
            role: which.
            arrays: those of `self.arrays`, inside a compiled program as they came in; None for the real ones.
        """
        arrays = self.arrays if arrays is None else arrays
        return self._structures[role].unflatten([arrays[place] for place in self._places[role]])

    def model(self, role: str, arrays: list[Array], trained: nnx.State | None = None) -> nnx.Module:
        """A role's model.

        Args:
            role: which.
            arrays: as for `frozen`.
            trained: its trained parameters, if it learns.
        """
        states = [] if trained is None else [trained]
        return nnx.merge(self._definitions[role], *states, self.frozen(role, arrays))

    def describe(self) -> str:
        """Which roles share how much, in a line."""
        users = Counter(place for places in self._places.values() for place in set(places))
        common = {place for place, count in users.items() if count > 1 and self.arrays[place].size > 1}
        if not common:
            return "No two models share a base"
        sharing = [role for role, places in self._places.items() if common & set(places)]
        held = sum(array.nbytes for array in self.arrays)
        apart = sum(self.arrays[place].nbytes * count for place, count in users.items())
        shared = sum(self.arrays[place].size for place in common)
        return (
            f"{', '.join(sharing)} share {shared:,} parameters: what is frozen takes {held / 1e6:,.1f} MB"
            f" in the place of {apart / 1e6:,.1f} MB"
        )
