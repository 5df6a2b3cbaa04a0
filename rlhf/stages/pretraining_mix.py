"""The pretraining text that PPO-ptx mixes into its updates (2203.02155, section 3.5): documents to rows, rows to iterations."""

from collections.abc import Iterator

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.data.batches import SequenceBatch
from rlhf.data.lengths import encode_documents
from rlhf.data.loader import batches
from rlhf.data.packing import pack_sequences, split_long
from rlhf.data.sources import DataConfig, load_documents
from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.rl.config import PPOConfig
from rlhf.stages.setup import check_row_length


def pretraining_rows(
    data: DataConfig | None,
    row_length: int,
    config: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    architecture: ModelConfig,
) -> SequenceBatch | None:
    """Documents packed into rows as pretraining packs them, or None where no pretraining loss is added.

    Args:
        data: the documents.
        row_length: tokens of a row.
        config: the algorithm.
        tokenizer: of the policy.
        architecture: of the policy.

    Raises:
        UserError: a row is longer than the context, or there are too few rows for a minibatch.
    """
    if not config.pretraining_coefficient:
        return None
    check_row_length("pretraining_row_length", row_length, architecture)
    pieces = split_long(encode_documents(tokenizer, load_documents(data)), row_length)
    rows = pack_sequences(pieces, row_length, pad_token=tokenizer.pad_token_id)
    wanted = config.minibatch_size * config.pretraining_rows
    if len(rows.tokens) < wanted:
        raise UserError(
            f"pretraining_data gives {len(rows.tokens)} rows of {row_length} tokens, but a minibatch takes {wanted}",
            fix="use more documents, shorter rows (pretraining_row_length), or lower ppo.pretraining_rows.",
        )
    return rows


def pretraining_batches(rows: SequenceBatch, config: PPOConfig, seed: int, start: int) -> Iterator[SequenceBatch]:
    """The rows of each iteration's update from iteration `start` on, as `UpdateInputs` wants them; no end.

    Args:
        rows: all of them.
        config: epochs and sizes.
        seed: of the shuffle.
        start: first iteration, from 0.
    """
    steps = config.epochs * config.minibatches
    size = config.minibatch_size * config.pretraining_rows
    in_turn = batches(rows, size, seed=seed, start_step=start * steps)
    while True:
        minibatches = [next(in_turn) for _ in range(steps)]
        yield jax.tree.map(lambda *leaves: np.stack(leaves, axis=1).reshape(size * steps, -1), *minibatches)
