"""Best-of-n: sample n responses, keep the one that the reward models like best. The baseline for every policy (2112.09332).

N responses a prompt are sampled once; from these, every n ≤ N gets the unbiased estimate of what its chosen answer scores, by the
reward models and by gold. The distance from the policy is the upper bound log n − (n − 1)/n, so that n is paid for in nats too;
beside it stands the closer estimate from how likely the chosen answers are (both 2401.01879). The chosen answers can be written as
demonstrations, to teach a policy what choosing gained (rejection sampling, 2307.09288, section 3.2.3).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from rlhf.data.lengths import TooLongPrompt
from rlhf.data.records import Message, Prompt
from rlhf.data.sources import DataConfig, load_prompts
from rlhf.errors import UserError, require_positive
from rlhf.evaluation.best_of_n import best_of_n_estimate, best_of_n_kl_bound, best_of_n_kl_estimate, best_of_n_variance
from rlhf.evaluation.columns import response_columns
from rlhf.evaluation.metrics import bootstrap_interval
from rlhf.evaluation.responses import ScoredResponses
from rlhf.generation.sampling import SamplingConfig
from rlhf.generation.weights import RolloutWeights
from rlhf.models.ensemble import EnsembleConfig
from rlhf.models.source import ModelSource, load_policy
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import parts_of
from rlhf.parallel.table import by_its_rules
from rlhf.randomness import step_key
from rlhf.rewards.combine import CombineConfig
from rlhf.rl.stopping import check_ends
from rlhf.stages.folder import begin_writing, close_folder, open_folder, write_json, write_jsonl
from rlhf.stages.sampler import configured_sampler
from rlhf.stages.setup import (
    check_context,
    check_time_divides,
    load_reward_models,
    model_tokenizer,
    place_model,
    prompt_batch,
    shared_bases,
    unseen,
)
from rlhf.tracking.progress import ProgressBar
from rlhf.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True)
class Config:
    """Sample n responses a prompt and keep the best by the reward models.

    Attributes:
        output: folder to write.
        model: the policy to sample from, usually the SFT policy.
        helpfulness: folder of the helpfulness reward model, or null; several (a,b,c or a list) score as one.
        safety: the same of the safety reward model.
        ensemble: how the scores of several become one.
        combine: how both scores become one.
        prefer_ended: choose a response that was cut at `response_length` only where none of the others came to its end: reward
            models are trained on whole answers, and what they read at a cut says nothing.
        data: prompts; with `data.held_out`, those that other stages with the same seed held out.
        max_prompts: use only the first so many prompts; null for all.
        template: chat template; "tokenizer" keeps the one that came with the model.
        max_prompt_length: longest prompt in tokens.
        too_long: refuse a longer prompt, leave it out and count it, or truncate it: its earliest turns go, then its end.
        n: the numbers to report; the largest is the number of samples a prompt. The curve in
            best_of_n.json also has the powers of two.
        sampling: distribution to sample from.
        write_chosen: write each prompt's best answer of all samples to chosen.jsonl, which `rlhf sft --data.path` reads.
        response_length: longest response in tokens.
        minimum_length: before so many tokens there is no end token; as ppo.minimum_length of a policy that was trained with it.
        stop_strings: a response ends where one of these is complete; as ppo.stop_strings likewise.
        stop_after: so many tokens at the beginning are not searched for them; null for those before the one that reaches
            minimum_length; as ppo.stop_after likewise.
        batch_size: responses sampled at once.
        rollout_weights: while responses are sampled, the policy's weights stay in the parts that mesh.fsdp makes of them, to be
            gathered where they are used, or are gathered once for each batch, where there is memory for them.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/best_of_n"
    model: ModelSource = field(default_factory=ModelSource)
    helpfulness: str | list[str] | None = None
    safety: str | list[str] | None = None
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    prefer_ended: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    max_prompts: int | None = None
    template: str = "tokenizer"
    max_prompt_length: int = 128
    too_long: TooLongPrompt = "error"
    n: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    write_chosen: bool = False
    response_length: int = 48
    minimum_length: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_after: int | None = None
    batch_size: int = 64
    rollout_weights: RolloutWeights = "sharded"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "max_prompt_length", "response_length", "batch_size")
        check_ends(self)
        if not self.n or min(self.n) < 1:
            raise UserError(f"n is {self.n}", fix="give one or more numbers of at least 1, for example [1, 4, 16, 64].")


@by_its_rules
def run(config: Config) -> dict[str, Any]:
    """Samples, scores and estimates; writes best_of_n.json and the samples; returns the summary."""
    folder = open_folder(config)
    if config.helpfulness is None and config.safety is None:
        raise UserError(
            "neither helpfulness nor safety is set, so there is nothing to choose the best by",
            fix="set at least one to a reward model's folder.",
        )
    mesh = make_mesh(config.mesh)
    bases = shared_bases(config.model, mesh)
    policy = place_model(load_policy(config.model, config.seed, bases), mesh)
    tokenizer = model_tokenizer(config.model.init_from, config.template, policy.config)
    judges = {"helpfulness": config.helpfulness, "safety": config.safety}
    reward_models = load_reward_models(
        judges, config.model.init_from, config.model.compute, mesh, bases, config.ensemble
    )
    prompts, batch = prompt_batch(
        unseen(load_prompts, config.data, config.seed)[: config.max_prompts],
        tokenizer,
        max_length=config.max_prompt_length,
        too_long=config.too_long,
        sequence_parts=parts_of("time", mesh),
    )
    check_time_divides("response_length", config.response_length, mesh)
    contexts = {"policy": policy.config} | {
        f"{name} model": model.transformer.config for name, model in reward_models.items()
    }
    check_context("response_length", config.response_length, batch, contexts)
    sampler = configured_sampler(config, policy, tokenizer, mesh, reward_models=reward_models)
    begin_writing(folder)
    repeats = max(config.n)
    with jax.set_mesh(mesh), ProgressBar("best-of-n", len(prompts) * repeats) as progress:
        responses = sampler(
            (nnx.state(policy),), batch, step_key(config.seed, "best-of-n"), repeats=repeats, on_batch=progress.update
        )
    columns = response_columns(prompts, responses)
    proxy = ended_first(columns["reward"], responses.ended) if config.prefer_ended else columns["reward"]
    powers_of_two = {1 << power for power in range(repeats.bit_length())}
    curve = {
        f"best_of_{n}": {"n": n, "kl": exactly(float(best_of_n_kl_bound(n)))}
        | estimate_columns(
            proxy.reshape(-1, repeats),
            columns | {"kl_estimate": best_of_n_kl_estimate(responses.log_probs, n)},
            n,
            config.seed,
        )
        for n in sorted(powers_of_two | set(config.n))
    }
    write_json(folder.path / "best_of_n.json", curve)
    estimates = {f"best_of_{n}": curve[f"best_of_{n}"] for n in sorted(config.n)}
    with Tracker(config.tracking, folder.path, {}) as tracker:
        for values in curve.values():
            measures = {name: value["value"] for name, value in values.items() if name != "n"}
            tracker.log(values["n"], measures)
        tracker.table("samples", 0, sample_rows(prompts, responses, proxy, columns, repeats))
    if config.write_chosen:
        chosen = chosen_answers(prompts, responses, proxy, columns["reward"], repeats)
        write_jsonl(folder.path / "chosen.jsonl", chosen)
    return close_folder(folder, {"prompts": len(prompts), "samples_per_prompt": repeats, "estimates": estimates})


def ended_first(
    reward: Float[np.ndarray, " responses"], ended: Bool[np.ndarray, " responses"]
) -> Float[np.ndarray, " responses"]:
    """What to choose by: the reward, lowered for responses that did not end until it is below that of all that did."""
    reward = reward.astype(np.float64)
    return np.where(ended, reward, reward - np.ptp(reward) - 1.0)


def estimate_columns(
    proxy: np.ndarray, columns: dict[str, np.ndarray], n: int, seed: int
) -> dict[str, dict[str, float]]:
    """Mean over prompts of what the best of n scores in each column, with a bootstrap interval over prompts.

    Beside it two standard errors: "standard_error", of the mean over prompts such as these, and its part that only more samples a
    prompt would mend, "sampling_error"; null for n = N, where it cannot be told.
    """
    result = {}
    for name, values in columns.items():
        values = values.reshape(proxy.shape)
        defined = ~np.isnan(values).any(axis=1)
        if defined.any():
            per_prompt = best_of_n_estimate(proxy[defined], values[defined], n)
            result[name] = bootstrap_interval(per_prompt, seed=seed) | {
                "standard_error": float(per_prompt.std(ddof=1) / len(per_prompt) ** 0.5)
                if len(per_prompt) > 1
                else None,
                "sampling_error": sampling_error(best_of_n_variance(proxy[defined], values[defined], n)),
            }
    return result


def sampling_error(variance: np.ndarray) -> float | None:
    """Standard error of the mean over prompts of values with these variances; None where they are not known."""
    return None if np.isnan(variance).any() else float(np.sqrt(variance.sum()) / len(variance))


def exactly(value: float) -> dict[str, float]:
    """A value without uncertainty, in the form of the others."""
    return {"value": value, "low": value, "high": value}


def sample_rows(prompts, responses: ScoredResponses, proxy, columns, repeats: int) -> list[dict[str, Any]]:
    """The first sample and the best one of each prompt."""
    rows = []
    for number, prompt in enumerate(prompts):
        first = number * repeats
        best = first + int(np.argmax(proxy[first : first + repeats]))
        for n, row in ((1, first), (repeats, best)):
            values = {name: float(values[row]) for name, values in columns.items()}
            rows.append({"prompt": prompt.messages[-1].content, "n": n, "response": responses.texts[row], **values})
    return rows


def chosen_answers(
    prompts: Sequence[Prompt], responses: ScoredResponses, proxy: np.ndarray, reward: np.ndarray, repeats: int
) -> list[dict[str, Any]]:
    """Each prompt with the best of its answers by `proxy`, as a dialogue to imitate."""
    rows = []
    for number, prompt in enumerate(prompts):
        best = number * repeats + int(np.argmax(proxy[number * repeats : (number + 1) * repeats]))
        turns = [*prompt.messages, Message("assistant", responses.texts[best])]
        measures = {"reward": float(reward[best]), "ended": bool(responses.ended[best]), "chosen_of": repeats}
        rows.append({"messages": [asdict(turn) for turn in turns], **measures})
    return rows
