"""From a compiled program, or a compiler that gave up, to what people read."""

import json

import jax
import jax.numpy as jnp
import pytest

from rlhf.compilation.ahead import Estimate, Memory, _memory_from_error, _text, estimate
from rlhf.compilation.costs import Costs, Traffic
from rlhf.compilation.report import as_json, as_text
from rlhf.errors import UserError
from rlhf.parallel.chips import CHIPS, Chip, Node
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.topology import Topology

GIB = 2**30
KNOBS = {"arguments": "more chips", "temporaries": "smaller batches"}


def made(memory: Memory, costs: Costs | None) -> Estimate:
    return Estimate("train step", memory, costs, Chip(100.0, 16 * GIB, 50.0, 10.0), 1.0)


def written(*estimates: Estimate, is_stood_in_for: bool = False) -> dict:
    topology = Topology("v5e:2x4", CHIPS["v5e"], jax.devices(), is_stood_in_for)
    return json.loads(json.dumps(as_json(estimates, KNOBS, topology, make_mesh(MeshConfig(data=2, fsdp=4)))))


def test_what_the_compiler_says_when_memory_does_not_suffice():
    temporaries = _memory_from_error(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (191.76G) exceeds available"
        " HBM (15.75G). HLO module: jit_f."
    )
    assert not temporaries.fits and temporaries.peak == temporaries.temporaries == 191.76 * GIB
    everything = _memory_from_error(
        "Ran out of memory in memory space hbm. Used 25.30G of 15.75G hbm. Exceeded by 9.55G."
    )
    assert (everything.peak, everything.capacity) == (25.30 * GIB, 15.75 * GIB)
    assert _memory_from_error("INTERNAL: something else") is None


def test_a_program_in_words_of_another_version_is_refused_with_what_to_install():
    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update should have 1 operands\nstack trace")

    with pytest.raises(UserError, match=r"update was compiled, but .* should have 1 operands\n") as refusal:
        _text("update", Unreadable())
    assert "rlhf[tpu]" in refusal.value.fix


def test_the_longest_time_bounds_a_run():
    found = made(Memory(1, 1, 1, 3, 16 * GIB), Costs(200.0, 50.0, {"all-gather": Traffic(2, 40.0)}))
    assert found.seconds == {"arithmetic": 2.0, "memory": 1.0, "network": 4.0}
    assert found.bound == "network" and found.utilisation == 0.5
    text = as_text([found], KNOBS)
    assert "4,000.0 ms a run, bound by network: 50 %" in text and "all-gather" in text and "NOT FIT" not in text
    (content,) = written(found)["programs"]
    assert content["fits"] and content["collectives"]["all-gather"]["bytes"] == 40.0
    assert content["exceeds_by"] == 0 and content["knobs"] == {}


@pytest.mark.parametrize(
    "memory, advice",
    [
        (Memory(14 * GIB, 0, 4 * GIB, 18 * GIB, 16 * GIB), "more chips"),
        (Memory(4 * GIB, 0, 14 * GIB, 18 * GIB, 16 * GIB), "smaller batches"),
        (Memory(None, None, 18 * GIB, 18 * GIB, 16 * GIB), "smaller batches"),
    ],
)
def test_what_does_not_fit_says_by_how_much_and_what_helps(memory, advice):
    text = as_text([made(memory, None)], KNOBS)
    assert "does NOT FIT, by 2.00 GiB" in text and advice in text
    assert "of 16.00 GiB" in text
    assert "at best" not in text  # nothing is known of its speed
    content = written(made(memory, None), made(Memory(1, 1, 1, 3, 16 * GIB), None))
    assert (content["topology"], content["devices"], content["mesh"]["fsdp"]) == ("v5e:2x4", 8, 4)
    assert not content["fits"] and not content["estimated"]
    large, small = content["programs"]
    assert not large["fits"] and large["exceeds_by"] == 2 * GIB and list(large["knobs"].values()) == [advice]
    assert small["fits"]


def test_where_nothing_is_known_of_the_parts_all_knobs_are_named():
    estimate = made(Memory(None, None, None, 18 * GIB, 16 * GIB), None)
    assert written(estimate)["programs"][0]["knobs"] == KNOBS
    assert all(advice in as_text([estimate], KNOBS) for advice in KNOBS.values())


def test_estimates_are_marked():
    costs = Costs(200.0, 50.0, {"all-gather": Traffic(2, 40.0, 20.0)})
    gpu = Chip(100.0, 16 * GIB, 50.0, 10.0, Node(8, 2.0))
    found = Estimate("train step", Memory(GIB, 0, GIB, 2 * GIB, 16 * GIB), costs, gpu, 1.0, is_stood_in_for=True)
    assert found.bound == "between nodes" and found.seconds["between nodes"] == 10.0
    text = as_text([found], KNOBS)
    assert "~2.00 GiB of 16.00 GiB: arguments 1.00 GiB" in text and "temporaries ~1.00 GiB" in text
    assert "other nodes  ~20.00 B" in text and "~ marks estimates" in text
    content = written(found, is_stood_in_for=True)
    (program,) = content["programs"]
    assert content["estimated"] is program["estimated"] is True
    assert (
        "memory.temporaries" in program["estimated_figures"] and "memory.arguments" not in program["estimated_figures"]
    )


def test_a_program_compiled_here():
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    found, compiled = estimate("square", lowered, Topology("cpu", CHIPS["v5e"], jax.devices()))
    assert compiled is not None and found.costs.flops == 2 * 64**3
    assert found.memory.arguments == found.memory.results == 64 * 64 * 4 and found.memory.fits


def test_a_program_fits_what_the_compiler_can_use_of_a_chip():
    """A quarter of a GiB of v5e is not to be had, though all of 16 are published."""
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32))

    def found(present: int) -> Memory:
        chip = Topology("cpu", CHIPS["v5e"], jax.devices())
        return estimate("square", lowered, chip, jax.ShapeDtypeStruct((present,), jnp.uint8))[0].memory

    beside = found(2 * GIB)
    most = int(15.75 * GIB) - int(beside.results + beside.temporaries)
    assert found(most).fits and found(most).peak == found(most).capacity
    assert not found(most + 1).fits
