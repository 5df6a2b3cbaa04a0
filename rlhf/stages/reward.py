"""Training one reward model on comparisons (2203.02155, section 3.5; margins and one model a kind of preference: 2307.09288).

The model is the SFT policy with a scalar head, read at the answer's last token. The loss knows only differences of scores, so after
training the scores are shifted: demonstrations score 0 on average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf.data.batches import PairBatch
from rlhf.data.lengths import TooLong, encode_comparisons, encode_demonstrations
from rlhf.data.packing import round_up
from rlhf.data.pair_packing import pack_rankings, ranking_length, rankings_of
from rlhf.data.records import Comparison
from rlhf.data.sources import DataConfig, load_comparisons, load_demonstrations
from rlhf.errors import UserError
from rlhf.evaluation.reward_model import evaluate_comparisons, score_comparisons
from rlhf.losses.preference import pairwise_accuracy, pairwise_loss
from rlhf.models.heads import SequenceScorer
from rlhf.models.source import ModelSource, load_scorer_to_train, save_model
from rlhf.parallel.mesh import MeshConfig
from rlhf.rewards.text import score_token_sequences
from rlhf.stages.folder import close_folder, open_folder, write_json
from rlhf.stages.setup import check_row_length, model_tokenizer, say_left_out, training_and_held_out
from rlhf.stages.training import train
from rlhf.tracking.console import say
from rlhf.tracking.tracker import TrackingConfig
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig

ROW_LENGTH_MULTIPLE = 32


@dataclass(frozen=True)
class Config:
    """Train a reward model on comparisons.

    Attributes:
        output: folder to write.
        model: weights to start from, usually the SFT policy's; their folder also holds the tokenizer.
        template: chat template; "tokenizer" keeps the one that came with the model.
        data: comparisons.
        evaluation_data: held-out comparisons; null for `data.held_out` of the data.
        demonstrations: after training the scores are shifted so that these have mean 0; null for the preferred answers of the data.
        max_length: longest prompt and answer together, in tokens.
        row_length: tokens of a row, into which comparisons are packed; null for what the longest
            ranking needs.
        too_long: refuse a longer comparison, or leave it out and count it.
        use_margins: ask for the score difference that the data gives (2307.09288, equation 2).
        centering: strength of the pull of both scores towards 0 (2312.09244).
        optimizer: AdamW and its schedule.
        loop: steps, batch size (in rows), evaluation, checkpoints.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/reward"
    model: ModelSource = field(default_factory=ModelSource)
    template: str = "tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    evaluation_data: DataConfig | None = None
    demonstrations: DataConfig | None = None
    max_length: int = 512
    row_length: int | None = None
    too_long: TooLong = "error"
    use_margins: bool = True
    centering: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0


def comparison_loss(centering: float):
    """The loss function on a batch of comparisons: all prompts and answers go through the network together, once each."""

    def loss(scorer: SequenceScorer, batch: PairBatch):
        scores = scorer(batch.tokens, batch.segment_ids, batch.positions, batch.branch_ids)
        chosen = jnp.take_along_axis(scores, batch.chosen_end, axis=1)
        rejected = jnp.take_along_axis(scores, batch.rejected_end, axis=1)
        total, weight = pairwise_loss(chosen, rejected, margin=batch.margin, centering=centering, weight=batch.weight)
        difference = jnp.where(batch.weight > 0, chosen - rejected, 0.0)
        metrics = {
            "accuracy": pairwise_accuracy(chosen, rejected, weight=batch.weight),
            "score_difference": (jnp.sum(batch.weight * difference), weight),
        }
        return total, weight, metrics

    return loss


def run(config: Config, comparisons: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Trains the reward model, normalises it, evaluates it on held-out comparisons and writes its folder.

    Args:
        config: the stage's settings.
        comparisons: records in any of the recognised layouts, instead of those that `config.data` names; `config.evaluation_data`
            is read from where it says.

    Returns:
        The summary: losses, and accuracy, calibration and the like under "evaluation".
    """
    folder = open_folder(config)

    def load(data: DataConfig) -> list[Comparison]:
        return load_comparisons(data, rows=comparisons if data is config.data else None)

    preferences, held_out = training_and_held_out(load, config.data, config.evaluation_data, config.seed)
    if config.model.init_from is None:
        raise UserError("model.init_from is not set", fix="set it to the folder of the SFT policy.")
    scorer = load_scorer_to_train(config.model, config.seed)
    tokenizer = model_tokenizer(config.model.init_from, config.template, scorer.transformer.config)
    check_row_length("max_length", config.max_length, scorer.transformer.config)

    def pairs(records: Sequence[Comparison]) -> tuple[list[Comparison], PairBatch]:
        if not config.use_margins:
            records = [replace(comparison, margin=None) for comparison in records]
        encoded, left_out = encode_comparisons(
            tokenizer, records, max_length=config.max_length, too_long=config.too_long
        )
        say_left_out(left_out, "comparisons", f"max_length, {config.max_length} tokens")
        rankings = rankings_of(encoded)
        longest = max(map(ranking_length, rankings))
        if config.row_length is not None and config.row_length < longest:
            raise UserError(
                f"row_length is {config.row_length}, but the answers to a prompt take {longest} tokens together",
                fix=f"set row_length to {longest} or more, or to null.",
            )
        row_length = config.row_length or round_up(longest, ROW_LENGTH_MULTIPLE)
        say(f"{len(encoded):,} comparisons from {len(rankings):,} records, in rows of {row_length} tokens")
        return [records[pair.index] for pair in encoded], pack_rankings(
            rankings, row_length, pad_token=tokenizer.pad_token_id
        )

    preferences, train_pairs = pairs(preferences)
    held_out, held_out_pairs = pairs(held_out) if held_out else ([], None)
    result = train(config, folder, scorer, comparison_loss(config.centering), train_pairs, held_out_pairs)
    scorer = normalised(result.model, tokenizer, config, preferences)
    save_model(scorer, folder.model, tokenizer, config.model.init_from)
    summary = dict(result.summary)
    if held_out:
        chosen, rejected = score_comparisons(scorer, tokenizer, held_out, config.loop.batch_size)
        summary["evaluation"] = evaluate_comparisons(chosen, rejected, held_out, config.seed)
        write_json(folder.path / "evaluation.json", summary["evaluation"])
        report_accuracy(summary["evaluation"])
    return close_folder(folder, summary)


def normalised(scorer: SequenceScorer, tokenizer, config: Config, preferences: Sequence[Comparison]) -> SequenceScorer:
    """Shifts the scores so that demonstrations have mean 0; the unit of the scores (log-odds of preference) stays."""
    if config.demonstrations is not None:
        records = load_demonstrations(config.demonstrations)
        encoded, _ = encode_demonstrations(tokenizer, records, max_length=config.max_length, too_long="skip")
        sequences = [tokens for tokens, _ in encoded]
    else:
        encoded, _ = encode_comparisons(tokenizer, preferences, max_length=config.max_length, too_long="skip")
        sequences = [np.concatenate([pair.prompt, pair.chosen]) for pair in encoded]
    scores = score_token_sequences(scorer, sequences, config.loop.batch_size)
    scorer.shift[...] = scorer.shift[...] + float(np.mean(scores)) / scorer.scale[...]
    say(f"Scores shifted by {-float(np.mean(scores)):+.3f}, so that {len(sequences):,} demonstrations have mean 0")
    return scorer


def report_accuracy(evaluation: Mapping[str, Any]) -> None:
    """Prints held-out accuracy, with the best possible one where the labels' noise is known."""
    accuracy = evaluation["accuracy"]
    line = f"Held-out accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], ECE {evaluation['ece']:.3f}"
    if "accuracy_limit" in evaluation:
        expected = evaluation["expected_accuracy"]["value"]
        line += f"; on fresh labels {expected:.3f} of at most {evaluation['accuracy_limit']:.3f}, the limit that their noise sets"
    say(line)
