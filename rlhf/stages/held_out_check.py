"""How a policy in training does on held-out prompts: reward, KL and, where it is known, gold score. The points of the frontier."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx
from jaxtyping import Float

from rlhf.data.batches import PromptBatch
from rlhf.data.records import Prompt
from rlhf.evaluation.columns import response_columns
from rlhf.evaluation.responses import ScoredSampler
from rlhf.randomness import step_key


@dataclass(frozen=True)
class HeldOutCheck:
    """Samples one response to each held-out prompt, with the same noise at every check, so that checks can be compared.

    Attributes:
        sampler: samples and scores.
        prompts: held-out records.
        batch: the same, encoded.
        seed: of the run.
    """

    sampler: ScoredSampler
    prompts: Sequence[Prompt]
    batch: PromptBatch
    seed: int

    def __call__(self, policy_states: tuple[nnx.State, ...]) -> dict[str, float]:
        """Means over the held-out prompts, under `held_out/…`, and their standard errors, under `held_out_error/…`."""
        responses = self.sampler(policy_states, self.batch, step_key(self.seed, "held-out check"))
        columns = {"kl": responses.log_ratio, **response_columns(self.prompts, responses)}
        means = {f"held_out/{name}": float(np.nanmean(values)) for name, values in columns.items()}
        return means | {f"held_out_error/{name}": standard_error(values) for name, values in columns.items()}


def standard_error(values: Float[np.ndarray, " prompts"]) -> float:
    """Of the mean of the values that are defined; 0 where there are not two to tell it from."""
    defined = values[~np.isnan(values)]
    return float(np.std(defined, ddof=1) / np.sqrt(len(defined))) if len(defined) > 1 else 0.0
