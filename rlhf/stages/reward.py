"""Training one reward model on comparisons (2203.02155, section 3.5; margins and one model a kind of preference: 2307.09288).

The model is the SFT policy with a scalar head, read at the answer's last token. The loss knows only differences of scores, so after
training the scores are shifted: demonstrations score 0 on average (`rlhf.stages.reward_scale`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any, Literal

import jax

from rlhf.data.batches import PairBatch
from rlhf.data.held_out import split_held_out
from rlhf.data.labelled_pairs import LabelConfig, apply_labels
from rlhf.data.lengths import TooLong, encode_comparisons
from rlhf.data.packing import round_up
from rlhf.data.pair_packing import most_tokens_of_best, pack_rankings, ranking_length, rankings_of
from rlhf.data.records import TIE, Comparison
from rlhf.data.sources import DataConfig, load_comparisons
from rlhf.errors import UserError
from rlhf.evaluation.reward_model import evaluate_comparisons, score_comparisons
from rlhf.models.source import ModelSource, load_scorer_to_train, save_model
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import parts_of
from rlhf.parallel.table import by_its_rules
from rlhf.rewards.objective import ObjectiveConfig, comparison_loss
from rlhf.stages.folder import close_folder, open_folder, write_json
from rlhf.stages.reward_scale import calibrated, normalised, refuse_impossible_scale, without_ties
from rlhf.stages.setup import check_row_length, model_tokenizer, place_model, say_left_out, training_and_held_out
from rlhf.stages.training import train
from rlhf.tracking.console import say
from rlhf.tracking.tracker import TrackingConfig
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig

ROW_LENGTH_MULTIPLE = 32
SEED_OF_HALVES = 50


@dataclass(frozen=True)
class Config:
    """Train a reward model on comparisons.

    Attributes:
        output: folder to write.
        model: weights to start from, usually the SFT policy's; their folder also holds the tokenizer.
        template: chat template; "tokenizer" keeps the one that came with the model.
        data: comparisons.
        evaluation_data: held-out comparisons; null for `data.held_out` of the data.
        half: train on one half of the comparisons, divided by prompt, whatever the seed: "first" or "second"; null for all. Models
            of the two halves show how far a policy exploits one of them (`rlhf robustness`).
        demonstrations: after training the scores are shifted so that these have mean 0; null for the preferred answers of the data.
        max_length: longest prompt and answer together, in tokens.
        row_length: tokens of a row, into which comparisons are packed; null for what the longest
            ranking needs.
        too_long: refuse a longer comparison, or leave it out and count it.
        use_margins: ask for the score difference that the data gives (2307.09288, equation 2).
        labels: columns that say more of a comparison than which answer is preferred.
        objective: what the loss makes of such labels, and of doubt in them.
        centering: strength of the pull of both scores towards 0 (2312.09244).
        normalise: after training, bring the demonstrations' scores to mean 0, or to mean 0 and standard deviation 1, or neither.
        normalise_before: the same before training, so that the loss starts from scores of known size (1909.08593 has
            mean_and_std before and after); none starts from the head as it is.
        policy_samples: normalise on as many answers of the policy in `model.init_from`, in the place of the demonstrations.
        calibrate: divide the scores by the temperature that half of the held-out comparisons ask for, so that σ(difference) is
            right as often as it says; the other half is evaluated on.
        logits_chunk: positions whose logits are held at once, where `objective.language_weight` asks for logits; null for all.
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
    half: Literal["first", "second"] | None = None
    demonstrations: DataConfig | None = None
    max_length: int = 512
    row_length: int | None = None
    too_long: TooLong = "error"
    use_margins: bool = True
    labels: LabelConfig = field(default_factory=LabelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    centering: float = 0.0
    normalise: Literal["mean", "mean_and_std", "none"] = "mean"
    normalise_before: Literal["mean", "mean_and_std", "none"] = "none"
    policy_samples: int = 0
    calibrate: bool = False
    logits_chunk: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0

    def __post_init__(self):
        if self.policy_samples < 0:
            raise UserError(
                f"policy_samples is {self.policy_samples}", fix="set it to 0 for demonstrations, or to more."
            )
        if self.calibrate and self.normalise == "mean_and_std":
            raise UserError(
                "calibrate and normalise=mean_and_std both set the unit of the scores",
                fix="set normalise to mean for calibrated log-odds, or calibrate to false for standard deviation 1.",
            )
        if self.objective.safety_weight and self.normalise != "none":
            raise UserError(
                "objective.safety_weight makes scores the log-odds of being safe, which normalise would shift",
                fix="set normalise to none.",
            )
        if self.objective.safety_weight and not (self.labels.chosen_safe_column or self.labels.rejected_safe_column):
            raise UserError(
                "objective.safety_weight is set, but no column says which answers are safe",
                fix="set labels.chosen_safe_column or labels.rejected_safe_column.",
            )


@by_its_rules
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
        wants_ties = config.objective.ties != "drop"
        rows = comparisons if data is config.data else None
        records = apply_labels(config.labels, load_comparisons(data, rows, ties=wants_ties))
        return records if wants_ties else without_ties(records)

    preferences, held_out = training_and_held_out(load, config.data, config.evaluation_data, config.seed)
    if config.half is not None:
        preferences = split_held_out(preferences, 0.5, SEED_OF_HALVES)[config.half == "second"]
    if config.model.init_from is None:
        raise UserError("model.init_from is not set", fix="set it to the folder of the SFT policy.")
    scorer = load_scorer_to_train(config.model, config.seed, keep_output_matrix=config.objective.language_weight > 0)
    tokenizer = model_tokenizer(config.model.init_from, config.template, scorer.transformer.config)
    check_row_length("max_length", config.max_length, scorer.transformer.config)
    mesh = make_mesh(config.mesh)
    labelled = config.labels.says_more or any(pair.preference == TIE for pair in [*preferences, *held_out])

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
        row_length = config.row_length or round_up(longest, lcm(ROW_LENGTH_MULTIPLE, parts_of("time", mesh)))
        say(f"{len(encoded):,} comparisons from {len(rankings):,} records, in rows of {row_length} tokens")
        return [records[pair.index] for pair in encoded], pack_rankings(
            rankings, row_length, pad_token=tokenizer.pad_token_id, labelled=labelled
        )

    preferences, train_pairs = pairs(preferences)
    held_out, held_out_pairs = pairs(held_out) if held_out else ([], None)
    refuse_impossible_scale(config, held_out)
    most_tokens = max(most_tokens_of_best(rows) for rows in (train_pairs, held_out_pairs) if rows is not None)
    loss = comparison_loss(
        config.centering, config.objective, logits_chunk=config.logits_chunk, most_tokens=most_tokens
    )
    if config.normalise_before != "none":
        scorer = place_model(scorer, mesh)
        with jax.set_mesh(mesh):
            scorer = normalised(scorer, tokenizer, config, preferences, key="normalise_before")
    result = train(config, folder, scorer, loss, train_pairs, held_out_pairs)
    summary = dict(result.summary)
    held_out = without_ties(held_out)
    with jax.set_mesh(mesh):
        scorer = normalised(result.model, tokenizer, config, preferences)
        if config.calibrate:
            held_out, summary["calibration"] = calibrated(scorer, tokenizer, config, held_out)
        if held_out:
            chosen, rejected = score_comparisons(scorer, tokenizer, held_out, config.loop.batch_size)
    save_model(scorer, folder.model, tokenizer, config.model.init_from)
    if held_out:
        summary["evaluation"] = evaluate_comparisons(chosen, rejected, held_out, config.seed)
        write_json(folder.path / "evaluation.json", summary["evaluation"])
        report_accuracy(summary["evaluation"])
    return close_folder(folder, summary)


def report_accuracy(evaluation: Mapping[str, Any]) -> None:
    """Prints held-out accuracy, with the best possible one where the labels' noise is known."""
    accuracy = evaluation["accuracy"]
    line = f"Held-out accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], ECE {evaluation['ece']:.3f}"
    if "accuracy_limit" in evaluation:
        expected = evaluation["expected_accuracy"]["value"]
        line += f"; on fresh labels {expected:.3f} of at most {evaluation['accuracy_limit']:.3f}, the limit that their noise sets"
    say(line)
