"""Names of slices, against the tables that Google publishes."""

import pytest
from launcher.problems import LaunchError
from launcher.slices import parse_slice


@pytest.mark.parametrize(
    "name, accelerator_type, chips, hosts, topology",
    [
        ("v5e-1", "v5litepod-1", 1, 1, "1x1"),
        ("v5e-8", "v5litepod-8", 8, 1, "2x4"),
        ("v5e-16", "v5litepod-16", 16, 4, "4x4"),
        ("v5litepod-256", "v5litepod-256", 256, 64, "16x16"),
        ("v6e-64", "v6e-64", 64, 16, "8x8"),
        ("v4-8", "v4-8", 4, 1, "2x2x1"),
        ("v5p-32", "v5p-32", 16, 4, "2x2x4"),
        ("v5p-128", "v5p-128", 64, 16, "4x4x4"),
    ],
)
def test_slices(name, accelerator_type, chips, hosts, topology):
    found = parse_slice(name)
    assert (found.accelerator_type, found.chips, found.hosts, found.topology) == (
        accelerator_type,
        chips,
        hosts,
        topology,
    )


@pytest.mark.parametrize("name", ["v5e", "v9-8", "v5e-5", "v5p-6", "v5e-x", ""])
def test_what_is_no_slice_is_refused_with_those_that_are(name):
    with pytest.raises(LaunchError, match="v5"):
        parse_slice(name)
