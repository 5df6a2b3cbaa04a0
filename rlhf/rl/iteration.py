"""One PPO iteration on the host: the three programs in order, the texts in between, and what there is to report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float
from transformers import PreTrainedTokenizerBase

from rlhf.data.batches import PromptBatch
from rlhf.data.encoding import decode_response
from rlhf.data.records import Prompt
from rlhf.errors import UserError
from rlhf.losses.kl import adaptive_kl_coefficient
from rlhf.randomness import step_key
from rlhf.rewards.rules import Rule
from rlhf.rl.batches import Scores
from rlhf.rl.config import PPOConfig
from rlhf.rl.programs import Programs
from rlhf.rl.update import Learners


@register_dataclass
@dataclass(frozen=True)
class PPOState:
    """Everything that an iteration changes, and so everything that a checkpoint holds.

    Attributes:
        learners: policy and value model with their optimizers.
        kl_coefficient: weight of the KL penalty, which the adaptive controller moves.
    """

    learners: Learners
    kl_coefficient: Float[Array, ""]


@dataclass(frozen=True)
class Report:
    """What one iteration has to say.

    Attributes:
        metrics: means over the iteration; equal for equal seeds.
        timings: seconds of rollout, score and update, and tokens a second.
        rows: prompts and responses with each of their rewards.
        response_tokens: tokens sampled.
    """

    metrics: dict[str, float]
    timings: dict[str, float]
    rows: list[dict[str, Any]]
    response_tokens: int


@dataclass(frozen=True)
class Iteration:
    """Runs iterations; everything it draws depends on the seed and the iteration's number alone.

    Attributes:
        programs: rollout, score and update.
        prompts: the records behind the prompt batches.
        tokenizer: decodes the responses.
        rules: programmatic rewards, by name.
        config: the algorithm.
        seed: of the run.
        sampled_rows: responses to report with their rewards.
        max_skipped_steps: consecutive non-finite updates to accept.
    """

    programs: Programs
    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    rules: Mapping[str, Rule]
    config: PPOConfig
    seed: int
    sampled_rows: int
    max_skipped_steps: int

    def __call__(self, state: PPOState, batch: PromptBatch, number: int) -> tuple[PPOState, Report]:
        """Rollout, score, update. The state that is passed in is consumed.

        Args:
            state: before the iteration.
            batch: prompts, on the devices.
            number: of the iteration, from 0.

        Raises:
            UserError: too many updates in a row were not finite.
        """
        clock = _Clock()
        rollout = self.programs.rollout(state.learners, batch, step_key(self.seed, "rollout", number))
        clock.lap("rollout", rollout)

        records = [self.prompts[index] for index in np.asarray(batch.index)]
        texts = self._decode(rollout)
        rule_scores = {name: rule(records, texts) for name, rule in self.rules.items()}
        summed = sum(rule_scores.values(), start=np.zeros(len(texts), np.float32))
        experience, scores, kl, metrics = self.programs.score(state.learners, rollout, summed, state.kl_coefficient)
        clock.lap("score", experience)

        learners, update_metrics = self.programs.update(
            state.learners, experience, step_key(self.seed, "shuffle", number)
        )
        clock.lap("update", learners)

        metrics, update_metrics, scores, kl = jax.device_get((metrics, update_metrics, scores, kl))
        self._check_finite(update_metrics, number)
        metrics |= {name: np.mean(values) for name, values in update_metrics.items() if name != "val/skipped"}
        metrics |= {f"rule/{name}": np.mean(values) for name, values in rule_scores.items()}
        metrics |= {"objective/helpfulness": np.mean(scores.helpfulness), "objective/safety": np.mean(scores.safety)}
        episodes = self.config.rollout_batch_size
        metrics |= {"episode": float((number + 1) * episodes)}
        tokens = int(metrics["objective/response_length"] * episodes)
        report = Report(
            metrics={name: float(value) for name, value in metrics.items()},
            timings=clock.seconds | {"tokens_per_second": tokens / sum(clock.seconds.values())},
            rows=self._rows(records, texts, scores, kl, rule_scores),
            response_tokens=tokens,
        )
        return PPOState(learners, self._next_coefficient(state.kl_coefficient, metrics["objective/kl"])), report

    def _decode(self, rollout) -> list[str]:
        response_time = rollout.response_mask.shape[1]
        tokens, mask = np.asarray(rollout.tokens)[:, -response_time:], np.asarray(rollout.response_mask)
        return [decode_response(self.tokenizer, row[keep]) for row, keep in zip(tokens, mask, strict=True)]

    def _next_coefficient(self, coefficient: Float[Array, ""], kl: float) -> Float[Array, ""]:
        settings = self.config.kl
        if settings.controller == "fixed":
            return coefficient
        return jnp.asarray(
            adaptive_kl_coefficient(
                coefficient,
                kl,
                target=settings.target,
                horizon=settings.horizon,
                episodes=self.config.rollout_batch_size,
            ),
            jnp.float32,
        )

    def _check_finite(self, update_metrics: Mapping[str, np.ndarray], number: int) -> None:
        skipped = int(np.max(update_metrics["val/skipped"]))
        if skipped >= self.max_skipped_steps:
            raise UserError(
                f"ppo iteration {number + 1}: {skipped} updates in a row were skipped: their loss or gradient was not finite",
                fix="lower policy_optimizer.learning_rate or value_optimizer.learning_rate, or look for degenerate"
                " responses in samples.jsonl; the checkpoints before are intact.",
            )

    def _rows(self, records, texts, scores: Scores, kl, rule_scores) -> list[dict[str, Any]]:
        return [
            {
                "prompt": records[row].messages[-1].content,
                "response": texts[row],
                "helpfulness": float(scores.helpfulness[row]),
                "safety": float(scores.safety[row]),
                **{name: float(values[row]) for name, values in rule_scores.items()},
                "score": float(scores.combined[row]),
                "kl": float(kl[row]),
            }
            for row in range(min(self.sampled_rows, len(texts)))
        ]


class _Clock:
    """Seconds of each part; waits for the part's result, which the next part needs anyway."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, result: Any) -> None:
        jax.block_until_ready(result)
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
