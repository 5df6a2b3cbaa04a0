"""What the policies and the reward models of a run are worth, on prompts and comparisons that none of them has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from rlhf.data.lengths import TooLongPrompt, encode_comparisons
from rlhf.data.records import Comparison, Prompt
from rlhf.data.sources import DataConfig, load_comparisons, load_prompts
from rlhf.data.tokenizers import check_vocabulary, require_same_tokenizer
from rlhf.errors import UserError, require_positive
from rlhf.evaluation.columns import response_columns
from rlhf.evaluation.metrics import bootstrap_interval, pair_accuracy
from rlhf.evaluation.responses import ScoredResponses
from rlhf.evaluation.reward_model import evaluate_comparisons, score_comparisons
from rlhf.generation.sampling import SamplingConfig
from rlhf.generation.weights import RolloutWeights
from rlhf.models.bases import Bases
from rlhf.models.config import ComputeConfig
from rlhf.models.ensemble import EnsembleConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import load_transformer, read_model_config, tokenizer_folder
from rlhf.models.source import holds_adapter
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import parts_of
from rlhf.parallel.table import by_its_rules
from rlhf.randomness import step_key
from rlhf.rewards.combine import CombineConfig
from rlhf.rl.stopping import check_ends
from rlhf.stages.folder import begin_writing, close_folder, open_folder, write_json
from rlhf.stages.sampler import configured_sampler
from rlhf.stages.setup import (
    check_context,
    check_rows_divide,
    check_time_divides,
    load_reward_models,
    place_model,
    prompt_batch,
    say_left_out,
    stage_tokenizer,
    unseen,
)
from rlhf.tracking.progress import ProgressBar
from rlhf.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True)
class Config:
    """Evaluate policies and reward models.

    Attributes:
        output: folder to write.
        policies: name to folder, for example {sft: runs/demo/sft, ppo: runs/demo/ppo}.
        reference: folder of the policy that KL is measured to; null measures none.
        helpfulness: folder of the helpfulness reward model, or null; several (a,b,c or a list) score as one.
        safety: the same of the safety reward model.
        ensemble: how the scores of several become one.
        combine: how both scores become one.
        data: prompts; with `data.held_out`, those that other stages with the same seed held out.
        comparisons: kind ("helpfulness", "safety") to comparisons, likewise; each reward model is measured on each.
        max_prompts: use only the first so many prompts; null for all.
        template: chat template; "tokenizer" keeps the one that came with the reference, or else with the first policy.
        max_prompt_length: longest prompt in tokens.
        max_length: longest comparison in tokens; longer ones, and those that a reward model's context cannot hold, are left out.
        too_long: refuse a longer prompt, leave it out and count it, or truncate it: its earliest turns go, then its end.
        sampling: distribution to sample from.
        samples_per_prompt: responses whose mean is one prompt's value.
        response_length: longest response in tokens.
        minimum_length: before so many tokens there is no end token; as ppo.minimum_length of a policy that was trained with it.
        stop_strings: a response ends where one of these is complete; as ppo.stop_strings likewise.
        stop_after: so many tokens at the beginning are not searched for them; null for those before the one that reaches
            minimum_length; as ppo.stop_after likewise.
        batch_size: responses sampled at once.
        rollout_weights: while responses are sampled, the policy's weights stay in the parts that mesh.fsdp makes of them, to be
            gathered where they are used, or are gathered once for each batch, where there is memory for them.
        compute: dtypes.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/evaluate"
    policies: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    helpfulness: str | list[str] | None = None
    safety: str | list[str] | None = None
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    comparisons: dict[str, DataConfig] = field(default_factory=dict)
    max_prompts: int | None = None
    template: str = "tokenizer"
    max_prompt_length: int = 128
    max_length: int = 512
    too_long: TooLongPrompt = "error"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    samples_per_prompt: int = 4
    response_length: int = 48
    minimum_length: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_after: int | None = None
    batch_size: int = 64
    rollout_weights: RolloutWeights = "sharded"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "max_prompt_length", "max_length", "samples_per_prompt", "response_length", "batch_size")
        check_ends(self)


@by_its_rules
def run(config: Config) -> dict[str, Any]:
    """Evaluates and writes evaluation.json and samples.jsonl; returns {"policies": …, "reward_models": …}."""
    if not config.policies:
        raise UserError("policies is empty", fix="name at least one, for example --policies='{sft: runs/demo/sft}'.")
    folder = open_folder(config)
    mesh = make_mesh(config.mesh)
    first = next(iter(config.policies.values()))
    tokenizer = stage_tokenizer(str(tokenizer_folder(config.reference or first)), config.template, key="policies")
    judges = {"helpfulness": config.helpfulness, "safety": config.safety}
    bases = Bases(config.compute, mesh=mesh)
    reward_models = load_reward_models(judges, first, config.compute, mesh, bases, config.ensemble)
    prompts, batch = prompt_batch(
        unseen(load_prompts, config.data, config.seed)[: config.max_prompts],
        tokenizer,
        max_length=config.max_prompt_length,
        too_long=config.too_long,
        sequence_parts=parts_of("time", mesh),
    )
    check_time_divides("response_length", config.response_length, mesh)
    compared = {f"policies.{name}": path for name, path in config.policies.items()}
    if config.reference is not None:
        compared["reference"] = config.reference
    contexts = {f"{name} model": model.transformer.config for name, model in reward_models.items()}
    for key, path in compared.items():
        require_same_tokenizer(tokenizer_folder(first), tokenizer_folder(path), key)
        contexts[key] = read_model_config(path)
        check_vocabulary(tokenizer, contexts[key].vocab_size, f"{key} {path}")
    check_context("response_length", config.response_length, batch, contexts)
    reference = None
    if config.reference is not None:
        reference = place_model(load_transformer(config.reference, config.compute, bases=bases), mesh)
    check_rows_divide("batch_size", config.batch_size, mesh)
    held_out = load_held_out(tokenizer, config, [model.transformer.config.context for model in reward_models.values()])
    begin_writing(folder)

    policies, samples = {}, []
    total = len(prompts) * config.samples_per_prompt
    for name, path in config.policies.items():
        shared = bases if holds_adapter(path) else None
        policy = place_model(load_transformer(path, config.compute, bases=shared), mesh)
        sampler = configured_sampler(config, policy, tokenizer, mesh, reward_models=reward_models, reference=reference)
        with jax.set_mesh(mesh), ProgressBar(f"evaluate {name}", total) as progress:
            responses = sampler(
                (nnx.state(policy),),
                batch,
                step_key(config.seed, "evaluate"),
                repeats=config.samples_per_prompt,
                on_batch=progress.update,
            )
        columns = response_columns(prompts, responses)
        if reference is not None:
            columns["kl"] = responses.log_ratio
        policies[name] = policy_entry(prompts, columns, config)
        samples += sample_rows(name, prompts, responses, columns, config.samples_per_prompt)
    with jax.set_mesh(mesh):
        measured = evaluate_reward_models(reward_models, tokenizer, held_out, config)
    result = {"policies": policies, "reward_models": measured}
    write_json(folder.path / "evaluation.json", result)
    with Tracker(config.tracking, folder.path, {}) as tracker:
        tracker.log(0, flat_values(policies))
        tracker.table("samples", 0, samples)
    close_folder(folder, result)
    return result


def policy_entry(prompts: Sequence[Prompt], columns: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Mean and interval of each column over prompts; and for prompts that name a language, the same for each of them."""
    entry: dict[str, Any] = intervals(columns, config, np.ones(len(prompts), bool))
    languages = np.array([str(prompt.metadata.get("language", "")) for prompt in prompts])
    if len(set(languages)) > 1:
        entry["by_language"] = {
            language: intervals(columns, config, languages == language) for language in sorted(set(languages))
        }
    return entry


def intervals(columns: Mapping[str, np.ndarray], config: Config, chosen: np.ndarray) -> dict[str, dict[str, float]]:
    """Bootstrap interval over the chosen prompts of each column's mean a prompt; prompts where it is undefined are left out."""
    result = {}
    for name, values in columns.items():
        per_prompt = values.reshape(-1, config.samples_per_prompt).mean(axis=1)[chosen]
        defined = per_prompt[~np.isnan(per_prompt)]
        if len(defined):
            result[name] = bootstrap_interval(defined, seed=config.seed)
    return result


def sample_rows(
    policy: str, prompts: Sequence[Prompt], responses: ScoredResponses, columns: Mapping[str, np.ndarray], repeats: int
) -> list[dict[str, Any]]:
    """The first response to each prompt, with all its numbers."""
    rows = []
    for number, prompt in enumerate(prompts):
        row = number * repeats
        numbers = {name: None if np.isnan(values[row]) else float(values[row]) for name, values in columns.items()}
        about = {name: prompt.metadata[name] for name in ("language", "kind") if name in prompt.metadata}
        rows.append(
            {
                "prompt": prompt.messages[-1].content,
                "policy": policy,
                "response": responses.texts[row],
                **about,
                **numbers,
            }
        )
    return rows


def load_held_out(tokenizer, config: Config, contexts: Sequence[int]) -> dict[str, list[Comparison]]:
    """The comparisons of each kind that are short enough for the configuration and for every reward model's context."""
    max_length = min([config.max_length, *contexts])
    held_out = {}
    for kind, data in config.comparisons.items():
        records = unseen(load_comparisons, data, config.seed)
        encoded, left_out = encode_comparisons(tokenizer, records, max_length=max_length, too_long="skip")
        say_left_out(left_out, f"{kind} comparisons", f"{max_length} tokens (max_length, or a reward model's context)")
        held_out[kind] = [records[pair.index] for pair in encoded]
    return held_out


def evaluate_reward_models(
    reward_models: Mapping[str, SequenceScorer], tokenizer, held_out: Mapping[str, list[Comparison]], config: Config
) -> dict[str, dict[str, Any]]:
    """Each reward model on the comparisons of its own kind in full, and its accuracy on every kind under "cross"."""
    result: dict[str, dict[str, Any]] = {}
    for model_kind, scorer in reward_models.items():
        scores = {
            kind: score_comparisons(scorer, tokenizer, records, config.batch_size) for kind, records in held_out.items()
        }
        own = {}
        if model_kind in held_out:
            own = evaluate_comparisons(*scores[model_kind], held_out[model_kind], config.seed)
        result[model_kind] = own | {"cross": {kind: pair_accuracy(*pair) for kind, pair in scores.items()}}
    return result


def flat_values(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{policy/measure: value}, for trackers."""
    return {
        f"{policy}/{name}": measure["value"]
        for policy, entry in policies.items()
        for name, measure in entry.items()
        if "value" in measure
    }
