"""Folders of adapters: bit for bit what was saved, over one base however many are loaded."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.bases import Bases
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import (
    base_folder,
    base_name,
    is_scorer,
    load_base,
    load_scorer,
    load_transformer,
    read_config,
    read_model_config,
    save_adapter,
    save_transformer,
)
from rlhf.models.partition import AdapterParam
from rlhf.models.source import ModelSource, load_policy, load_scorer_to_train, save_model
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import shard_state


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save_transformer(base, folder, None)
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora", "prefix", "prompt", "bottleneck", "ia3", "bitfit"])
def test_saved_and_loaded_bit_for_bit(kind, adapted, folder, tmp_path):
    save_adapter(adapted(kind), tmp_path, None, folder)
    loaded = load_transformer(tmp_path)
    assert loaded.adapter_config == adapted(kind).adapter_config
    expected = nnx.to_flat_state(nnx.state(adapted(kind)))
    found = dict(nnx.to_flat_state(nnx.state(loaded)))
    assert found.keys() == set(expected.paths)
    for path, variable in expected:
        assert type(found[path]) is type(variable)
        np.testing.assert_array_equal(found[path][...], variable[...])
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.size for tensor in saved.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(adapted(kind), AdapterParam))
    )


def test_a_prefixs_network_is_dropped(adapted, folder, tmp_path, outputs):
    save_adapter(adapted("prefix network"), tmp_path, None, folder)
    loaded = load_transformer(tmp_path)
    assert loaded.adapter_config == AdapterConfig("prefix", length=3)
    np.testing.assert_allclose(outputs(loaded), outputs(adapted("prefix network")), atol=1e-5)


def test_lora_on_a_base_that_transformers_has_no_class_for(make_model, moved, tmp_path, outputs):
    base = make_model(position="learned")
    save_transformer(base, tmp_path / "base", None)
    model = moved(insert(base, AdapterConfig(rank=2), nnx.Rngs(0)))
    save_adapter(model, tmp_path / "adapter", None, tmp_path / "base")
    np.testing.assert_array_equal(outputs(load_transformer(tmp_path / "adapter")), outputs(model))


def test_a_folder_says_what_it_is(adapted, folder, tmp_path):
    save_adapter(adapted("ia3"), tmp_path / "stage" / "model", None, folder)
    scorer = SequenceScorer(adapted("ia3"), rngs=nnx.Rngs(0))
    save_adapter(scorer, tmp_path / "reward", None, folder)
    assert base_folder(tmp_path / "stage") == folder
    assert not is_scorer(read_config(tmp_path / "stage")) and is_scorer(read_config(tmp_path / "reward"))
    assert read_model_config(tmp_path / "stage") == read_model_config(folder)
    with pytest.raises(UserError, match="holds a reward model"):
        load_transformer(tmp_path / "reward")


def test_adapters_on_one_base_share_its_arrays(adapted, folder, tmp_path):
    for kind in ("lora", "ia3"):
        save_adapter(adapted(kind), tmp_path / kind, None, folder)
    bases = Bases()
    models = [load_transformer(tmp_path / kind, bases=bases) for kind in ("lora", "ia3")]
    models += [load_transformer(folder, bases=bases), load_base(folder, bases)]
    models.append(load_scorer(tmp_path / "lora", rngs=nnx.Rngs(0), bases=bases).transformer)
    assert all(model.embedding[...] is models[0].embedding[...] for model in models)
    assert models[0].blocks.attention.query.adapter.down[...] is not models[-1].blocks.attention.query.adapter.down[...]
    assert load_transformer(tmp_path / "lora").embedding[...] is not models[0].embedding[...]


def test_what_all_of_is_trained_has_arrays_of_its_own(folder):
    bases = Bases()
    shared, own = load_base(folder, bases), load_policy(ModelSource(init_from=str(folder)), 0, bases)
    assert own.embedding[...] is not shared.embedding[...]
    scorer = load_scorer_to_train(ModelSource(init_from=str(folder)), 0, bases)
    assert scorer.transformer.embedding[...] is not shared.embedding[...]
    source = ModelSource(init_from=str(folder), adapter=AdapterConfig("prompt"))
    assert load_policy(source, 0, bases).embedding[...] is shared.embedding[...]


def test_training_goes_on_from_an_adapter(adapted, folder, tmp_path):
    save_adapter(adapted("lora"), tmp_path / "first", None, folder)
    model = load_policy(ModelSource(init_from=str(tmp_path / "first")), 0)
    save_model(model, tmp_path / "second", None, str(tmp_path / "first"))
    assert base_folder(tmp_path / "second") == folder
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(UserError, match="has an adapter of kind lora already"):
        load_policy(ModelSource(init_from=str(tmp_path / "first"), adapter=AdapterConfig()), 0)


def test_an_adapter_needs_a_base():
    for settings in ({"adapter": AdapterConfig()}, {"base_storage": "int8"}):
        with pytest.raises(UserError, match=r"model\.init_from is not set"):
            load_policy(ModelSource(**settings), 0)


def test_files_that_do_not_fit(adapted, folder, tmp_path):
    save_adapter(adapted("bottleneck"), tmp_path, None, folder)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, raw = load_file(weights), json.loads(config.read_text())
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first][:1]}, weights)
    with pytest.raises(UserError, match=f"does not fit its base: {first}"):
        load_transformer(tmp_path)
    save_file({name: tensors[name] for name in tensors if name != first}, weights)
    with pytest.raises(UserError, match=f"does not fit its base: {first}"):
        load_transformer(tmp_path)
    weights.write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be read"):
        load_transformer(tmp_path)
    config.write_text(json.dumps(raw | {"rlhf_adapter": {"kind": "ia3", "colour": "red"}}))
    with pytest.raises(UserError, match=r"unknown \['colour'\]"):
        save_file(tensors, weights)
        load_transformer(tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json:1: not valid JSON"):
        load_transformer(tmp_path)


def test_a_base_on_the_hub_keeps_its_name(adapted, folder, tmp_path, monkeypatch):
    for module in ("rlhf.models.hub", "rlhf.models.adapters.folder"):
        monkeypatch.setattr(f"{module}.download_model", lambda name: folder)
    save_model(adapted("lora"), tmp_path / "first", None, "someone/model")
    assert (
        json.loads((tmp_path / "first" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "someone/model"
    )
    save_model(load_transformer(tmp_path / "first"), tmp_path / "second", None, str(tmp_path / "first"))
    assert base_name(tmp_path / "second") == "someone/model" and base_folder(tmp_path / "second") == folder
    assert base_name(folder) == str(folder.resolve())


def test_bases_lie_on_the_mesh_and_stay_shared(adapted, folder, tmp_path):
    save_adapter(adapted("lora"), tmp_path, None, folder)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    bases = Bases(mesh=mesh)
    models = []
    for model in (load_transformer(tmp_path, bases=bases), load_transformer(folder, bases=bases)):
        definition, state = nnx.split(model)
        models.append(nnx.merge(definition, shard_state(state, mesh)))
    assert len(models[0].embedding[...].sharding.device_set) == 2
    assert models[0].embedding[...] is models[1].embedding[...]
