"""Compiles a stage's programs for a TPU slice that is not there, and says whether they fit and how fast they can be.

    rlhf compile --topology v5e:4x4 --stage sft --config experiments/x/sft.yaml [--json]
    rlhf compile --topology h100:8 --stage sft --config experiments/x/sft.yaml [--json]

GPUs are estimated: their compiler needs one, so the programs are divided over as many virtual CPU devices and compiled for those.

The other options are those of the stage (pretrain, sft, reward, ppo, best-of-n or evaluate), whose configuration is read as it
is, with more allowed: weights may be missing. A model can be given by its architecture alone, with an adapter too, and the reward
models by a file that describes one (`--helpfulness configs/models/llama2-7b.yaml`).

Nothing is loaded but configurations; programs are made by the same functions as in the stage itself, of shapes without values.
Times are lower bounds from published figures, with arithmetic, memory and network at the same time and at full speed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import lcm
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rlhf.compilation.ahead import Estimate, estimate
from rlhf.compilation.report import as_json, as_text
from rlhf.data.batches import PairBatch, PromptBatch, SequenceBatch
from rlhf.data.packing import round_up
from rlhf.errors import UserError
from rlhf.generation.rollout import join
from rlhf.models.ensemble import EnsembleScorer
from rlhf.models.heads import SequenceScorer
from rlhf.models.kernels.stand_in import compiling_for_gpus
from rlhf.models.partition import trained
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import make_mesh
from rlhf.parallel.rules import batch_sharding, parts_of
from rlhf.parallel.table import rules_changed
from rlhf.parallel.topology import Topology, describe_topology
from rlhf.rewards.objective import comparison_loss
from rlhf.rl.programs import FrozenModels, Programs
from rlhf.rl.update import UpdateInputs, outline_learning
from rlhf.stages import best_of_n, evaluate, ppo, pretrain, reward, sft
from rlhf.stages.outlines import Outlines
from rlhf.stages.ppo_setup import make_optimizers
from rlhf.stages.sampler import configured_sampler
from rlhf.stages.setup import PROMPT_LENGTH_MULTIPLE, check_rows_divide, check_time_divides
from rlhf.tracking.console import say
from rlhf.training.next_token import next_token_loss
from rlhf.training.optimizer import make_optimizer
from rlhf.training.state import outline_train_state
from rlhf.training.step import LossFunction, TrainStep

STAGES = {
    "pretrain": pretrain.Config,
    "sft": sft.Config,
    "reward": reward.Config,
    "ppo": ppo.Config,
    "best-of-n": best_of_n.Config,
    "evaluate": evaluate.Config,
}
PAIRS_A_ROW = 8  # how many comparisons a row holds depends on the data, and next to nothing on it
SUPERVISED_KNOBS = {
    "arguments": "more of mesh.fsdp or mesh.tensor, or model.adapter with model.base_storage = int8 or nf4.",
    "temporaries": "loop.micro_batches (a multiple of what it is), model.compute.remat = full, logits_chunk, a smaller"
    " loop.batch_size or row length, mesh.sequence or mesh.tensor.",
}
PPO_KNOBS = {
    "arguments": "more of mesh.fsdp or mesh.tensor, or model.adapter, with which all roles share one base.",
    "temporaries": "ppo.micro_batches, ppo.score_micro_batches, model.compute.remat = full, ppo.logits_chunk, a smaller"
    " ppo.rollout_batch_size or ppo.response_length, mesh.tensor.",
}
SAMPLING_KNOBS = {
    "arguments": "more of mesh.fsdp or mesh.tensor, or compute.parameter_dtype = bfloat16.",
    "temporaries": "a smaller batch_size or response_length, or more of mesh.fsdp or mesh.tensor.",
}


@dataclass(frozen=True)
class Options:
    """What to compile; all other keys are those of the stage.

    Attributes:
        topology: slice: generation, colon, chips along each axis, as v5e:4x4 or v5p:4x4x4; or GPU, colon, how many, as h100:8.
        stage: whose programs.
        json: print JSON instead of text.
    """

    topology: str
    stage: str = "sft"
    json: bool = False


@dataclass(frozen=True)
class About:
    """The stage that is compiled, in the form in which the command line takes a stage.

    Attributes:
        Config: its configuration.
        run: compiles it.
        __doc__: what the command line says of the command.
    """

    Config: type
    run: Callable[[Any], list[Estimate]]
    __doc__: str


def about(words: Sequence[str]) -> tuple[About, list[str]]:
    """Reads this command's own options: --topology, --stage, --json; returns the words that are left for the stage.

    Raises:
        UserError: an option is missing or has no such value.
    """
    own, rest = {"stage": "sft"}, []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--json":
            own["json"] = True
        elif name in ("topology", "stage") and word.startswith("--"):
            own[name] = value if equals else left.pop(0) if left else ""
        else:
            rest.append(word)
    asks_for_help = any(word in ("-h", "--help", "--print_config", "--print-config") for word in rest)
    if not own.get("topology") and not asks_for_help:
        raise UserError("--topology is not given", fix="say for what, as in --topology v5e:4x4 or --topology h100:8.")
    if own["stage"] not in STAGES:
        raise UserError(f"--stage is {own['stage']!r}", fix=f"choose one of {', '.join(STAGES)}.")
    options = Options(**{"topology": "", **own})
    return About(STAGES[options.stage], partial(run, options), __doc__), rest


def run(options: Options, config: Any) -> list[Estimate]:
    """Compiles the programs of a stage, prints what they cost and returns it.

    Args:
        options: what to compile, and for what.
        config: of the stage.

    Raises:
        UserError: libtpu is not installed, there is no such slice, or the configuration does not fit it.
    """
    topology = describe_topology(options.topology)
    mesh = make_mesh(config.mesh, topology.devices)
    if topology.is_stood_in_for:
        config = _in_half_precision(config)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    if not options.json:
        devices = "GPUs" if topology.is_stood_in_for else "chips"
        say(f"{options.stage} on {topology.name}, {len(topology.devices)} {devices}: mesh {axes or 'of one device'}")
    programs, knobs = _programs_of(options.stage)
    platform = compiling_for_gpus() if topology.is_stood_in_for else nullcontext()
    with rules_changed(config.mesh.rules), jax.set_mesh(mesh), platform:
        estimates = list(programs(config, mesh, topology))
    if options.json:
        print(json.dumps({"stage": options.stage, **as_json(estimates, knobs, topology, mesh)}, indent=2))
    else:
        print(as_text(estimates, knobs))
    return estimates


def _programs_of(stage: str) -> tuple[Callable[[Any, Mesh, Topology], Iterator[Estimate]], dict[str, str]]:
    """What makes a stage's programs, and what to turn where they do not fit."""
    if stage == "ppo":
        return ppo_programs, PPO_KNOBS
    if stage in ("best-of-n", "evaluate"):
        return sampling_programs, SAMPLING_KNOBS
    return supervised_programs, SUPERVISED_KNOBS


def _in_half_precision(config: Any) -> Any:
    """The configuration with float16 for bfloat16, which is as large: a CPU's compiler would make 32-bit numbers of the latter."""
    if not hasattr(config, "compute"):
        return replace(config, model=_in_half_precision(config.model))
    dtypes = {
        name: getattr(config.compute, name).replace("bfloat16", "float16") for name in ("dtype", "parameter_dtype")
    }
    return replace(config, compute=replace(config.compute, **dtypes))


def supervised_programs(config: Any, mesh: Mesh, topology: Topology) -> Iterator[Estimate]:
    """The train step of pretraining, SFT or a reward model."""
    outlines = Outlines(mesh, config.model.compute, config.model.base_storage)
    check_rows_divide("loop.batch_size", config.loop.batch_size, mesh, micro_batches=config.loop.micro_batches)
    is_reward = isinstance(config, reward.Config)
    if is_reward:
        keeps = config.objective.language_weight > 0
        model = outlines.scorer_to_train(config.model, keep_output_matrix=keeps)
    else:
        model = outlines.policy(config.model)
    optimizer = make_optimizer(config.optimizer, config.loop.steps or 1)
    definition, state = outline_train_state(model, optimizer, trained(model), mesh)
    loss, batch = _loss_and_batch(config, mesh)
    check_time_divides("the length of a row", batch.tokens.shape[1], mesh)
    step = TrainStep(definition, loss, optimizer, config.loop.micro_batches)
    yield estimate("train step", step.lower(state, batch), topology)[0]


def _loss_and_batch(config: Any, mesh: Mesh) -> tuple[LossFunction, SequenceBatch | PairBatch]:
    rows = config.loop.batch_size
    if isinstance(config, reward.Config):
        length = config.row_length or round_up(config.max_length, reward.ROW_LENGTH_MULTIPLE)
        tokens, pairs = (rows, length), (rows, PAIRS_A_ROW)
        shapes = {
            "tokens": (tokens, jnp.int32),
            "segment_ids": (tokens, jnp.int32),
            "branch_ids": (tokens, jnp.int32),
            "positions": (tokens, jnp.int32),
            "chosen_end": (pairs, jnp.int32),
            "rejected_end": (pairs, jnp.int32),
            "margin": (pairs, jnp.float32),
            "weight": (pairs, jnp.float32),
        }
        return comparison_loss(config.centering, config.objective, logits_chunk=config.logits_chunk), PairBatch(
            **_on_mesh(shapes, mesh)
        )
    tokens = (rows, config.row_length if isinstance(config, pretrain.Config) else config.max_length)
    return next_token_loss(config.logits_chunk), SequenceBatch(**_on_mesh(_sequence_shapes(tokens), mesh))


def _sequence_shapes(tokens: tuple[int, int]) -> dict[str, tuple]:
    return {"tokens": (tokens, jnp.int32), "segment_ids": (tokens, jnp.int32), "loss_mask": (tokens, jnp.bool_)}


def ppo_programs(config: ppo.Config, mesh: Mesh, topology: Topology) -> Iterator[Estimate]:
    """Rollout, score and update; each is compiled for what the one before it returns."""
    outlines = Outlines(mesh, config.model.compute, config.model.base_storage)
    rows = config.ppo.rollout_batch_size
    check_rows_divide("ppo.rollout_batch_size", rows, mesh)
    check_rows_divide("ppo.minibatch_size", config.ppo.minibatch_size, mesh, micro_batches=config.ppo.micro_batches)
    check_time_divides("ppo.response_length", config.ppo.response_length, mesh)
    shared = config.ppo.shares_network
    policy = (
        outlines.scorer_to_train(config.model, keep_output_matrix=True) if shared else outlines.policy(config.model)
    )
    value, cost_value = (
        outlines.scorer_to_train(config.model) if needed else None
        for needed in (config.ppo.needs_value_model and not shared, config.ppo.needs_cost_critic)
    )
    judges = {name: getattr(config, name) for name in ("helpfulness", "safety")}
    frozen = FrozenModels(
        reference=outlines.reference(config.model),
        **{
            name: None if place is None else outlines.reward_model(place, config.model.adapter)
            for name, place in judges.items()
        },
    )
    optimizers = make_optimizers(config)
    programs = Programs(
        policy, value, frozen, optimizers, cost_value=cost_value, end_token=0, pad_token=0, config=config.ppo
    )
    keep_average = config.ppo.average_decay is not None
    learners = outline_learning(policy, value, optimizers, mesh, cost_value=cost_value, keep_average=keep_average)
    key = jax.eval_shape(lambda: jax.random.key(0))

    prompts = _prompts(rows, config.max_prompt_length, mesh)
    models = (learners, programs.roles.arrays)
    lowered = programs.lower_rollout(learners, prompts, key)
    result, compiled = estimate("rollout", lowered, topology, (models, prompts))
    yield result

    rollout = _returned(lowered, compiled)
    rule_scores, scalar = jax.ShapeDtypeStruct((rows,), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    multiplier = scalar if config.ppo.combine.kind == "lagrangian" else None
    lowered = programs.lower_score(learners, rollout, rule_scores, scalar, cost_multiplier=multiplier)
    result, compiled = estimate("score", lowered, topology, (models, rollout))
    yield result

    experience, inputs = _returned(lowered, compiled)[0], _update_inputs(config, mesh)
    lowered = programs.lower_update(learners, experience, key, inputs)
    yield estimate("update", lowered, topology, (models, experience, inputs))[0]


def _update_inputs(config: ppo.Config, mesh: Mesh) -> UpdateInputs:
    text = None
    if config.ppo.pretraining_coefficient:
        minibatches = config.ppo.epochs * config.ppo.minibatches
        tokens = (config.ppo.minibatch_size * config.ppo.pretraining_rows * minibatches, config.pretraining_row_length)
        text = SequenceBatch(**_on_mesh(_sequence_shapes(tokens), mesh))
    return UpdateInputs(
        train_policy=jax.ShapeDtypeStruct((), jnp.bool_) if config.ppo.value_warmup_iterations else None,
        kl_coefficient=jax.ShapeDtypeStruct((), jnp.float32) if config.ppo.kl.place == "loss" else None,
        pretraining=text,
    )


def sampling_programs(config: best_of_n.Config | evaluate.Config, mesh: Mesh, topology: Topology) -> Iterator[Estimate]:
    """Sampling a batch and scoring it. Of several policies to evaluate, the first; on one device, without refilling."""
    check_time_divides("response_length", config.response_length, mesh)
    policy, reference, judges = _models_that_sample(config, mesh)
    tokenizer = SimpleNamespace(eos_token_id=0, pad_token_id=0)
    sampler = configured_sampler(config, policy, tokenizer, mesh, reward_models=judges, reference=reference)
    prompts, states = _prompts(config.batch_size, config.max_prompt_length, mesh), (nnx.state(policy),)
    models = [nnx.state(model) for model in (policy, reference, *judges.values()) if model is not None]
    lowered = sampler.lower_sample(states, prompts, jax.eval_shape(lambda: jax.random.key(0)))
    yield estimate("sample", lowered, topology, (models, prompts))[0]
    if len(models) > 1:
        rollout = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
            jax.eval_shape(join, prompts, lowered.out_info),
        )
        yield estimate("score", sampler.lower_score(states, rollout), topology, (models, rollout))[0]


def _models_that_sample(
    config: best_of_n.Config | evaluate.Config, mesh: Mesh
) -> tuple[Transformer, Transformer | None, dict[str, SequenceScorer | EnsembleScorer]]:
    """Policy, reference and reward models."""
    reference, adapter = None, None
    if isinstance(config, best_of_n.Config):
        outlines = Outlines(mesh, config.model.compute, config.model.base_storage)
        policy, adapter = outlines.policy(config.model), config.model.adapter
    elif not config.policies:
        raise UserError("policies is empty", fix="name one, for example --policies='{sft: runs/demo/sft}'.")
    else:
        outlines = Outlines(mesh, config.compute)
        policy = outlines.described_policy(next(iter(config.policies.values())))
        reference = None if config.reference is None else outlines.described_policy(config.reference)
    places = {"helpfulness": config.helpfulness, "safety": config.safety}
    judges = {name: outlines.reward_model(place, adapter) for name, place in places.items() if place is not None}
    return policy, reference, judges


def _prompts(rows: int, longest: int, mesh: Mesh) -> PromptBatch:
    prompt = (rows, round_up(longest, lcm(PROMPT_LENGTH_MULTIPLE, parts_of("time", mesh))))
    shapes = {"tokens": (prompt, jnp.int32), "mask": (prompt, jnp.bool_), "is_safety": ((rows,), jnp.bool_)}
    return PromptBatch(**_on_mesh({**shapes, "index": ((rows,), jnp.int32)}, mesh))


def _on_mesh(shapes: dict[str, tuple], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}


def _returned(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled | None) -> Any:
    """The shapes that a program returns, laid out as it does; of one that does not fit, as the compiler likes."""
    if compiled is None:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lowered.out_info)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
        compiled.output_shardings,
    )
