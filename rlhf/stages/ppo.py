"""PPO from reward models, with a KL penalty to the SFT policy (2203.02155, section 3.5; 2307.09288, section 3.2.3).

One iteration:

    prompts ──rollout──▶ responses ──score──▶ rewards, advantages ──update──▶ policy, value model

Each arrow is one compiled program. Everything that an iteration draws depends on the seed and its number alone, so a run that was
stopped goes on from its checkpoint with the same bits.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from transformers import PreTrainedTokenizerBase

from rlhf.data.batches import PromptBatch
from rlhf.data.loader import batches
from rlhf.data.sources import DataConfig, load_prompts
from rlhf.data.tokenizers import require_same_tokenizer
from rlhf.errors import UserError, require_positive
from rlhf.evaluation.responses import ScoredSampler
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.adapters.description import describe_trained
from rlhf.models.bases import Bases
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import load_transformer, tokenizer_folder
from rlhf.models.source import ModelSource, holds_adapter, load_policy, load_scorer_to_train, save_model
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.rewards.rules import resolve_rule
from rlhf.rl.config import PPOConfig
from rlhf.rl.iteration import Iteration, PPOState
from rlhf.rl.programs import FrozenModels, Programs
from rlhf.rl.update import begin_learning
from rlhf.stages.folder import begin_writing, close_folder, fingerprint, open_folder
from rlhf.stages.held_out_check import HeldOutCheck
from rlhf.stages.setup import (
    batch_placer,
    check_context,
    load_reward_models,
    model_tokenizer,
    place_model,
    prompt_batch,
    shared_bases,
    training_and_held_out,
)
from rlhf.tracking.console import say
from rlhf.tracking.progress import ProgressBar
from rlhf.tracking.tracker import Tracker, TrackingConfig
from rlhf.training.checkpoint import Checkpointer
from rlhf.training.compilations import CompilationCounter
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.signals import Interrupted, SignalWatch


@dataclass(frozen=True)
class Config:
    """Train a policy with PPO.

    Attributes:
        output: folder to write.
        model: the SFT policy: start of the policy, and the reference.
        helpfulness: folder of the helpfulness reward model, or null.
        safety: folder of the safety reward model, or null.
        value_from: folder that the value model starts from; null for the helpfulness model, else the safety
            model, else the policy with a zero head.
        rules: programmatic rewards, by name or as "module:function"; their sum is added to the reward models' score.
        data: prompts to answer.
        evaluation_data: held-out prompts for the check every `evaluate_every` iterations; null for `data.held_out` of the data.
        template: chat template; "tokenizer" keeps the one that came with the model.
        max_prompt_length: longest prompt in tokens.
        too_long: refuse a longer prompt, or leave it out and count it.
        iterations: rollouts, each followed by its update.
        ppo: the algorithm.
        policy_optimizer: of the policy; its schedule counts minibatches.
        value_optimizer: of the value model.
        evaluate_every: iterations between checks on held-out prompts, whose points draw the frontier; 0 for none.
        evaluation_prompts: held-out prompts used at each check.
        checkpoint_every: iterations between checkpoints.
        sampled_rows: responses of each iteration written to samples.jsonl with their scores.
        max_skipped_steps: consecutive non-finite updates after which the run stops.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/ppo"
    model: ModelSource = field(default_factory=ModelSource)
    helpfulness: str | None = None
    safety: str | None = None
    value_from: str | None = None
    rules: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation_data: DataConfig | None = None
    template: str = "tokenizer"
    max_prompt_length: int = 128
    too_long: Literal["error", "skip"] = "error"
    iterations: int = 100
    ppo: PPOConfig = field(default_factory=PPOConfig)
    policy_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    value_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: int = 10
    evaluation_prompts: int = 64
    checkpoint_every: int = 20
    sampled_rows: int = 8
    max_skipped_steps: int = 5
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0

    def __post_init__(self):
        require_positive(
            self, "max_prompt_length", "iterations", "evaluation_prompts", "checkpoint_every", "max_skipped_steps"
        )
        if self.evaluate_every < 0:
            raise UserError(f"evaluate_every is {self.evaluate_every}", fix="set it to 0 for no checks, or to more.")


def run(config: Config) -> dict[str, Any]:
    """Trains the policy and writes its folder; returns the summary."""
    folder = open_folder(config)
    job = prepare(config)
    begin_writing(folder)
    with (
        jax.set_mesh(make_mesh(config.mesh)),
        CompilationCounter() as compilations,
        SignalWatch() as signals,
        Checkpointer(folder.checkpoints, fingerprint=fingerprint(config)) as checkpointer,
    ):
        state, start = job.state, 0
        restored = checkpointer.restore_latest(state)
        if restored is not None:
            state, start, _ = restored
            say(f"Continuing after iteration {start}")
        with (
            Tracker(config.tracking, folder.path, asdict(config), start) as tracker,
            ProgressBar("ppo", config.iterations, start=start) as progress,
        ):
            if start == 0 and job.held_out_check is not None:
                tracker.log(0, job.held_out_check(job.policy_states(state)))
            tokens = 0
            prompts = batches(job.prompts, config.ppo.rollout_batch_size, seed=config.seed, start_step=start)
            for number in range(start, config.iterations):
                state, report = job.iteration(state, job.place(next(prompts)), number)
                done = number + 1
                metrics = report.metrics
                if job.held_out_check is not None and (done % config.evaluate_every == 0 or done == config.iterations):
                    metrics |= job.held_out_check(job.policy_states(state))
                tracker.log(done, metrics)
                tracker.log_timings(done, report.timings)
                tracker.table("samples", done, report.rows)
                tokens += report.response_tokens
                shown = {name: metrics[f"objective/{name}"] for name in ("rlhf_reward", "kl")}
                progress.update(done, figures=shown, tokens=tokens)
                stopped_by = signals.agreed(synchronize=True)
                if done % config.checkpoint_every == 0 or done == config.iterations or stopped_by is not None:
                    checkpointer.save(done, state, {})
                if stopped_by is not None:
                    checkpointer.wait()
                    raise Interrupted(stopped_by, done)
    policy = nnx.merge(job.iteration.programs.roles.definition("policy"), *job.policy_states(state))
    save_model(policy, folder.model, job.tokenizer, config.model.init_from)
    return close_folder(folder, {"iterations": config.iterations, **compilations.summary()})


@dataclass(frozen=True)
class Job:
    """A PPO run, ready to start.

    Attributes:
        state: before the first iteration.
        iteration: runs one.
        prompts: all training prompts, encoded, in host memory.
        place: puts a batch of them on the devices.
        held_out_check: measures the policy on held-out prompts, or None.
        tokenizer: saved beside the policy.
    """

    state: PPOState
    iteration: Iteration
    prompts: PromptBatch
    place: Callable[[PromptBatch], PromptBatch]
    held_out_check: HeldOutCheck | None
    tokenizer: PreTrainedTokenizerBase

    def policy_states(self, state: PPOState) -> tuple[nnx.State, nnx.State]:
        """The policy's parameters, trained and frozen."""
        return state.learners.policy.trainable, self.iteration.programs.roles.frozen("policy")


def prepare(config: Config) -> Job:
    """Loads models and prompts, checks that they fit together, and lays them out over the mesh."""
    mesh = make_mesh(config.mesh)
    rules = {name: resolve_rule(name) for name in config.rules}
    if not (rules or config.helpfulness or config.safety):
        raise UserError(
            "nothing to optimise: helpfulness, safety and rules are all unset",
            fix="set helpfulness or safety to a reward model's folder, or rules to a list of programmatic rewards.",
        )
    bases = shared_bases(config.model, mesh)
    policy = place_model(load_policy(config.model, config.seed, bases), mesh)
    tokenizer = model_tokenizer(config.model.init_from, config.template, policy.config)
    judges = {"helpfulness": config.helpfulness, "safety": config.safety}
    reward_models = load_reward_models(judges, config.model.init_from, config.model.compute, mesh, bases)
    frozen = FrozenModels(
        reference=place_model(load_transformer(config.model.init_from, config.model.compute, bases=bases), mesh),
        helpfulness=reward_models.get("helpfulness"),
        safety=reward_models.get("safety"),
    )
    value = place_model(load_value_model(config, bases), mesh)
    optimizers = make_optimizers(config)
    learners = begin_learning(policy, value, optimizers)

    train, held_out = training_and_held_out(load_prompts, config.data, config.evaluation_data, config.seed)
    limits = {"max_length": config.max_prompt_length, "too_long": config.too_long}
    train, prompts = prompt_batch(train, tokenizer, **limits)
    contexts = {"policy": policy.config, "value model": value.transformer.config}
    contexts |= {f"{name} model": model.transformer.config for name, model in reward_models.items()}
    check_context("ppo.response_length", config.ppo.response_length, prompts, contexts)
    if len(train) < config.ppo.rollout_batch_size:
        raise UserError(
            f"ppo.rollout_batch_size is {config.ppo.rollout_batch_size}, but there are only {len(train)} prompts",
            fix="lower ppo.rollout_batch_size or use more prompts.",
        )
    place = batch_placer(mesh, config.ppo.rollout_batch_size, "ppo.rollout_batch_size")
    programs = Programs(
        policy,
        value,
        frozen,
        optimizers,
        end_token=tokenizer.eos_token_id,
        pad_token=tokenizer.pad_token_id,
        config=config.ppo,
    )
    for name, model in {"policy": policy, "value model": value}.items():
        say(f"{name}: {describe_trained(model)}")
    say(programs.roles.describe())
    held_out_check = None
    if held_out and config.evaluate_every:
        held_out, held_out_batch = prompt_batch(held_out[: config.evaluation_prompts], tokenizer, **limits)
        check_context("ppo.response_length", config.ppo.response_length, held_out_batch, contexts)
        sampler = ScoredSampler(
            policy,
            tokenizer,
            sampling=SamplingConfig(temperature=config.ppo.temperature),
            max_new_tokens=config.ppo.response_length,
            reference=frozen.reference,
            reward_models=frozen.reward_models,
            combine=config.ppo.combine,
            batch_size=config.ppo.rollout_batch_size,
            place=place,
        )
        held_out_check = HeldOutCheck(sampler, held_out, held_out_batch, config.seed)
    return Job(
        state=PPOState(learners, jnp.float32(config.ppo.kl.coefficient)),
        iteration=Iteration(
            programs, train, tokenizer, rules, config.ppo, config.seed, config.sampled_rows, config.max_skipped_steps
        ),
        prompts=prompts,
        place=place,
        held_out_check=held_out_check,
        tokenizer=tokenizer,
    )


def load_value_model(config: Config, bases: Bases) -> SequenceScorer:
    """The value model: a reward model's weights where there is one (2203.02155, appendix C.4), else the policy with a zero head.

    With `model.adapter` it gets an adapter of its own, unless the folder it starts from has one, which is trained on.
    """
    folder = config.value_from or config.helpfulness or config.safety
    if config.value_from is not None:
        require_same_tokenizer(
            tokenizer_folder(config.model.init_from), tokenizer_folder(config.value_from), "value_from"
        )
    if folder is not None:
        adapter = None if holds_adapter(folder) else config.model.adapter
        return load_scorer_to_train(replace(config.model, init_from=folder, adapter=adapter), config.seed, bases)
    return SequenceScorer(load_policy(config.model, config.seed, bases), rngs=nnx.Rngs(config.seed), head_init="zeros")


def make_optimizers(config: Config) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Optimizers of policy and value model; their schedules count gradient steps, several an iteration."""
    steps = config.iterations * config.ppo.epochs * (config.ppo.rollout_batch_size // config.ppo.minibatch_size)
    return make_optimizer(config.policy_optimizer, steps), make_optimizer(config.value_optimizer, steps)
