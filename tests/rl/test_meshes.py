"""PPO as a whole, rollout, scoring and update, on eight devices gives the numbers of one, however the mesh divides the work.

Losses agree to 1e-6 of their size (float32 knows 6e-8), parameters after ten gradient steps to 1e-5.
"""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from rlhf.data.batches import PromptBatch
from rlhf.data.records import Message, Prompt
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding, state_shardings
from rlhf.rl.config import KLConfig, PPOConfig
from rlhf.rl.iteration import Iteration, begin
from rlhf.rl.programs import FrozenModels, Programs
from rlhf.rl.update import begin_learning
from rlhf.training.compilations import CompilationCounter
from rlhf.training.optimizer import OptimizerConfig, make_optimizer

TINY = ModelConfig(
    vocab_size=16, width=16, layers=2, heads=4, mlp_width=24, gated_mlp=False, context=16, initializer_std=0.4
)
ROWS, PROMPT_TIME, PAD, END = 16, 8, 0, 2
ITERATIONS = 5  # of two gradient steps each
PPO = {
    **{"rollout_batch_size": ROWS, "minibatch_size": 8, "epochs": 1, "response_length": 4, "temperature": 0.7},
    "kl": KLConfig(coefficient=0.2, controller="adaptive", target=0.01, horizon=40),
}
# Adam divides by the gradient's size; with an epsilon that is not tiny it does not blow rounding up to whole steps.
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, schedule="constant", epsilon=1e-2)
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "sequence": {"data": 2, "sequence": 4},
    "mixed": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
}
OPTIONS = {"mixed": {"rollout_weights": "gathered"}}
TOKENIZER = SimpleNamespace(eos_token_id=END, pad_token_id=PAD)


@pytest.fixture(scope="module", autouse=True)
def keep_tokens():
    """Responses are compared token by token; there is no text to make of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.rl.iteration.decode_response", lambda _, tokens: tokens.tolist())
        yield


@nnx.jit
def draw(key) -> Transformer:
    return Transformer(TINY, rngs=nnx.Rngs(key))


@functools.cache
def make_models(kind: str) -> dict[str, nnx.Module]:
    """A model for each role, or adapters on one base."""
    roles = ("policy", "reference", "value", "helpfulness")
    if kind == "whole":
        networks = {role: draw(jax.random.key(seed)) for role, seed in zip(roles, (0, 0, 1, 2), strict=True)}
    else:
        base, adapter = draw(jax.random.key(0)), AdapterConfig(rank=2)
        networks = {role: insert(nnx.clone(base), adapter, nnx.Rngs(seed)) for seed, role in enumerate(roles)}
        networks["reference"] = base
    return {
        role: SequenceScorer(network, rngs=nnx.Rngs(7)) if role in ("value", "helpfulness") else network
        for role, network in networks.items()
    }


def on_mesh(models: dict[str, nnx.Module], mesh: Mesh) -> dict[str, nnx.Module]:
    """Copies, for an update gives arrays away; what several models share, their copies share."""
    copies = {}

    def copy(leaf, sharding):
        if id(leaf) not in copies:
            copies[id(leaf)] = jax.device_put(np.asarray(leaf), sharding)
        return copies[id(leaf)]

    def place(model):
        definition, state = nnx.split(model)
        return nnx.merge(definition, jax.tree.map(copy, state, state_shardings(state, mesh)))

    return {role: place(model) for role, model in models.items()}


def make_prompts() -> PromptBatch:
    random = np.random.default_rng(0)
    lengths = random.integers(3, PROMPT_TIME + 1, (ROWS, 1))
    mask = np.arange(PROMPT_TIME) >= PROMPT_TIME - lengths
    tokens = np.where(mask, random.integers(3, TINY.vocab_size, mask.shape), PAD).astype(np.int32)
    return PromptBatch(tokens, mask, np.arange(ROWS) % 3 == 0, np.arange(ROWS, dtype=np.int32))


def train(kind: str, sizes: dict[str, int], **options: Any):
    """The responses and the metrics of each iteration, and the learners' parameters after the last."""
    mesh, config = make_mesh(MeshConfig(**sizes)), PPOConfig(**PPO, **options)
    models = on_mesh(make_models(kind), mesh)
    optimizers = (make_optimizer(OPTIMIZER, 10), make_optimizer(OPTIMIZER, 10))
    frozen = FrozenModels(models["reference"], models["helpfulness"], None)
    policy, value = models["policy"], models["value"]
    programs = Programs(policy, value, frozen, optimizers, end_token=END, pad_token=PAD, config=config)
    assert ("No two models" in programs.roles.describe()) == (kind == "whole")
    records = [Prompt((Message("user", str(number)),)) for number in range(ROWS)]
    iteration = Iteration(programs, records, TOKENIZER, {}, config, seed=3, sampled_rows=ROWS, max_skipped_steps=1)
    state, responses, metrics = begin(begin_learning(policy, value, optimizers), config), [], []
    prompts = jax.device_put(make_prompts(), batch_sharding(mesh))
    layout = [leaf.sharding for leaf in jax.tree.leaves(state.learners)]
    with jax.set_mesh(mesh):
        for number in range(ITERATIONS):
            with CompilationCounter() as compilations:
                state, report = iteration(state, prompts, number)
            responses.append([row["response"] for row in report.rows])
            metrics.append(report.metrics)
    assert compilations.count == 0, "the last iteration is compiled by then"
    assert layout == [leaf.sharding for leaf in jax.tree.leaves(state.learners)]
    return responses, metrics, jax.device_get((state.learners.policy.trainable, state.learners.value.trainable))


@functools.cache
def on_one_device(kind: str):
    return train(kind, {"data": 1})


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", ["whole", "lora on one base"])
def test_ten_steps_are_those_of_one_device(kind, mesh):
    responses, metrics, parameters = train(kind, MESHES[mesh], **OPTIONS.get(mesh, {}))
    expected_responses, expected_metrics, expected_parameters = on_one_device(kind)
    assert responses == expected_responses
    for number, (found, expected) in enumerate(zip(metrics, expected_metrics, strict=True)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # Losses first; a norm is the root of a sum over all parameters, others are made of differences of large numbers.
            tolerance = 1e-6 if name.startswith("loss/") else 1e-5
            assert found[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (number, name)
    for found, expected in zip(jax.tree.leaves(parameters), jax.tree.leaves(expected_parameters), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
