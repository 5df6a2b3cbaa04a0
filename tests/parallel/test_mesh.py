import jax
import pytest

from rlhf.errors import UserError
from rlhf.parallel.mesh import MeshConfig, make_mesh


def test_the_axis_of_minus_one_takes_what_is_left():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert dict(make_mesh(MeshConfig(data=1, fsdp=-1)).shape)["fsdp"] == len(jax.devices())


def test_a_mesh_may_cover_some_devices_only():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1
    assert make_mesh(MeshConfig(data=2, tensor=2)).size == 4


@pytest.mark.parametrize("config", [MeshConfig(tensor=3), MeshConfig(data=16)])
def test_sizes_that_do_not_fit_the_devices_are_refused(config):
    with pytest.raises(UserError, match=r"devices, found 8"):
        make_mesh(config)


@pytest.mark.parametrize("sizes", [{"data": 0}, {"tensor": -2}, {"fsdp": -1}])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(UserError, match="at most one of them -1"):
        MeshConfig(**sizes)
