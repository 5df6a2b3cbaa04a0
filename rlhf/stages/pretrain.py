"""Pretraining: next-token prediction on plain documents, several to a row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.batches import SequenceBatch
from rlhf.data.lengths import encode_documents
from rlhf.data.packing import pack_sequences, split_long
from rlhf.data.records import Document
from rlhf.data.sources import DataConfig, load_documents
from rlhf.data.tokenizers import check_vocabulary
from rlhf.models.source import ModelSource, load_policy
from rlhf.parallel.mesh import MeshConfig
from rlhf.parallel.table import by_its_rules
from rlhf.stages.folder import open_folder
from rlhf.stages.language_model import train_language_model
from rlhf.stages.setup import check_row_length, stage_tokenizer, training_and_held_out
from rlhf.tracking.tracker import TrackingConfig
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Config:
    """Pretrain a model on documents, or go on pretraining one.

    Attributes:
        output: folder to write.
        model: a fresh architecture, or the weights to go on from.
        tokenizer: folder of the tokenizer; null for the one that came with model.init_from.
        template: chat template stored with the model; "tokenizer" keeps what the tokenizer has.
        data: documents.
        evaluation_data: held-out documents; null for `data.held_out` of the data.
        row_length: tokens in a row; longer documents are cut into several pieces.
        logits_chunk: positions whose logits are held at once; null for all.
        optimizer: AdamW and its schedule.
        loop: steps, batch size, evaluation, checkpoints.
        mesh: how devices are laid out.
        tracking: where metrics go.
        seed: of everything random.
    """

    output: str = "runs/pretrain"
    model: ModelSource = field(default_factory=ModelSource)
    tokenizer: str | None = None
    template: str = "user_ai"
    data: DataConfig = field(default_factory=DataConfig)
    evaluation_data: DataConfig | None = None
    row_length: int = 512
    logits_chunk: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0


@by_its_rules
def run(config: Config) -> dict[str, Any]:
    """Trains on the documents and writes the model's folder; returns the summary."""
    folder = open_folder(config)
    tokenizer = stage_tokenizer(config.tokenizer or config.model.init_from, config.template, key="tokenizer")
    train, held_out = training_and_held_out(load_documents, config.data, config.evaluation_data, config.seed)
    model = load_policy(config.model, config.seed)
    source = f"model.init_from {config.model.init_from}" if config.model.init_from else "model.architecture.vocab_size"
    check_vocabulary(tokenizer, model.config.vocab_size, source)
    check_row_length("row_length", config.row_length, model.config)

    def rows(documents: Sequence[Document]) -> SequenceBatch:
        return pack_sequences(split_long(encode_documents(tokenizer, documents), config.row_length), config.row_length)

    return train_language_model(config, folder, model, tokenizer, rows(train), rows(held_out) if held_out else None)
