"""Making one reward out of several reward models, against over-optimisation (2310.02743).

    rlhf ensemble --members='[runs/a, runs/b, runs/c]' --combination=minimum --output=runs/ensemble
    rlhf ppo --helpfulness=runs/ensemble

Train the members with different seeds (`rlhf reward --seed=…`) on the same comparisons, normalised alike. What is written names
them; they stay where they are.
"""

from dataclasses import dataclass, field
from typing import Any

from rlhf.data.tokenizers import load_tokenizer, require_same_tokenizer
from rlhf.errors import UserError
from rlhf.models.ensemble import Combination, EnsembleDescription, read_ensemble, save_ensemble
from rlhf.models.hub import is_scorer, read_config, tokenizer_folder
from rlhf.stages.folder import begin_writing, close_folder, open_folder


@dataclass(frozen=True)
class Config:
    """Name several reward models as one.

    Attributes:
        output: folder to write.
        members: folders of at least two reward models with the same tokenizer, or their names on the hub.
        combination: "mean"; "minimum", the least of the scores; or "uncertainty", the mean minus `uncertainty_weight` times the
            variance among the members.
        uncertainty_weight: of "uncertainty".
    """

    output: str = "runs/ensemble"
    members: list[str] = field(default_factory=list)
    combination: Combination = "mean"
    uncertainty_weight: float = 0.5

    def __post_init__(self):
        if self.uncertainty_weight < 0:
            raise UserError(f"uncertainty_weight is {self.uncertainty_weight}", fix="set it to 0 or more.")


def run(config: Config) -> dict[str, Any]:
    """Checks that the members fit together and writes the ensemble's folder; returns the summary."""
    folder = open_folder(config)
    if len(config.members) < 2:
        raise UserError(f"members is {config.members}", fix="name at least two reward models.")
    for member in config.members:
        if not is_scorer(read_config(member)) or read_ensemble(member) is not None:
            raise UserError(
                f"members: {member} is no single reward model", fix="give folders that `rlhf reward` wrote."
            )
        require_same_tokenizer(tokenizer_folder(config.members[0]), tokenizer_folder(member), "members")
    begin_writing(folder)
    description = EnsembleDescription(config.members, config.combination, config.uncertainty_weight)
    save_ensemble(description, folder.model, load_tokenizer(tokenizer_folder(config.members[0])))
    return close_folder(folder, {"members": config.members, "combination": config.combination})
