"""The works that are timed: each is the code that a stage runs, on random weights and tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from products import FORWARD, TRAINING, Product, decoding, logits, network

from rlhf.data.batches import PromptBatch, SequenceBatch
from rlhf.data.encoding import EncodedPair
from rlhf.data.pair_packing import pack_rankings
from rlhf.generation.generator import generate
from rlhf.generation.refill import generate_refilled
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.randomness import step_key
from rlhf.rewards.objective import comparison_loss
from rlhf.rl.config import PPOConfig
from rlhf.rl.programs import FrozenModels, Programs
from rlhf.rl.update import begin_learning
from rlhf.training.next_token import next_token_loss
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.state import create_train_state
from rlhf.training.step import TrainStep

NO_TOKEN = -1
"""An end token that is never sampled, so that every response has its full length."""
END_TOKEN = 0
MEAN_LENGTH = 0.4
"""Of responses that end by themselves, as a share of the longest."""
BATCHES = 8
ROWS_AT_A_TIME = 8
"""Of a minibatch of PPO, so that its memory does not grow with its size."""
LOGITS_CHUNK = 256
"""Positions whose logits SFT holds at a time."""


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        run: does it once and returns arrays to wait for.
        tokens: tokens that it trains on or samples.
        products: the matrix products that it cannot do without.
        decode_steps: steps each of which reads all weights; 0 where products are the limit.
        parts: seconds of the parts of the last run, filled in by `run` where a work has parts.
    """

    run: Callable[[], Any]
    tokens: int
    products: list[Product]
    decode_steps: int = 0
    parts: dict[str, float] | None = None


def sft(config: ModelConfig, compute: ComputeConfig, scale: int) -> Work:
    """Full fine-tuning on 8 × 256 tokens, loss on all of them."""
    rows, length = 8 * scale, 256
    tokens = _tokens(config, rows, length)
    batch = SequenceBatch(tokens, np.ones_like(tokens), np.ones(tokens.shape, bool))
    products = network(config, rows, length, TRAINING) + logits(config, rows * (length - 1), TRAINING)
    model = Transformer(config, compute=compute, rngs=nnx.Rngs(0))
    return Work(_training(model, next_token_loss(LOGITS_CHUNK), batch), rows * length, products)


def reward(config: ModelConfig, compute: ComputeConfig, scale: int) -> Work:
    """Training a reward model on 8 pairs × 128 tokens, of which no two answers share a prompt."""
    pairs, length = 8 * scale, 128
    tokens = _tokens(config, 2 * pairs, length)
    nothing = np.zeros(0, np.int32)
    rankings = [[EncodedPair(nothing, *tokens[2 * pair : 2 * pair + 2])] for pair in range(pairs)]
    scorer = SequenceScorer(Transformer(config, compute=compute, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    products = network(config, 2 * pairs, length, TRAINING)
    batch = pack_rankings(rankings, 2 * length)
    return Work(_training(scorer, comparison_loss(0.0), batch), 2 * pairs * length, products)


def generation(config: ModelConfig, compute: ComputeConfig, scale: int) -> Work:
    """32 prompts × 64 tokens, 128 new tokens each, sampled at temperature 1."""
    prompts, length, new_tokens = 32 * scale, 64, 128
    definition, state = nnx.split(Transformer(config, compute=compute, rngs=nnx.Rngs(0)))
    tokens, mask = jnp.asarray(_tokens(config, prompts, length)), jnp.ones((prompts, length), bool)
    settings = {"max_new_tokens": new_tokens, "end_token": NO_TOKEN, "pad_token": 0}

    @jax.jit
    def sample(state, key):
        return generate(nnx.merge(definition, state), tokens, mask, key, sampling=SamplingConfig(), **settings)

    products = decoding(config, prompts, length, new_tokens)
    return Work(lambda: sample(state, jax.random.key(0)), prompts * new_tokens, products, decode_steps=new_tokens)


class EndsByChance(Transformer):
    """A model whose responses have geometric lengths: the end token is as likely after every token."""

    def logits(self, hidden):
        """As the model's, but for the end token."""
        logits = super().logits(hidden)
        probability = 1 / (MEAN_LENGTH * 128)
        odds = np.log(probability / (1 - probability))
        others = jax.nn.logsumexp(logits.at[..., END_TOKEN].set(-jnp.inf), axis=-1)
        return logits.at[..., END_TOKEN].set(others + odds)


def generation_by_batch(config: ModelConfig, compute: ComputeConfig, scale: int) -> Work:
    """8 × 32 prompts × 64 tokens, up to 128 new tokens, 51 on average; each batch of 32 waits for its longest response."""
    definition, state, prompts, tokens, settings = _ending_by_chance(config, compute, scale)

    @jax.jit
    def sample(state, key):
        model, mask = nnx.merge(definition, state), jnp.ones((prompts, tokens.shape[1]), bool)
        batches = tokens.reshape(BATCHES, prompts, -1), jax.random.split(key, BATCHES)
        return jax.lax.map(lambda batch: generate(model, batch[0], mask, batch[1], **settings), batches)

    return _sampling(config, sample, state, prompts * BATCHES, tokens.shape[1])


def generation_refilled(config: ModelConfig, compute: ComputeConfig, scale: int) -> Work:
    """The same prompts on 32 rows, which the next prompt enters when a response has ended."""
    definition, state, rows, tokens, settings = _ending_by_chance(config, compute, scale)

    @jax.jit
    def sample(state, key):
        model, mask = nnx.merge(definition, state), jnp.ones(tokens.shape, bool)
        return generate_refilled(model, tokens, mask, key, rows=rows, **settings)

    return _sampling(config, sample, state, rows * BATCHES, tokens.shape[1])


def _ending_by_chance(config: ModelConfig, compute: ComputeConfig, scale: int):
    definition, state = nnx.split(EndsByChance(config, compute=compute, rngs=nnx.Rngs(0)))
    rows = 32 * scale
    settings = {"sampling": SamplingConfig(), "max_new_tokens": 128, "end_token": END_TOKEN, "pad_token": END_TOKEN}
    return definition, state, rows, jnp.asarray(_tokens(config, rows * BATCHES, 64)), settings


def _sampling(config: ModelConfig, sample: Callable, state: Any, prompts: int, prompt_length: int) -> Work:
    """The work of sampling responses of the lengths that the first run gives; later runs draw the same."""
    key = jax.random.key(0)
    new_tokens = int(sample(state, key).mask.sum())
    products = decoding(config, prompts, prompt_length, new_tokens // prompts)
    return Work(lambda: sample(state, key), new_tokens, products)


def ppo(
    config: ModelConfig, compute: ComputeConfig, scale: int = 1, *, prompts: int = 64, new_tokens: int = 64
) -> Work:
    """One iteration: 64 prompts × 64 tokens, 64 new tokens each, 4 epochs × 4 minibatches, four separate models."""
    batch, length = prompts * scale, 64
    settings = PPOConfig(
        rollout_batch_size=batch,
        minibatch_size=batch // 4,
        response_length=new_tokens,
        micro_batches=max(batch // 4 // ROWS_AT_A_TIME, 1),
        logits_chunk=batch // 4 * new_tokens,  # a minibatch's
    )

    def transformer(seed: int) -> Transformer:
        return Transformer(config, compute=compute, rngs=nnx.Rngs(seed))

    policy, value = transformer(0), SequenceScorer(transformer(1), rngs=nnx.Rngs(1))
    helpfulness = SequenceScorer(transformer(2), rngs=nnx.Rngs(2))
    optimizers = tuple(make_optimizer(OptimizerConfig(learning_rate=1e-6), 1000) for _ in range(2))
    programs = Programs(
        policy,
        value,
        FrozenModels(transformer(3), helpfulness, None),
        optimizers,
        end_token=NO_TOKEN,
        pad_token=0,
        config=settings,
    )
    learners = [begin_learning(policy, value, optimizers)]
    rows = PromptBatch(
        _tokens(config, batch, length), np.ones((batch, length), bool), np.zeros(batch, bool), np.arange(batch)
    )
    parts: dict[str, float] = {}

    def iteration():
        clock = _Laps(parts)
        rollout = clock.lap("rollout", programs.rollout(learners[0], rows, step_key(0, "rollout", 0)))
        zeros = np.zeros(batch, np.float32)
        experience, *_ = clock.lap("score", programs.score(learners[0], rollout, zeros, jnp.float32(0.05)))
        learners[0], metrics = clock.lap("update", programs.update(learners[0], experience, step_key(0, "shuffle", 0)))
        return metrics

    whole = length + new_tokens
    scoring = 3 * network(config, batch, whole, FORWARD) + logits(config, batch * new_tokens, FORWARD)
    one_epoch = 2 * network(config, batch, whole, TRAINING) + logits(config, batch * new_tokens, TRAINING)
    products = decoding(config, batch, length, new_tokens) + scoring + settings.epochs * one_epoch
    return Work(iteration, batch * new_tokens, products, parts=parts)


WORKS = {
    "ppo": ppo,
    "sft": sft,
    "reward": reward,
    "generate": generation,
    "generate-by-batch": generation_by_batch,
    "generate-refilled": generation_refilled,
}


class _Laps:
    """Writes the seconds of each part into a dictionary."""

    def __init__(self, parts: dict[str, float]):
        import time

        self._now, self._parts = time.perf_counter, parts
        self._last = self._now()

    def lap(self, name: str, result: Any) -> Any:
        jax.block_until_ready(result)
        now = self._now()
        self._parts[name], self._last = now - self._last, now
        return result


def _tokens(config: ModelConfig, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (rows, length)).astype(np.int32)


def _training(model: nnx.Module, loss: Callable, batch: Any) -> Callable[[], Any]:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), 1000)
    definition, state = create_train_state(model, optimizer)
    step = TrainStep(definition, loss, optimizer)
    states = [state]

    def run():
        states[0], metrics = step(states[0], batch)
        return metrics

    return run
