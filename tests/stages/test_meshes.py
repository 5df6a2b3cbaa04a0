"""Every stage on eight devices gives the numbers of one, however the mesh divides the work; and goes on where another mesh stopped.

Losses agree to 1e-6 of their size (float32 knows 6e-8), parameters after ten steps to 1e-5.
"""

import dataclasses
import functools
import json
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from rlhf.config_files import load_config
from rlhf.data.batches import PairBatch, SequenceBatch
from rlhf.data.tokenizers import load_tokenizer
from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import save_scorer, save_transformer
from rlhf.models.partition import trained
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding, shard_state
from rlhf.parallel.table import mesh_axes_of, rules_changed
from rlhf.rewards.objective import ObjectiveConfig, comparison_loss
from rlhf.stages import best_of_n, dpo, evaluate, ppo, pretrain, reward, sft
from rlhf.training.next_token import next_token_loss
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.signals import Interrupted, SignalWatch
from rlhf.training.state import create_train_state
from rlhf.training.step import TrainStep

# No biases of keys: their gradient is 0 but for rounding, which Adam makes whole steps of.
TINY = ModelConfig(
    vocab_size=48, width=32, layers=2, heads=8, kv_heads=4, mlp_width=40, context=64, initializer_std=0.2
)
ROWS, TIME, STEPS = 8, 24, 10
MIXED = {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}
OTHER_RULES = {"vocab": "fsdp", "embed": None, "mlp": ["tensor", "fsdp"]}
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "sequence": {"data": 2, "sequence": 4},
    "mixed": MIXED,
    "other rules": MIXED | {"rules": OTHER_RULES},
}


def make_model(kind: str):
    """A decoder, a decoder with an attention window and a LoRA, or a reward model."""
    if kind == "whole":
        return Transformer(TINY, rngs=nnx.Rngs(0))
    if kind == "reward":
        return SequenceScorer(Transformer(TINY, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    windowed = dataclasses.replace(TINY, attention=AttentionConfig(window=5, window_layers=(True, False)))
    return insert(Transformer(windowed, rngs=nnx.Rngs(0)), AdapterConfig(rank=2), nnx.Rngs(1))


def packed_rows(step: int) -> SequenceBatch:
    """Two sequences of unequal length a row, padding, and some tokens that do not count."""
    random = np.random.default_rng(step)
    lengths = random.integers(3, 11, (2, ROWS, 1))
    columns = np.arange(TIME)
    segments = (columns < lengths.sum(axis=0)) * (1 + (columns >= lengths[0]))
    counts = (segments > 0) & (columns != 0) & (columns != lengths[0]) & (random.random((ROWS, TIME)) < 0.8)
    return SequenceBatch(random.integers(0, 48, (ROWS, TIME)).astype(np.int32), segments.astype(np.int32), counts)


def packed_pairs(step: int) -> PairBatch:
    """Two prompts a row, each with two answers that share it; the second comparison of the last row is filler."""
    random = np.random.default_rng(step)
    prompt, chosen, rejected = 4, 5, 3
    length = prompt + chosen + rejected
    branches = np.repeat([0, 1, 2], [prompt, chosen, rejected])
    positions = np.concatenate([np.arange(prompt), prompt + np.arange(chosen), prompt + np.arange(rejected)])
    rows = {
        "segment_ids": np.repeat([1, 2], length),
        "branch_ids": np.tile(branches, 2),
        "positions": np.tile(positions, 2),
        "chosen_end": np.array([0, length]) + prompt + chosen - 1,
        "rejected_end": np.array([length, 2 * length]) - 1,
    }
    weight = np.ones((ROWS, 2), np.float32)
    weight[-1, 1] = 0
    return PairBatch(
        tokens=random.integers(0, 48, (ROWS, TIME)).astype(np.int32),
        **{name: np.tile(row.astype(np.int32), (ROWS, 1)) for name, row in rows.items()},
        margin=np.zeros((ROWS, 2), np.float32),
        weight=weight,
    )


@pytest.fixture(scope="module")
def train():
    """Ten steps on a mesh: the metrics of each, and the parameters after the last."""
    models = {}

    def train(kind: str, settings: dict[str, Any]):
        config = MeshConfig(**settings)
        with rules_changed(config.rules):
            return trained_on(make_mesh(config), kind)

    def trained_on(mesh: Mesh, kind: str):
        if kind not in models:
            models[kind] = make_model(kind)
        definition, state = nnx.split(models[kind])
        # A copy, for the first step gives the arrays away.
        model = nnx.merge(definition, shard_state(jax.tree.map(np.array, state), mesh))
        is_reward = kind == "reward"
        # Some gradients of a reward model are hardly more than rounding, which Adam makes whole steps of if its epsilon is tiny.
        epsilon = 1e-3 if is_reward else 1e-8
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, epsilon=epsilon), STEPS)
        graphdef, state = create_train_state(model, optimizer, trained(model))
        loss = comparison_loss(0.01, ObjectiveConfig(language_weight=0.5)) if is_reward else next_token_loss(64)
        step = TrainStep(graphdef, loss, optimizer, micro_batches=2 if kind == "lora" else 1)
        metrics = []
        with jax.set_mesh(mesh):
            for number in range(STEPS):
                rows = (packed_pairs if is_reward else packed_rows)(number)
                state, measured = step(state, jax.device_put(rows, batch_sharding(mesh)))
                metrics.append(jax.device_get(measured))
        return metrics, jax.device_get(state.trainable)

    return train


@pytest.fixture(scope="module")
def on_one_device(train):
    return functools.cache(lambda kind: train(kind, {"data": 1}))


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        *(("whole", mesh) for mesh in MESHES),
        *(("lora", mesh) for mesh in MESHES if mesh != "other rules"),
        ("reward", "mixed"),
    ],
)
def test_ten_steps_are_those_of_one_device(train, on_one_device, kind, mesh):
    (metrics, parameters), (expected_metrics, expected_parameters) = train(kind, MESHES[mesh]), on_one_device(kind)
    for found, expected in zip(metrics, expected_metrics, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # The norm of the gradient is no loss: the root of a sum over all parameters, each a sum over all tokens.
            tolerance = 1e-5 if name == "grad_norm" else 1e-6
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    for found, expected in zip(jax.tree.leaves(parameters), jax.tree.leaves(expected_parameters), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def models(folders, tmp_path_factory):
    """Untrained models whose heads two devices can share; and how much a run may take of them."""
    root, tokenizer = tmp_path_factory.mktemp("mesh_models"), load_tokenizer(folders.policy)
    description = ModelConfig(
        vocab_size=400, width=16, layers=2, heads=2, mlp_width=24, context=128, initializer_std=0.3
    )
    save_transformer(Transformer(description, rngs=nnx.Rngs(0)), root / "policy", tokenizer)
    for seed, name in enumerate(("helpfulness", "safety"), start=1):
        scorer = SequenceScorer(Transformer(description, rngs=nnx.Rngs(seed)), rngs=nnx.Rngs(seed))
        save_scorer(scorer, root / name, tokenizer)
    return {name: str(root / name) for name in ("policy", "helpfulness", "safety")}


@pytest.fixture(scope="module")
def configure(models, world):
    """The configuration of a short run of a stage on a mesh."""
    loop = {"loop.steps": 3, "loop.batch_size": 4, "optimizer.learning_rate": 1e-3, "optimizer.epsilon": 1e-3}
    judges = {name: models[name] for name in ("helpfulness", "safety")}
    prompts = {"data.path": str(world / "prompts_held_out.jsonl"), "response_length": 4, "batch_size": 8}
    policy = {"model.init_from": models["policy"]}
    settings = {
        pretrain: policy | loop | {"data.path": str(world / "documents.jsonl"), "row_length": 64},
        sft: policy | loop | {"data.path": str(world / "demonstrations.jsonl"), "max_length": 128},
        reward: policy
        | loop
        | {"data.path": str(world / "helpfulness.jsonl"), "max_length": 128, "too_long": "skip", "data.held_out": 0.2},
        ppo: policy
        | judges
        | {
            "model.adapter.kind": "lora",
            "data.path": str(world / "prompts.jsonl"),
            "iterations": 3,
            "evaluate_every": 3,
            "evaluation_prompts": 4,
            "data.held_out": 0.2,
            "checkpoint_every": 1,
            "policy_optimizer.epsilon": 1e-2,
            "value_optimizer.epsilon": 1e-2,
            "ppo.rollout_batch_size": 8,
            "ppo.minibatch_size": 4,
            "ppo.epochs": 2,
            "ppo.response_length": 4,
        },
        dpo: policy
        | loop
        | {"data.path": str(world / "helpfulness.jsonl"), "max_length": 128, "too_long": "skip", "data.held_out": 0.2},
        best_of_n: policy | judges | prompts | {"n": [2], "max_prompts": 4},
        evaluate: judges
        | prompts
        | {"policies": {"policy": models["policy"]}, "reference": models["policy"]}
        | {
            "samples_per_prompt": 2,
            "max_prompts": 4,
            "comparisons.helpfulness.path": str(world / "helpfulness_held_out.jsonl"),
        },
    }

    def configure(stage, output: Path, sizes: dict[str, int], **changes):
        keys = settings[stage] | {f"mesh.{axis}": size for axis, size in sizes.items()}
        keys |= {"output": str(output)} | {name.replace("__", "."): value for name, value in changes.items()}
        spelt = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
        return load_config(stage.Config, [], [f"{key}={value}" for key, value in spelt.items()])

    return configure


def read(path: Path):
    """Values of a file of one JSON value, or of one a line."""
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def assert_alike(found, expected):
    """Numbers of equal size, texts equal, at any depth."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
    if isinstance(expected, dict | list):
        pairs = expected.items() if isinstance(expected, dict) else enumerate(expected)
        for key, value in pairs:
            assert_alike(found[key], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert found == expected


# A critic of the cost, and tokens drawn from the most likely ones, which are kept with each response.
CONSTRAINED = {"ppo.combine.kind": "lagrangian", "ppo.top_k": 5, "iterations": 2}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (reward, {}),
        (dpo, {}),
        (best_of_n, {}),
        (evaluate, {"rollout_weights": "gathered"}),
    ],
    ids=lambda part: "" if isinstance(part, dict) else part.__name__.rpartition(".")[2],
)
def test_a_stage_writes_the_numbers_of_one_device(configure, tmp_path, stage, changes):
    outputs = {"one": {"data": 1}, "eight": MIXED}
    for name, sizes in outputs.items():
        stage.run(configure(stage, tmp_path / name, sizes, **changes))
    for file in ("metrics.jsonl", "samples.jsonl", "evaluation.json"):
        if (tmp_path / "one" / file).exists():
            assert_alike(*(read(tmp_path / name / file) for name in ("eight", "one")))


@pytest.mark.parametrize(("stage", "changes"), [(sft, {}), (ppo, CONSTRAINED)], ids=["sft", "ppo"])
def test_a_run_may_move_to_another_mesh_and_writes_the_numbers_of_one_device(
    configure, tmp_path, stage, changes, monkeypatch
):
    """From eight devices to four, and from other rules to the usual ones; the run that it is held against stays on one."""
    stage.run(configure(stage, tmp_path / "one", {"data": 1}, **changes))

    calls = iter(range(100))
    stopping = lambda self, synchronize: signal.SIGTERM if next(calls) == 0 else None  # noqa: E731
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(SignalWatch, "agreed", stopping)
        stage.run(configure(stage, tmp_path / "moved", MESHES["other rules"], **changes))
    stage.run(configure(stage, tmp_path / "moved", {"data": 2, "fsdp": 1, "sequence": 2, "rules": {}}, **changes))
    for file in ("metrics.jsonl", "samples.jsonl"):
        if (tmp_path / "one" / file).exists():
            assert_alike(*(read(tmp_path / name / file) for name in ("moved", "one")))


@pytest.mark.parametrize(
    "stage", [pretrain, sft, reward, ppo, dpo, best_of_n, evaluate], ids=lambda stage: stage.__name__
)
def test_every_stage_goes_by_its_rules(configure, tmp_path, stage, monkeypatch):
    class Begun(Exception):
        pass

    def begin(config):
        raise Begun(mesh_axes_of("vocab"))

    monkeypatch.setattr(stage, "open_folder", begin)
    with pytest.raises(Begun) as begun:
        stage.run(configure(stage, tmp_path, {"rules": OTHER_RULES}))
    assert begun.value.args == (("fsdp",),)


@pytest.mark.parametrize(
    ("stage", "sizes", "changes", "message"),
    [
        (
            sft,
            {"data": 1, "sequence": 8},
            {"max_length": 100},
            r"mesh.sequence = 8 does not divide max_length, which is 100\n.*104",
        ),
        (
            sft,
            {"data": 4},
            {"loop__micro_batches": 2},
            "no multiple of the 4 devices .* in each of 2 micro-batches\n.*of 8",
        ),
        (ppo, {"data": 8}, {}, r"ppo.minibatch_size is 4, .* 8 devices"),
        (
            ppo,
            {"data": 1, "sequence": 8},
            {},
            "does not divide ppo.response_length, which is 4\n.* to 8, or mesh.sequence to one of 1, 2, 4",
        ),
        (best_of_n, {"data": 1, "sequence": 8}, {}, "does not divide response_length"),
        (evaluate, {"data": 1, "sequence": 8}, {}, "does not divide response_length"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(configure, tmp_path, stage, sizes, changes, message):
    with pytest.raises(UserError, match=message):
        stage.run(configure(stage, tmp_path, sizes, **changes))
