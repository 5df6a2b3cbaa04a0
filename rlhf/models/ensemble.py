"""Several reward models as one (2310.02743, Coste et al.): what they doubt together is harder to exploit than what one believes.

An ensemble's folder holds config.json, whose key `rlhf_ensemble` names the members, and their tokenizer. So it can stand wherever a
reward model's folder is named; the members stay where they are. Where a config key names a reward model, it may also name the
members themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from rlhf.errors import UserError
from rlhf.models.folders import replaced_folder
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import read_config, resolve_model_folder
from rlhf.models.hub_download import is_hub_name
from rlhf.models.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENSEMBLE_KEY = "rlhf_ensemble"
Combination = Literal["mean", "minimum", "uncertainty"]


@dataclass(frozen=True)
class EnsembleConfig:
    """How reward models that one key names become one score (2310.02743).

    Attributes:
        combination: "mean"; "minimum", the least of the scores; or "uncertainty", the mean minus `uncertainty_weight` times the
            variance among the members.
        uncertainty_weight: of "uncertainty".
    """

    combination: Combination = "mean"
    uncertainty_weight: float = 0.5

    def __post_init__(self):
        if self.uncertainty_weight < 0:
            raise UserError(f"ensemble.uncertainty_weight is {self.uncertainty_weight}", fix="set it to 0 or more.")


MEAN = EnsembleConfig()


def member_folders(named: str | Path | Sequence[str]) -> list[str]:
    """What a config key names as a reward model: one folder, or several as a list or with commas between them.

    A folder whose own name has a comma is one folder.

    Raises:
        UserError: nothing stands before, after or between the commas.
    """
    if not isinstance(named, str | Path):
        folders = [str(folder) for folder in named]
    elif Path(named).expanduser().exists():
        folders = [str(named)]
    else:
        folders = [folder.strip() for folder in str(named).split(",")]
    if not folders or not all(folders):
        raise UserError(f"{named!r} names no reward model", fix="name one folder, or several: a,b,c.")
    return folders


@dataclass(frozen=True)
class EnsembleDescription:
    """What an ensemble is made of.

    Attributes:
        members: folders of reward models, or their names on the hub.
        combination: see `combine_members`.
        uncertainty_weight: of "uncertainty".
    """

    members: list[str]
    combination: Combination
    uncertainty_weight: float


def combine_members(
    scores: Float[Array, "members *batch"], combination: Combination, uncertainty_weight: float
) -> Float32[Array, "*batch"]:
    """One score of several (2310.02743, section 3): their mean, the least ("minimum"), or mean − λ · variance ("uncertainty").

    The variance is that of the members themselves, divided by their number. Members must score in the same unit and count from
    the same zero, as those do that were normalised alike.

    Args:
        scores: of each member.
        combination: how.
        uncertainty_weight: λ.
    """
    scores = scores.astype(jnp.float32)
    if combination == "minimum":
        return scores.min(axis=0)
    mean = scores.mean(axis=0)
    return mean if combination == "mean" else mean - uncertainty_weight * scores.var(axis=0)


class EnsembleScorer(nnx.Module):
    """Reward models that score as one; takes the place of a `SequenceScorer` wherever one is only read.

    Args:
        members: the reward models.
        combination: see `combine_members`.
        uncertainty_weight: of "uncertainty".
    """

    def __init__(self, members: Sequence[SequenceScorer], combination: Combination, uncertainty_weight: float):
        self.members = nnx.List(members)
        self.combination = combination
        self.uncertainty_weight = uncertainty_weight

    @property
    def transformer(self) -> Transformer:
        """The network of the member with the shortest context, which is that of the ensemble."""
        return min((member.transformer for member in self.members), key=lambda network: network.config.context)

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"] | None = None,
        branch_ids: Int[Array, "batch time"] | None = None,
    ) -> Float32[Array, "batch time"]:
        """Score after each token; arguments as for `Transformer`. Meaningless at padding."""
        scores = [member(tokens, segment_ids, positions, branch_ids) for member in self.members]
        return combine_members(jnp.stack(scores), self.combination, self.uncertainty_weight)


def save_ensemble(description: EnsembleDescription, folder: str | Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Writes the folder of an ensemble; members on this machine are named by their full paths.

    Args:
        description: of the ensemble.
        folder: where to; what is there is replaced.
        tokenizer: of all members.
    """
    members = [name if is_hub_name(name) else str(resolve_model_folder(name).resolve()) for name in description.members]
    config = {
        "architectures": ["EnsembleForSequenceClassification"],
        ENSEMBLE_KEY: asdict(description) | {"members": members},
    }
    with replaced_folder(Path(folder), 0) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(partial)


def read_ensemble(path: str | Path) -> EnsembleDescription | None:
    """The ensemble that a folder describes; None if it holds a model."""
    raw: Mapping[str, Any] = read_config(path)
    return EnsembleDescription(**raw[ENSEMBLE_KEY]) if ENSEMBLE_KEY in raw else None


def load_ensemble(
    description: EnsembleDescription, load_member: Callable[[str], SequenceScorer], where: str | Path
) -> EnsembleScorer:
    """Loads all members.

    Args:
        description: of the ensemble.
        load_member: from a folder to the reward model in it.
        where: folder of the ensemble, for messages.

    Raises:
        UserError: a member is gone, or is no reward model.
    """
    members = []
    for folder in description.members:
        if not is_hub_name(folder) and not Path(folder).is_dir():
            raise UserError(
                f"{where}: the ensemble's member {folder} is not there", fix="put it back, or make the ensemble anew."
            )
        members.append(load_member(folder))
    return EnsembleScorer(members, description.combination, description.uncertainty_weight)
