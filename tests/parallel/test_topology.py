"""Slices to compile for. The compiler itself is an optional package; what needs it is skipped without."""

import importlib.util

import pytest

from rlhf.errors import UserError
from rlhf.parallel.topology import describe_topology

HAS_COMPILER = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v9:2x2", "v5e:4", "v5e:4xx4", "4x4"])
def test_names_that_mean_nothing_are_refused(name):
    with pytest.raises(UserError, match="v5e:4x4"):
        describe_topology(name)


@pytest.mark.skipif(HAS_COMPILER, reason="libtpu is installed")
def test_without_the_compiler_it_says_what_to_install():
    with pytest.raises(UserError, match="pip install"):
        describe_topology("v5e:4x4")


@pytest.mark.skipif(not HAS_COMPILER, reason="libtpu is not installed")
@pytest.mark.parametrize("name, chips", [("v5e:4x4", 16), ("v5p:2x2x1", 4), ("v4:2x2x2", 8), ("v6e:2x2", 4)])
def test_a_device_is_a_chip(name, chips):
    assert len(describe_topology(name).devices) == chips


@pytest.mark.skipif(not HAS_COMPILER, reason="libtpu is not installed")
def test_a_grid_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="v5e:3x3"):
        describe_topology("v5e:3x3")
