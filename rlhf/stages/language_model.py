"""What pretraining and supervised fine-tuning share: rows of tokens in, a trained decoder and its folder out."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.data.batches import SequenceBatch
from rlhf.models.source import save_model
from rlhf.models.transformer import Transformer
from rlhf.stages.folder import StageFolder, close_folder
from rlhf.stages.training import train
from rlhf.tracking.console import say
from rlhf.training.next_token import next_token_loss


def train_language_model(
    config: Any,
    folder: StageFolder,
    model: Transformer,
    tokenizer: PreTrainedTokenizerBase,
    rows: SequenceBatch,
    held_out_rows: SequenceBatch | None,
) -> dict[str, Any]:
    """Trains on the rows and writes the folder of the model, or of its adapter.

    Args:
        config: of the stage: model, optimizer, loop, mesh, tracking, logits_chunk, seed, output.
        folder: of the stage.
        model: to train.
        tokenizer: saved beside the model.
        rows: training rows.
        held_out_rows: rows to evaluate on, or None.

    Returns:
        The stage's summary.
    """
    say(f"{len(rows.tokens):,} rows of {rows.tokens.shape[1]} tokens, {int(np.sum(rows.loss_mask)):,} of them targets")
    result = train(config, folder, model, next_token_loss(config.logits_chunk), rows, held_out_rows)
    save_model(result.model, folder.model, tokenizer, config.model.init_from)
    return close_folder(folder, result.summary)
