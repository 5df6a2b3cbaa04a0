"""What a PPO run starts from: models on the mesh, prompts in host memory, programs, and the checks that all fit together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rlhf.data.batches import PromptBatch, SequenceBatch
from rlhf.data.loader import batches
from rlhf.data.sources import load_prompts
from rlhf.data.tokenizers import require_same_tokenizer
from rlhf.errors import UserError
from rlhf.evaluation.columns import UNSEEN_REWARD
from rlhf.evaluation.responses import ScoredSampler
from rlhf.models.adapters.description import describe_trained
from rlhf.models.bases import Bases
from rlhf.models.ensemble import member_folders
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import load_transformer, tokenizer_folder
from rlhf.models.source import holds_adapter, load_policy, load_scorer_to_train
from rlhf.models.transformer import Transformer
from rlhf.parallel.host_arrays import BatchLayout
from rlhf.parallel.mesh import make_mesh
from rlhf.parallel.rules import parts_of
from rlhf.rewards.rules import resolve_rule
from rlhf.rl.iteration import Iteration, PPOState, begin
from rlhf.rl.programs import FrozenModels, Programs
from rlhf.rl.update import Optimizers, begin_learning
from rlhf.stages.held_out_check import HeldOutCheck
from rlhf.stages.ppo_config import Config
from rlhf.stages.pretraining_mix import pretraining_batches, pretraining_rows
from rlhf.stages.setup import (
    batch_layout,
    check_context,
    check_rows_divide,
    check_time_divides,
    load_reward_models,
    model_tokenizer,
    place_model,
    prompt_batch,
    shared_bases,
    training_and_held_out,
)
from rlhf.tracking.console import say
from rlhf.training.optimizer import make_optimizer


@dataclass(frozen=True)
class Job:
    """A PPO run, ready to start.

    Attributes:
        state: before the first iteration.
        iteration: runs one.
        prompts: all training prompts, encoded, in host memory.
        text: rows of pretraining text in host memory, or None.
        layout: where the rows of a batch are put.
        held_out_check: measures the policy on held-out prompts, or None.
        tokenizer: saved beside the policy.
        policy: structure of the policy alone.
        saves_average: whether the policy to save and to check is the moving average.
    """

    state: PPOState
    iteration: Iteration
    prompts: PromptBatch
    text: SequenceBatch | None
    layout: BatchLayout
    held_out_check: HeldOutCheck | None
    tokenizer: PreTrainedTokenizerBase
    policy: nnx.GraphDef
    saves_average: bool

    def policy_states(self, state: PPOState) -> tuple[nnx.State, nnx.State]:
        """The parameters, trained and frozen, of the policy that is saved, without a value head."""
        trained = state.learners.policy.trainable
        if self.saves_average:
            average = state.learners.average
            trained = jax.tree.map(lambda mean, now: mean.astype(now.dtype), average, trained)
        states = trained, self.iteration.programs.roles.frozen("policy")
        if self.iteration.config.shares_network:
            return tuple(each.get("transformer", nnx.State({})) for each in states)
        return states

    def prompt_batches(self, start: int) -> Iterator[PromptBatch]:
        """The prompts of each iteration from `start` on, those to be answered several times beside each other."""
        config = self.iteration.config
        for batch in batches(self.prompts, config.prompts_per_rollout, seed=self.iteration.seed, start_step=start):
            yield self.layout.spread(
                jax.tree.map(lambda leaf: np.repeat(leaf, config.samples_per_prompt, axis=0), batch)
            )

    def pretraining_batches(self, start: int) -> Iterator[SequenceBatch | None]:
        """The pretraining rows of each iteration from `start` on, or None for each."""
        if self.text is None:
            return repeat(None)
        return map(
            self.layout.spread, pretraining_batches(self.text, self.iteration.config, self.iteration.seed, start)
        )


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
    policy, learner, value = load_learning_models(config, bases, mesh)
    tokenizer = model_tokenizer(config.model.init_from, config.template, policy.config)
    judges = {"helpfulness": config.helpfulness, "safety": config.safety}
    reward_models = load_reward_models(
        judges, config.model.init_from, config.model.compute, mesh, bases, config.ensemble
    )
    frozen = FrozenModels(
        reference=place_model(load_transformer(config.model.init_from, config.model.compute, bases=bases), mesh),
        helpfulness=reward_models.get("helpfulness"),
        safety=reward_models.get("safety"),
    )
    if config.ppo.combine.kind == "lagrangian" and len(reward_models) < 2:
        raise UserError(
            "ppo.combine.kind is lagrangian, which needs a reward and a cost, but helpfulness or safety is not set",
            fix="set both to a reward model's folder.",
        )
    cost_value = place_model(load_cost_critic(config, bases), mesh) if config.ppo.needs_cost_critic else None
    optimizers = make_optimizers(config)
    keep_average = config.ppo.average_decay is not None
    learners = begin_learning(learner, value, optimizers, cost_value=cost_value, keep_average=keep_average)

    train, held_out = training_and_held_out(load_prompts, config.data, config.evaluation_data, config.seed)
    limits = {
        "max_length": config.max_prompt_length,
        "too_long": config.too_long,
        "sequence_parts": parts_of("time", mesh),
    }
    train, prompts = prompt_batch(train, tokenizer, **limits)
    contexts = {"policy": policy.config} | ({} if value is None else {"value model": value.transformer.config})
    contexts |= {f"{name} model": model.transformer.config for name, model in reward_models.items()}
    check_context("ppo.response_length", config.ppo.response_length, prompts, contexts)
    if len(train) < config.ppo.prompts_per_rollout:
        several = f" for {config.ppo.prompts_per_rollout} prompts" if config.ppo.samples_per_prompt > 1 else ""
        raise UserError(
            f"ppo.rollout_batch_size is {config.ppo.rollout_batch_size}{several}, but there are only {len(train)} prompts",
            fix="lower ppo.rollout_batch_size or use more prompts.",
        )
    layout = batch_layout(mesh, config.ppo.rollout_batch_size, "ppo.rollout_batch_size")
    check_rows_divide("ppo.minibatch_size", config.ppo.minibatch_size, mesh, micro_batches=config.ppo.micro_batches)
    check_time_divides("ppo.response_length", config.ppo.response_length, mesh)
    if config.ppo.pretraining_coefficient:
        check_time_divides("pretraining_row_length", config.pretraining_row_length, mesh)
    programs = Programs(
        learner,
        value,
        frozen,
        optimizers,
        cost_value=cost_value,
        end_token=tokenizer.eos_token_id,
        pad_token=tokenizer.pad_token_id,
        config=config.ppo,
    )
    for name, model in (("policy", learner), ("value model", value), ("cost critic", cost_value)):
        if model is not None:
            say(f"{name}: {describe_trained(model)}")
    say(programs.roles.describe())
    held_out_check = None
    if config.unseen_reward is not None and not (held_out and config.evaluate_every):
        raise UserError(
            "unseen_reward is set, but there are no checks on held-out prompts for it to score",
            fix="set evaluation_data.path or data.held_out, and evaluate_every above 0, or unseen_reward to null.",
        )
    if held_out and config.evaluate_every:
        unseen = load_reward_models(
            {UNSEEN_REWARD: config.unseen_reward},
            config.model.init_from,
            config.model.compute,
            mesh,
            bases,
            config.ensemble,
        )
        contexts |= {name: model.transformer.config for name, model in unseen.items()}
        held_out, held_out_batch = prompt_batch(held_out[: config.evaluation_prompts], tokenizer, **limits)
        check_context("ppo.response_length", config.ppo.response_length, held_out_batch, contexts)
        sampler = ScoredSampler(
            policy,
            tokenizer,
            sampling=config.ppo.sampling,
            max_new_tokens=config.ppo.response_length,
            reference=frozen.reference,
            reward_models=frozen.reward_models | unseen,
            combine=config.ppo.combine,
            batch_size=config.ppo.rollout_batch_size,
            layout=layout,
            refill=mesh.size == 1,
            minimum_new_tokens=config.ppo.minimum_length,
            stop_strings=config.ppo.stop_strings,
            stop_minimum=config.ppo.stop_minimum,
            rollout_weights=config.ppo.rollout_weights,
        )
        held_out_check = HeldOutCheck(sampler, held_out, held_out_batch, config.seed)
    return Job(
        state=begin(learners, config.ppo),
        iteration=Iteration(
            programs,
            train,
            tokenizer,
            rules,
            config.ppo,
            config.seed,
            config.sampled_rows,
            config.max_skipped_steps,
            layout,
        ),
        prompts=prompts,
        text=pretraining_rows(
            config.pretraining_data, config.pretraining_row_length, config.ppo, tokenizer, policy.config
        ),
        layout=layout,
        held_out_check=held_out_check,
        tokenizer=tokenizer,
        policy=nnx.graphdef(policy),
        saves_average=config.saved_policy == "average",
    )


def load_learning_models(
    config: Config, bases: Bases, mesh: Mesh
) -> tuple[Transformer, Transformer | SequenceScorer, SequenceScorer | None]:
    """The policy, the model that learns as the policy, and a value model of its own where there is one.

    What learns is the policy itself, or, where the value model is a head on it, both in one.
    """
    policy = load_policy(config.model, config.seed, bases)
    if config.ppo.shares_network:
        both = place_model(SequenceScorer(policy, rngs=nnx.Rngs(config.seed), head_init="zeros"), mesh)
        return both.transformer, both, None
    policy = place_model(policy, mesh)
    value = place_model(load_value_model(config, bases), mesh) if config.ppo.needs_value_model else None
    return policy, policy, value


def load_value_model(config: Config, bases: Bases) -> SequenceScorer:
    """The value model: a reward model's weights where there is one (2203.02155, appendix C.4), else the policy with a zero head.

    A folder of a language model gives a zero head too, so that values start at 0, as in the code of 1909.08593.
    With `model.adapter` it gets an adapter of its own, unless the folder it starts from has one, which is trained on.
    """
    named = config.value_from or config.helpfulness or config.safety
    folder = named and member_folders(named)[0]
    if config.value_from is not None:
        require_same_tokenizer(
            tokenizer_folder(config.model.init_from), tokenizer_folder(config.value_from), "value_from"
        )
    if folder is not None:
        adapter = None if holds_adapter(folder) else config.model.adapter
        source = replace(config.model, init_from=folder, adapter=adapter)
        return load_scorer_to_train(source, config.seed, bases, head_init="zeros")
    return SequenceScorer(load_policy(config.model, config.seed, bases), rngs=nnx.Rngs(config.seed), head_init="zeros")


def load_cost_critic(config: Config, bases: Bases) -> SequenceScorer:
    """The value model of the cost: the safety model with its scores negated, as the cost is the safety score negated.

    It is a learner like the value model, with an adapter of its own where `load_value_model` gives one.
    """
    critic = load_value_model(replace(config, value_from=member_folders(config.safety)[0]), bases)
    critic.scale.set_value(-critic.scale[...])
    return critic


def make_optimizers(config: Config) -> Optimizers:
    """Optimizers of policy and value models; their schedules count gradient steps, several an iteration."""
    steps = config.ppo.epochs * config.ppo.minibatches
    policy_iterations = config.iterations - config.ppo.value_warmup_iterations
    return (
        make_optimizer(config.policy_optimizer, policy_iterations * steps),
        make_optimizer(config.value_optimizer, config.iterations * steps),
    )
