"""Rules that a configuration changes: what is refused, where they hold, and that no two tables are mixed up."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from rlhf.config_files import load_config, save_config
from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import batch_sharding, constrain, gather_over, parts_of, shard_state, state_shardings
from rlhf.parallel.table import ARRAYS, by_its_rules, mesh_axes_of, rules_changed
from rlhf.stages import sft

CONFIG = ModelConfig(vocab_size=48, width=32, layers=2, heads=4, kv_heads=2, mlp_width=24, tied_embeddings=False)
UP_KERNEL, QUERY_KERNEL = ("blocks", "mlp", "up", "kernel"), ("blocks", "attention", "query", "kernel")
CHANGES = {"vocab": "fsdp", "embed": None, "mlp": ["tensor", "fsdp"]}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def shapes():
    return nnx.state(nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    "words",
    [
        ["mesh.rules={vocab: fsdp, embed: null, mlp: [tensor, fsdp]}"],
        ["mesh.rules.vocab=fsdp", "mesh.rules.embed=null", "mesh.rules.mlp=[tensor, fsdp]"],
    ],
    ids=["as a section", "one by one"],
)
def test_rules_are_spelt_alike_in_a_file_and_on_the_command_line(tmp_path, words):
    config = load_config(sft.Config, [], words)
    assert config.mesh.rules == CHANGES
    save_config(config, tmp_path / "config.yaml")
    assert load_config(sft.Config, [tmp_path / "config.yaml"]) == config


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mlpp": "tensor"}, r"no axis 'mlpp'\n.*choose from batch, time,.* mlp, vocab"),
        ({"mlp": "model"}, r"mesh\.rules\.mlp: the mesh has no axis 'model'\n.*data, fsdp, tensor, sequence, or null"),
        ({"mlp": ["tensor", "fsdp"]}, r"fsdp would divide .* by embed and by mlp\n.*mesh\.rules\.embed.* null or data"),
        ({"mlp": ["tensor", "tensor"]}, "by mlp and by mlp"),
        ({"batch": ["data", "tensor"]}, "by batch and by heads"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_could(rules, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(rules=rules)


def adapted(kind: str):
    return nnx.eval_shape(lambda: insert(Transformer(CONFIG, rngs=nnx.Rngs(0)), AdapterConfig(kind=kind), nnx.Rngs(1)))


@pytest.mark.parametrize("kind", ["whole", "scorer", "lora", "bottleneck", "prefix", "ia3"])
def test_axes_of_every_array_are_looked_at_together(kind):
    if kind in ("whole", "scorer"):
        model = nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
        model = (
            nnx.eval_shape(lambda model: SequenceScorer(model, rngs=nnx.Rngs(0)), model) if kind == "scorer" else model
        )
    else:
        model = adapted(kind)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        axes = set(variable.get_metadata("axes", None) or ()) - {None}
        assert any(axes <= set(together) for together in ARRAYS), (path, axes)


def test_parameters_lie_by_the_rules_in_effect(shapes, mesh):
    with rules_changed(CHANGES):
        changed = dict(nnx.to_flat_state(state_shardings(shapes, mesh)))
    usual = dict(nnx.to_flat_state(state_shardings(shapes, mesh)))
    found = [
        [layout[path].get_value().spec for path in (("embedding",), UP_KERNEL, QUERY_KERNEL)]
        for layout in (changed, usual)
    ]
    assert found == [
        [P("fsdp", None), P(None, None, ("tensor", "fsdp")), P(None, None, "tensor", None)],
        [P("tensor", "fsdp"), P(None, "fsdp", "tensor"), P(None, "fsdp", "tensor", None)],
    ]


def test_sizes_are_held_against_the_rules_in_effect(shapes):
    mesh, narrow = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)), replace(CONFIG, mlp_width=20)
    narrow = nnx.state(nnx.eval_shape(lambda: Transformer(narrow, rngs=nnx.Rngs(0))))
    state_shardings(narrow, mesh)
    message = r"mesh\.tensor x mesh\.fsdp = 8 .*'mlp'.*size is 20\n.* to one of 1, 2, 4,.*mesh\.rules\.mlp"
    with rules_changed({"embed": None, "mlp": ["tensor", "fsdp"]}):
        state_shardings(shapes, mesh)
        with pytest.raises(UserError, match=message):
            state_shardings(narrow, mesh)


def test_batches_and_parts_follow(mesh):
    with rules_changed({"batch": "data", "time": "fsdp"}):
        assert batch_sharding(mesh).spec == P("data")
        assert (parts_of("batch", mesh), parts_of("time", mesh)) == (2, 2)
    assert (parts_of("batch", mesh), parts_of("time", mesh)) == (4, 1)


def test_gathering_over_one_axis_leaves_the_others(shapes, mesh):
    arrays = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    with rules_changed(CHANGES), jax.set_mesh(mesh):
        gathered = jax.jit(lambda state: gather_over("fsdp", state))(shard_state(arrays, mesh))
    assert gathered["blocks"]["mlp"]["up"]["kernel"].get_value().sharding.spec == P(None, None, "tensor")
    assert gathered["embedding"].get_value().sharding.is_fully_replicated


def test_one_function_is_compiled_once_for_each_table(mesh):
    program = jax.jit(lambda array: constrain(array, ("batch", "mlp")))
    with jax.set_mesh(mesh):
        for _ in range(2):
            for changes, spec in [({}, (("data", "fsdp"), "tensor")), ({"mlp": None}, (("data", "fsdp"),))]:
                with rules_changed(changes):
                    assert program(jnp.zeros((8, 4))).sharding.spec == P(*spec)
    assert program._cache_size() == 2


def test_rules_hold_for_one_stage_alone():
    @by_its_rules
    def run(config: sft.Config, fails: bool = False):
        if fails:
            raise ValueError
        return mesh_axes_of("vocab")

    config = sft.Config(mesh=MeshConfig(rules={"vocab": "fsdp", "embed": None}))
    assert run(config) == ("fsdp",)
    with pytest.raises(ValueError):
        run(config, fails=True)
    assert mesh_axes_of("vocab") == run(sft.Config()) == ("tensor",)
