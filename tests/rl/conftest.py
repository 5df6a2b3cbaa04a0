"""Networks small enough to compile in a second or two, and rollouts whose prompts and responses differ in length."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.generation.rollout import Rollout
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.rewards.combine import CombineConfig
from rlhf.rl.config import PPOConfig
from rlhf.rl.score import ScoringModels, score_rollout

TINY = ModelConfig(
    vocab_size=16, width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, context=32, initializer_std=0.4
)
PAD, END = 0, 2
PROMPT_LENGTHS = (6, 1, 4, 2, 5, 3, 6, 1)
RESPONSE_LENGTHS = (6, 1, 3, 6, 2, 6, 5, 4)
CUT = (0, 3)
"""Rows whose response filled its columns without an end token."""


@nnx.jit
def _policy(key) -> Transformer:
    return Transformer(TINY, rngs=nnx.Rngs(key))


@nnx.jit
def _scorer(key) -> SequenceScorer:
    return SequenceScorer(Transformer(TINY, rngs=nnx.Rngs(key)), rngs=nnx.Rngs(jax.random.fold_in(key, 1)))


def make_policy(seed: int = 0) -> Transformer:
    return _policy(jax.random.key(seed))


def make_scorer(seed: int) -> SequenceScorer:
    return _scorer(jax.random.key(seed))


def make_rollout(*, extra_left: int = 0, extra_right: int = 0, filler: int = PAD) -> Rollout:
    """The same prompts and responses whatever the padding."""
    rows, prompt_time, response_time = len(PROMPT_LENGTHS), 6 + extra_left, 6 + extra_right
    random = np.random.default_rng(0)
    tokens = np.full((rows, prompt_time + response_time), filler, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, (prompt, response) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)):
        real = slice(prompt_time - prompt, prompt_time + response)
        tokens[row, real] = random.integers(3, TINY.vocab_size, prompt + response)
        mask[row, real] = True
        if row not in CUT:
            tokens[row, real.stop - 1] = END
    return Rollout(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        response_mask=jnp.asarray(mask[:, prompt_time:]),
        is_safety=jnp.asarray(np.arange(rows) % 3 == 0),
    )


@pytest.fixture(scope="session")
def rl():
    """Makers of the tiny parts."""
    return SimpleNamespace(
        TINY=TINY,
        PAD=PAD,
        END=END,
        CUT=CUT,
        lengths=RESPONSE_LENGTHS,
        make_policy=make_policy,
        make_scorer=make_scorer,
        make_rollout=make_rollout,
    )


@pytest.fixture(scope="session")
def plain_config() -> PPOConfig:
    """Nothing is whitened, so that every number can be recomputed by hand."""
    return PPOConfig(
        rollout_batch_size=8,
        minibatch_size=8,
        epochs=1,
        response_length=6,
        whiten_advantages=False,
        combine=CombineConfig(whiten=False),
    )


@pytest.fixture(scope="session")
def models() -> ScoringModels:
    """A policy that has moved away from its reference, a value model, two reward models."""
    return ScoringModels(make_policy(0), make_policy(1), make_scorer(2), make_scorer(3), make_scorer(4))


@pytest.fixture(scope="session")
def score():
    """`score_rollout`, compiled once for each configuration and shape."""

    @functools.cache
    def program(config: PPOConfig, definitions):
        def run(states, rollout, rule_scores, coefficient):
            merged = {name: definition and nnx.merge(definition, states[name]) for name, definition in definitions}
            return score_rollout(ScoringModels(**merged), rollout, rule_scores, coefficient, END, config)

        return jax.jit(run)

    def score(models: ScoringModels, rollout: Rollout, config: PPOConfig, *, rule_scores=None, coefficient=0.1):
        parts = {field.name: getattr(models, field.name) for field in dataclasses.fields(models)}
        definitions = tuple((name, model and nnx.graphdef(model)) for name, model in parts.items())
        states = {name: model and nnx.state(model) for name, model in parts.items()}
        rule_scores = jnp.zeros(len(rollout.tokens)) if rule_scores is None else jnp.asarray(rule_scores, jnp.float32)
        return program(config, definitions)(states, rollout, rule_scores, jnp.float32(coefficient))

    return score


@pytest.fixture(scope="session")
def forward():
    """What a model gives at every position, compiled once a shape: logits of a decoder, scores of a scorer."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(definition, state, tokens, mask):
        model = nnx.merge(definition, state)
        outputs = model(tokens, mask.astype(jnp.int32))
        return model.logits(outputs) if isinstance(model, Transformer) else outputs

    def forward(model, tokens, mask) -> np.ndarray:
        return np.asarray(run(*nnx.split(model), tokens, mask))

    return forward


@pytest.fixture(scope="session")
def log_softmax_of(forward):
    """Log-probabilities of all tokens at every position by the plain way: whole logits, divided, normalised in float64."""

    def log_softmax_of(policy: Transformer, tokens, mask, temperature: float = 1.0) -> np.ndarray:
        logits = forward(policy, tokens, mask).astype(np.float64) / temperature
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    return log_softmax_of
