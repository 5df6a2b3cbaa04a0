"""Supervised fine-tuning on demonstrations: the loss is on what the assistant says (2203.02155, section 3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.batches import SequenceBatch
from rlhf.data.lengths import TooLong, encode_demonstrations
from rlhf.data.packing import pack_sequences, pad_sequences
from rlhf.data.records import Demonstration
from rlhf.data.sources import DataConfig, load_demonstrations
from rlhf.models.source import ModelSource, load_policy
from rlhf.parallel.mesh import MeshConfig
from rlhf.parallel.table import by_its_rules
from rlhf.stages.folder import open_folder
from rlhf.stages.language_model import train_language_model
from rlhf.stages.setup import check_row_length, model_tokenizer, say_left_out, training_and_held_out
from rlhf.tracking.tracker import TrackingConfig
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Config:
    """Fine-tune a model on demonstrations.

    Attributes:
        output: folder to write.
        model: weights to start from; their folder also holds the tokenizer.
        template: chat template; "tokenizer" keeps the one that came with the model.
        data: demonstrations, or comparisons of which the preferred answers are taken.
        evaluation_data: held-out demonstrations; null for `data.held_out` of the data.
        max_length: longest dialogue in tokens, and the length of a row.
        too_long: refuse a longer dialogue, or leave it out and count it.
        packing: put several dialogues into a row; they do not see each other.
        logits_chunk: positions whose logits are held at once; null for all.
        optimizer: AdamW and its schedule.
        loop: steps, batch size, evaluation, checkpoints.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/sft"
    model: ModelSource = field(default_factory=ModelSource)
    template: str = "user_ai"
    data: DataConfig = field(default_factory=DataConfig)
    evaluation_data: DataConfig | None = None
    max_length: int = 512
    too_long: TooLong = "error"
    packing: bool = True
    logits_chunk: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0


@by_its_rules
def run(config: Config) -> dict[str, Any]:
    """Trains on the demonstrations and writes the model's folder; returns the summary."""
    folder = open_folder(config)
    train, held_out = training_and_held_out(load_demonstrations, config.data, config.evaluation_data, config.seed)
    model = load_policy(config.model, config.seed)
    tokenizer = model_tokenizer(config.model.init_from, config.template, model.config)
    check_row_length("max_length", config.max_length, model.config)

    def rows(demonstrations: Sequence[Demonstration]) -> SequenceBatch:
        encoded, left_out = encode_demonstrations(
            tokenizer, demonstrations, max_length=config.max_length, too_long=config.too_long
        )
        say_left_out(left_out, "demonstrations", f"max_length, {config.max_length} tokens")
        return (pack_sequences if config.packing else pad_sequences)(encoded, config.max_length)

    return train_language_model(config, folder, model, tokenizer, rows(train), rows(held_out) if held_out else None)
