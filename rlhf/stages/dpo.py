"""Training a policy on comparisons or labelled answers directly: no reward model, no sampling (DPO, 2305.18290; IPO, KTO).

The policy's log-ratio to the reference, which is the policy that training starts from, stands for the reward. The reference's
log-probabilities are computed once, before the first step, by the function that trains: so every log-ratio is 0 at step 0.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from rlhf.data.answer_rows import comparison_rows, labelled_rows
from rlhf.data.batches import AnswerBatch
from rlhf.data.encoding import encode_prompt, encode_response
from rlhf.data.lengths import TooLong, encode_comparisons
from rlhf.data.loader import batches, fill_up
from rlhf.data.packing import round_up
from rlhf.data.sources import DataConfig, load_comparisons, load_labelled_answers
from rlhf.errors import UserError, require_positive
from rlhf.losses.direct_preference import (
    direct_preference_loss,
    identity_preference_loss,
    prospect_loss,
    prospect_reference_point,
)
from rlhf.losses.preference import pairwise_accuracy
from rlhf.models.source import ModelSource, load_policy, save_model
from rlhf.models.transformer import Transformer
from rlhf.parallel.host_arrays import BatchLayout, fetch
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.table import by_its_rules
from rlhf.stages.folder import close_folder, open_folder
from rlhf.stages.setup import (
    batch_layout,
    check_row_length,
    model_tokenizer,
    place_model,
    say_left_out,
    training_and_held_out,
)
from rlhf.stages.training import train
from rlhf.tracking.console import say
from rlhf.tracking.tracker import TrackingConfig
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig

ROW_LENGTH_MULTIPLE = 8


@dataclass(frozen=True)
class Config:
    """Train a policy on comparisons or labelled answers.

    Attributes:
        output: folder to write.
        model: the SFT policy: start of the policy, and the reference.
        template: chat template; "tokenizer" keeps the one that came with the model.
        data: comparisons; for kto, labelled answers too.
        evaluation_data: held-out records; null for `data.held_out` of the data.
        max_length: longest prompt and answer together, in tokens.
        too_long: refuse a longer record, or leave it out and count it.
        loss: "dpo" (2305.18290), "ipo" (2310.12036), or "kto" (2402.01306), which learns from single answers.
        beta: how strongly the policy is held to the reference; of ipo, the paper's τ.
        label_smoothing: of dpo: share of the labels taken to be wrong.
        desirable_weight: of kto: weight of good answers.
        undesirable_weight: of kto: weight of bad answers.
        logits_chunk: positions whose logits are held at once; null for all.
        optimizer: AdamW and its schedule.
        loop: steps, batch size, evaluation, checkpoints.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/dpo"
    model: ModelSource = field(default_factory=ModelSource)
    template: str = "tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    evaluation_data: DataConfig | None = None
    max_length: int = 512
    too_long: TooLong = "error"
    loss: Literal["dpo", "ipo", "kto"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    logits_chunk: int | None = None
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6, weight_decay=0.0))
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "max_length", "beta", "desirable_weight", "undesirable_weight")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"label_smoothing is {self.label_smoothing}: with half of the labels wrong there is nothing to learn",
                fix="choose from 0 to below 0.5.",
            )
        if self.label_smoothing and self.loss != "dpo":
            raise UserError(
                f"label_smoothing is {self.label_smoothing}, but {self.loss} knows none",
                fix="set it to 0, or loss to dpo.",
            )


@by_its_rules
def run(config: Config) -> dict[str, Any]:
    """Trains the policy and writes its folder; returns the summary."""
    folder = open_folder(config)
    load = load_labelled_answers if config.loss == "kto" else load_comparisons
    records, held_out = training_and_held_out(load, config.data, config.evaluation_data, config.seed)
    policy = load_policy(config.model, config.seed)
    tokenizer = model_tokenizer(config.model.init_from, config.template, policy.config)
    check_row_length("max_length", config.max_length, policy.config)
    make_rows = answer_rows if config.loss == "kto" else pair_rows
    rows = make_rows(records, tokenizer, config)
    held_out_rows = make_rows(held_out, tokenizer, config) if held_out else None

    mesh = make_mesh(config.mesh)
    layout = batch_layout(mesh, config.loop.batch_size, "loop.batch_size")
    policy = place_model(policy, mesh)
    say(
        f"{len(rows.tokens):,} rows of twice {rows.tokens.shape[2]} tokens; log-probabilities of the reference come first"
    )
    with jax.set_mesh(mesh):
        rows, held_out_rows = (
            part and with_reference(policy, part, config.loop.batch_size, layout, config.logits_chunk)
            for part in (rows, held_out_rows)
        )
    result = train(config, folder, policy, preference_loss(config), rows, held_out_rows)
    save_model(result.model, folder.model, tokenizer, config.model.init_from)
    return close_folder(folder, result.summary)


def pair_rows(comparisons, tokenizer, config: Config) -> AnswerBatch:
    """Comparisons as rows, those that are too long refused or left out."""
    pairs, left_out = encode_comparisons(tokenizer, comparisons, max_length=config.max_length, too_long=config.too_long)
    say_left_out(left_out, "comparisons", f"max_length, {config.max_length} tokens")
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    return comparison_rows(pairs, round_up(longest, ROW_LENGTH_MULTIPLE), pad_token=tokenizer.pad_token_id)


def answer_rows(demonstrations, tokenizer, config: Config) -> AnswerBatch:
    """Labelled answers as rows, those that are too long refused or left out."""
    answers, labels = [], []
    for record in demonstrations:
        *prompt, answer = record.messages
        tokens = encode_prompt(tokenizer, prompt), encode_response(tokenizer, prompt, answer.content)
        if sum(map(len, tokens)) <= config.max_length:
            answers.append(tokens)
            labels.append(bool(record.metadata["label"]))
        elif config.too_long == "error":
            raise UserError(
                f"{record.origin}: {sum(map(len, tokens))} tokens, but max_length is {config.max_length}",
                fix='raise max_length, or set too_long to "skip" to leave such records out.',
            )
    say_left_out(len(demonstrations) - len(answers), "answers", f"max_length, {config.max_length} tokens")
    if len(answers) < 2:
        raise UserError(
            f"{len(answers)} answers are not longer than max_length, {config.max_length}", fix="raise max_length."
        )
    longest = max(len(prompt) + len(answer) for prompt, answer in answers)
    return labelled_rows(answers, labels, round_up(longest, ROW_LENGTH_MULTIPLE), pad_token=tokenizer.pad_token_id)


def answer_log_probs(policy: Transformer, batch: AnswerBatch, logits_chunk: int | None) -> Float[Array, "batch 2"]:
    """Log-probability of each answer, in nats, summed over its tokens."""
    tokens, segment_ids, answer_mask = (
        array.reshape(-1, array.shape[-1]) for array in (batch.tokens, batch.segment_ids, batch.answer_mask)
    )
    hidden = policy(tokens, segment_ids)
    log_probs = policy.token_log_probs(hidden[:, :-1], tokens[:, 1:], chunk_size=logits_chunk)
    return jnp.where(answer_mask[:, 1:], log_probs, 0.0).sum(axis=1).reshape(-1, 2)


def with_reference(
    policy: Transformer,
    rows: AnswerBatch,
    batch_size: int,
    layout: BatchLayout,
    logits_chunk: int | None,
) -> AnswerBatch:
    """The rows with the log-probabilities that the policy, before it is trained, gives to their answers."""
    definition, state = nnx.split(policy)

    @jax.jit
    def log_probs(state, batch):
        return answer_log_probs(nnx.merge(definition, state), batch, logits_chunk)

    parts = [
        fetch(log_probs(state, layout.spread(batch)))
        for batch in batches(fill_up(rows, batch_size), batch_size, seed=0, shuffle=False, epochs=1)
    ]
    return replace(rows, reference_log_probs=np.concatenate(parts)[: len(rows.tokens)])


def preference_loss(config: Config):
    """The loss function on a batch of answers."""

    def loss(policy: Transformer, batch: AnswerBatch):
        log_ratios = answer_log_probs(policy, batch, config.logits_chunk) - batch.reference_log_probs
        first, second = log_ratios[:, 0], log_ratios[:, 1]
        weight = batch.weight
        if config.loss == "kto":
            point = prospect_reference_point(second, weight)
            total, divisor = prospect_loss(
                first,
                point,
                batch.desirable,
                weight,
                beta=config.beta,
                desirable_weight=config.desirable_weight,
                undesirable_weight=config.undesirable_weight,
            )
            good, bad = (jnp.where(batch.desirable == label, weight, 0.0) for label in (True, False))
            metrics = {
                "desirable_reward": (jnp.sum(good * config.beta * first), good.sum()),
                "undesirable_reward": (jnp.sum(bad * config.beta * first), bad.sum()),
                "reference_point": (point * divisor, divisor),
            }
            return total, divisor, metrics
        if config.loss == "dpo":
            total, divisor = direct_preference_loss(
                first, second, weight, beta=config.beta, label_smoothing=config.label_smoothing
            )
        else:
            total, divisor = identity_preference_loss(first, second, weight, beta=config.beta)
        rewards = {"chosen_reward": first, "rejected_reward": second, "reward_margin": first - second}
        metrics = {name: (jnp.sum(weight * config.beta * value), divisor) for name, value in rewards.items()}
        metrics["accuracy"] = pairwise_accuracy(first, second, weight=weight)
        return total, divisor, metrics

    return loss
