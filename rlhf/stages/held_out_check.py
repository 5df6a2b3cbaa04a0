"""How a policy in training does on held-out prompts: reward, KL and, where it is known, gold score. The points of the frontier."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx

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
        """Means over the held-out prompts, under `held_out/…`."""
        responses = self.sampler(policy_states, self.batch, step_key(self.seed, "held-out check"))
        columns = {"kl": responses.log_ratio, **response_columns(self.prompts, responses)}
        return {f"held_out/{name}": float(np.nanmean(values)) for name, values in columns.items()}
