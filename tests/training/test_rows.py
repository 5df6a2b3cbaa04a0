import json

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.data.batches import SequenceBatch
from rlhf.tracking.tracker import Tracker
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig
from rlhf.training.rows import count_tokens, fit_rows


class Bigram(nnx.Module):
    def __init__(self, rngs):
        self.logits = nnx.Embed(5, 5, rngs=rngs)

    def __call__(self, tokens):
        return self.logits(tokens)


def next_token_loss(model, batch):
    logits = nnx.log_softmax(model(batch.tokens[:, :-1]).astype(jnp.float32))
    targets = jnp.take_along_axis(logits, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    mask = batch.loss_mask[:, 1:]
    return -jnp.where(mask, targets, 0.0).sum(), mask.sum().astype(jnp.float32), {}


def rows(count, seed=0):
    """Counting upwards modulo 5, of unequal length, so that the next token is certain."""
    random = np.random.default_rng(seed)
    tokens = (random.integers(0, 5, size=(count, 1)) + np.arange(6)) % 5
    real = np.arange(6) < random.integers(3, 7, size=(count, 1))
    return SequenceBatch(
        tokens=tokens.astype(np.int32), segment_ids=real.astype(np.int32), loss_mask=real & (np.arange(6) > 0)
    )


def train(folder, **options):
    return fit_rows(
        Bigram(nnx.Rngs(0)),
        next_token_loss,
        rows(20),
        evaluation_rows=rows(7, seed=1),
        optimizer_config=OptimizerConfig(learning_rate=0.1),
        loop_config=LoopConfig(epochs=6, batch_size=4, micro_batches=2),
        folder=folder,
        seed=3,
        fingerprint={},
        **options,
    )


def test_learns_from_rows_and_evaluates_all_held_out_rows(tmp_path):
    result = train(tmp_path)
    assert result.summary["steps"] == 30
    held_out = rows(7, seed=1)
    total, weight, _ = next_token_loss(Bigram(nnx.Rngs(0)), held_out)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(first["held_out_loss"], total / weight, rtol=1e-5)
    assert result.summary["held_out_loss"] < 0.7 * first["held_out_loss"]


def test_hook_sees_the_current_model(tmp_path):
    seen = []

    def look(model, step, tracker):
        assert isinstance(tracker, Tracker)
        seen.append((step, float(model.logits.embedding[0, 1])))

    train(tmp_path, after_evaluation=look)
    assert [step for step, _ in seen] == [0, 30] and seen[1][1] > seen[0][1]


def test_tokens_are_counted_without_padding():
    batch = rows(4)
    assert count_tokens(batch) == int((batch.segment_ids > 0).sum())
