import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from safetensors.numpy import load_file, save_file

from rlhf.errors import UserError
from rlhf.models import hub_download
from rlhf.models.config import ComputeConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import load_scorer, load_transformer, resolve_model_folder, save_scorer, save_transformer
from rlhf.models.tensor_files import open_tensors
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import state_shardings


def same_weights(found: nnx.Module, expected: nnx.Module) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, nnx.state(found), nnx.state(expected)))


@pytest.fixture
def folder(make_model, tmp_path):
    save_transformer(make_model(tied_embeddings=False), tmp_path / "model", None)
    return tmp_path / "model"


def test_parameters_are_laid_out_over_a_mesh_as_they_are_read(make_model, folder, tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    model = load_transformer(folder, mesh=mesh)
    assert same_weights(model, make_model(tied_embeddings=False))
    expected = state_shardings(nnx.state(model), mesh)
    for found, sharding in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(expected), strict=True):
        assert found.sharding.is_equivalent_to(sharding, found.ndim)
    assert len(model.blocks.mlp.up.kernel[...].addressable_shards[0].data) == model.config.layers
    assert model.blocks.mlp.up.kernel[...].addressable_shards[0].data.shape[1:] == (16, 20)

    save_scorer(SequenceScorer(make_model(), rngs=nnx.Rngs(0)), tmp_path / "scorer", None)
    scorer = load_scorer(tmp_path / "scorer", rngs=nnx.Rngs(0), mesh=mesh)
    assert isinstance(scorer.transformer.embedding[...].sharding, NamedSharding)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_every_dtype_is_read(make_model, folder, stored):
    tensors = {name: tensor.astype(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    full = load_transformer(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(full))} == {np.dtype("float32")}
    rounded = jax.tree.map(
        lambda array: np.asarray(array).astype(stored).astype(np.float32), nnx.state(make_model(tied_embeddings=False))
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(full), rounded))
    half = load_transformer(folder, ComputeConfig(dtype="bfloat16", parameter_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_torch_files_are_read(make_model, folder, zipped):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    model, expected = load_transformer(folder), nnx.clone(make_model(tied_embeddings=False))
    scale = expected.final_norm.scale
    scale.set_value(scale[...].astype(ml_dtypes.bfloat16).astype(np.float32))
    assert same_weights(model, expected)


def test_torch_files_without_torch_say_what_to_do(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch is not installed\s.*install torch, or save the model as safetensors"):
        open_tensors(folder)


def test_names_may_lack_the_beginning(make_model, folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, folder / "model.safetensors")
    assert same_weights(load_transformer(folder), make_model(tied_embeddings=False))


def test_a_name_on_the_hub_is_fetched(make_model, folder, monkeypatch, tmp_path):
    asked = []

    def fetch(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert same_weights(load_transformer("nobody/nothing"), make_model(tied_embeddings=False))
    assert {name for name, _ in asked} == {"nobody/nothing"}
    assert not any(pattern.endswith(".bin") for _, patterns in asked for pattern in patterns)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    resolve_model_folder("nobody/nothing")
    assert "pytorch_model*.bin" in asked[-1][1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="there is no such folder"):
        resolve_model_folder("runs/not-there")  # the folder before it is here, so it is a path and no name


def test_without_a_network_the_error_says_so(monkeypatch):
    def fetch(*_, **__):
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(UserError, match=r"no such folder here, and the Hugging Face hub cannot be reached \(Name or"):
        hub_download.download_model("nobody/nothing")
