"""Compiling ahead: the shapes and the program are those of the stage itself."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from rlhf.cli import main
from rlhf.config_files import load_config, save_config
from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.partition import trained
from rlhf.models.source import ModelSource, load_policy
from rlhf.parallel.chips import CHIPS, GPUS
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.topology import Topology
from rlhf.rl.config import PPOConfig
from rlhf.stages import best_of_n, evaluate, ppo, sft
from rlhf.stages import compile as ahead
from rlhf.stages.outlines import Outlines
from rlhf.stages.setup import place_model
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.state import abstract_like, create_train_state, outline_train_state
from rlhf.training.step import TrainStep

DESCRIBED = Path(__file__).parents[2] / "configs" / "models"
TINY = ModelConfig(vocab_size=64, width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, context=32)
MESH = MeshConfig(data=2, fsdp=4)
CONFIG = sft.Config(
    model=ModelSource(architecture=TINY), max_length=16, loop=LoopConfig(steps=10, batch_size=8), mesh=MESH
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MESH)


@pytest.fixture(scope="module")
def states(mesh):
    """(graph definition, train state) as a stage makes it, and as it is made of shapes."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    model = place_model(load_policy(CONFIG.model, 0), mesh)
    outlined = Outlines(mesh, ComputeConfig()).policy(CONFIG.model)
    return create_train_state(model, optimizer), outline_train_state(outlined, optimizer, nnx.Param, mesh)


def test_shapes_and_layout_are_those_of_the_real_state(states):
    (_, real), (_, outlined) = states
    real = abstract_like(real)
    assert jax.tree.structure(real) == jax.tree.structure(outlined)
    for expected, found in zip(jax.tree.leaves(real), jax.tree.leaves(outlined), strict=True):
        assert (expected.shape, expected.dtype) == (found.shape, found.dtype)
        assert expected.sharding.is_equivalent_to(found.sharding, len(expected.shape))


def test_the_program_is_that_of_the_stage(states, mesh):
    loss, shapes = ahead._loss_and_batch(CONFIG, mesh)
    batch = jax.tree.map(lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), shapes)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    with jax.set_mesh(mesh):
        texts = [
            TrainStep(definition, loss, optimizer).lower(state, rows).as_text()
            for (definition, state), rows in zip(states, (batch, shapes), strict=True)
        ]
    assert texts[0] == texts[1]


def test_models_on_one_base_share_their_shapes(mesh, tmp_path, monkeypatch):
    outlines = Outlines(mesh, ComputeConfig())
    monkeypatch.setattr(Outlines, "_config", lambda self, folder: TINY)
    monkeypatch.setattr("rlhf.stages.outlines.resolve_model_folder", lambda folder: tmp_path / folder)
    source = ModelSource(init_from="base", adapter=AdapterConfig())
    policy, reference = outlines.policy(source), outlines.reference(source)
    _, adapter, frozen = nnx.split(policy, trained(policy), ...)
    known = {id(leaf) for leaf in jax.tree.leaves(nnx.state(reference))}
    assert all(id(leaf) in known for leaf in jax.tree.leaves(frozen) if leaf.ndim > 1)
    assert adapter and not any(id(leaf) in known for leaf in jax.tree.leaves(adapter))


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("opt-1.3b", 1_315_758_080 + 2048 * 2048),  # as published, and positions from 2,048 to 4,095
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3.1-8b", 8_030_261_248),
    ],
)
def test_described_models_have_the_size_of_those_that_they_are_named_after(name, parameters):
    source = load_config(ModelSource, [DESCRIBED / f"{name}.yaml"])
    policy = Outlines(make_mesh(MeshConfig()), source.compute).policy(source)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(policy))) == parameters


def ids_of(model):
    return {id(leaf) for leaf in jax.tree.leaves(nnx.state(model))}


@pytest.fixture
def description(tmp_path):
    """A file that describes a model which has no weights yet, as configs/models/llama2-7b.yaml does."""
    file = tmp_path / "model.yaml"
    save_config(ModelSource(architecture=TINY), file)
    return str(file)


def test_with_an_adapter_all_roles_stand_on_one_described_base(mesh, description):
    adapter = AdapterConfig()
    source = ModelSource(architecture=TINY, adapter=adapter)
    outlines = Outlines(mesh, ComputeConfig())
    reference, policy = outlines.reference(source), outlines.policy(source)
    judge = outlines.reward_model(description, adapter)
    matrices = {id(leaf) for leaf in jax.tree.leaves(nnx.state(reference.blocks)) if leaf.ndim > 2}
    assert matrices <= ids_of(policy) and matrices <= ids_of(judge)
    own = [nnx.split(model, trained(model), ...)[1] for model in (policy, judge)]
    assert all(jax.tree.leaves(state) for state in own)
    assert not {id(leaf) for leaf in jax.tree.leaves(own[0])} & {id(leaf) for leaf in jax.tree.leaves(own[1])}


def test_without_one_each_role_has_a_model_of_its_own(mesh, description):
    source = ModelSource(architecture=TINY)
    outlines = Outlines(mesh, ComputeConfig())
    models = [outlines.policy(source), outlines.reference(source), outlines.scorer_to_train(source)]
    models += [outlines.reward_model(description) for _ in range(2)]
    assert len(set.union(*map(ids_of, models))) == sum(len(ids_of(model)) for model in models)


def test_models_that_a_program_does_not_read_take_memory_all_the_same(mesh, description):
    sizes = {"rollout_batch_size": 8, "minibatch_size": 8, "response_length": 8, "epochs": 1}
    config = ppo.Config(
        model=ModelSource(architecture=TINY),
        helpfulness=description,
        max_prompt_length=8,
        ppo=PPOConfig(**sizes),
        mesh=MESH,
    )
    topology = Topology("cpu", CHIPS["v5e"], list(mesh.devices.flat))
    with jax.set_mesh(mesh):
        rollout, score, update = ahead.ppo_programs(config, mesh, topology)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(load_policy(config.model, 0), nnx.Param)))
    # Policy and value model with two moments each, reference and reward model; matrices lie in four parts.
    least = (3 + 3 + 1 + 1) * 4 * parameters / 4
    for estimate in (rollout, score, update):
        assert least < estimate.memory.arguments < 1.5 * least


def test_sampling_and_scoring_hold_every_model(mesh, description):
    sizes = {"batch_size": 8, "response_length": 8, "max_prompt_length": 8, "mesh": MESH}
    topology = Topology("cpu", CHIPS["v5e"], list(mesh.devices.flat))
    config = best_of_n.Config(model=ModelSource(architecture=TINY), helpfulness=description, **sizes)
    with jax.set_mesh(mesh):
        found = list(ahead.sampling_programs(config, mesh, topology))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(load_policy(config.model, 0), nnx.Param)))
    assert [estimate.name for estimate in found] == ["sample", "score"]
    for estimate in found:
        assert 2 * 4 * parameters / 4 < estimate.memory.arguments < 1.5 * 2 * 4 * parameters / 4
    assert all(estimate.costs.flops > 0 and estimate.costs.collectives for estimate in found)


def test_what_evaluation_holds(mesh, description):
    places = {"policies": {"a": description, "b": description}, "reference": description, "safety": description}
    policy, reference, judges = ahead._models_that_sample(evaluate.Config(**places), mesh)
    assert judges.keys() == {"safety"}
    assert ids_of(policy).isdisjoint(ids_of(reference))
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.state(policy))] == [
        leaf.shape for leaf in jax.tree.leaves(nnx.state(reference))
    ]
    with pytest.raises(UserError, match="policies is empty"):
        ahead._models_that_sample(evaluate.Config(), mesh)


def test_what_is_said_of_a_train_step(mesh):
    topology = Topology("cpu", CHIPS["v5e"], list(mesh.devices.flat))
    with jax.set_mesh(mesh):
        (found,) = ahead.supervised_programs(CONFIG, mesh, topology)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(load_policy(CONFIG.model, 0), nnx.Param)))
    tokens = 8 * 16 / 8
    assert 6 * parameters * tokens < found.costs.flops < 12 * parameters * tokens  # a backward pass is two forward ones
    assert found.costs.collectives and found.memory.fits
    assert found.memory.arguments > 3 * 4 * parameters / 4  # parameters and two moments, over four parts


def test_the_command_asks_for_what_it_needs(capsys):
    assert main(["compile", "--stage", "sft"]) == 2
    assert "--topology" in capsys.readouterr().err
    assert main(["compile", "--topology=v5e:4x4", "--stage=world"]) == 2
    assert "pretrain, sft, reward, ppo, best-of-n, evaluate" in capsys.readouterr().err
    assert main(["compile", "--help", "--stage=ppo"]) == 0
    assert "--ppo.clip_range" in capsys.readouterr().out


def test_a_batch_that_does_not_divide_is_refused(mesh):
    topology = Topology("cpu", CHIPS["v5e"], list(mesh.devices.flat))
    config = sft.Config(model=CONFIG.model, loop=LoopConfig(steps=1, batch_size=6), mesh=MESH)
    with pytest.raises(UserError, match=r"loop\.batch_size"):
        list(ahead.supervised_programs(config, mesh, topology))


HALF = "{vocab_size: 64, width: 32, layers: 2, heads: 2, mlp_width: 64, tied_embeddings: false}"
FOR_GPUS = [
    *(f"--model.architecture={HALF}", "--model.compute.dtype=bfloat16", "--model.compute.parameter_dtype=bfloat16"),
    *("--mesh.fsdp=8", "--mesh.data=1", "--loop.batch_size=8", "--max_length=64"),
]


def test_for_gpus_without_one(capsys, monkeypatch):
    monkeypatch.setitem(GPUS, "h100", replace(GPUS["h100"], usable_memory=1000))
    assert main(["compile", "--topology", "h100:8", "--json", *FOR_GPUS]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["stage"], content["topology"], content["devices"]) == ("sft", "h100:8", 8)
    assert content["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
    (program,) = content["programs"]
    assert content["estimated"] is program["estimated"] is True
    assert content["fits"] is program["fits"] is False
    assert program["exceeds_by"] == program["memory"]["peak"] - 1000
    assert set(program["knobs"].values()) < set(ahead.SUPERVISED_KNOBS.values())
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    parameters = layers + 2 * 64 * 32 + 5 * 32
    assert program["memory"]["arguments"] == pytest.approx((2 + 4 + 4) * parameters / 8, rel=0.3)
    gathered = program["collectives"]["all-gather"]["bytes"]
    assert gathered == pytest.approx(2 * 2 * parameters * 7 / 8, rel=0.3)  # 16-bit parameters, forward and backward
    assert "reduce-scatter" in program["collectives"]


def test_the_rules_of_the_configuration_hold(capsys, monkeypatch):
    found = []

    def programs(config, mesh, topology):
        found.append(Outlines(mesh, config.model.compute).policy(config.model).embedding.get_value().sharding.spec)
        return iter(())

    monkeypatch.setattr(ahead, "_programs_of", lambda stage: (programs, {}))
    for words in ([], ["--mesh.rules={vocab: fsdp, embed: null}"]):
        assert main(["compile", "--topology", "h100:8", "--json", *FOR_GPUS, *words]) == 0
    assert found == [PartitionSpec("tensor", "fsdp"), PartitionSpec("fsdp", None)]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_for_a_real_slice(capsys):
    """The splash kernel meets the TPU's own compiler, and every product is counted, those within the kernel too."""
    chips, rows, length, layers, width = 4, 4, 1024, 2, 256
    model = f"{{vocab_size: 64, width: {width}, layers: {layers}, heads: 2, kv_heads: 1, mlp_width: 128}}"
    words = [f"--model.architecture={model}", "--model.compute.attention=splash", f"--mesh.fsdp={chips}"]
    words += [f"--loop.batch_size={rows}", f"--max_length={length}", "--json"]
    assert main(["compile", "--topology", "v5e:2x2", *words]) == 0
    content = json.loads(capsys.readouterr().out)
    (program,) = content["programs"]
    assert content["fits"] and not content["estimated"] and "all-gather" in program["collectives"]
    attention, mlp = 3 * width * width, 3 * width * 128  # two heads share the keys and the values of one
    parameters = layers * (attention + mlp) + 64 * width
    products, computed = 2 + 3 + 4, 3 / 4  # forward and of its gradients; of the four blocks of 512 x 512 one is hidden
    kernel = layers * products * computed * 2 * length * length * width
    assert program["flops"] == pytest.approx(rows / chips * (6 * parameters * length + kernel), rel=1e-3)
