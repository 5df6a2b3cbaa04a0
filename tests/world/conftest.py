"""A small world, built once, and prompts by hand."""

import pytest

from rlhf.data.records import Message, Prompt
from rlhf.world import World, WorldConfig, build_world

SMALL = WorldConfig(
    documents=300,
    demonstrations=300,
    helpfulness_rankings=400,
    safety_rankings=300,
    held_out_comparisons=100,
    prompts=200,
    held_out_prompts=100,
)


@pytest.fixture(scope="session")
def small_config() -> WorldConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_world() -> World:
    return build_world(SMALL)


@pytest.fixture
def ask():
    """Makes a prompt about a relation and an entity."""

    def make(relation: str, entity: str, language: str = "en", kind: str = "fact") -> Prompt:
        metadata = {"kind": kind, "language": language, "relation": relation, "entity": entity}
        return Prompt((Message("user", "?"),), is_safety=kind == "harmful", metadata=metadata)

    return make
