"""Which keys a configuration has, and that every key of every real stage is documented."""

import importlib
from dataclasses import dataclass, is_dataclass

import pytest

from rlhf.cli import STAGES
from rlhf.config_keys import config_keys, nearest_key


@dataclass(frozen=True)
class Base:
    """Inherited part.

    Attributes:
        seed: where randomness starts,
            told over two lines.
    """

    seed: int = 0


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        kl_coef: weight of the penalty.
    """

    kl_coef: float = 0.1


@dataclass(frozen=True)
class Config(Base):
    """A stage.

    Attributes:
        ppo: the algorithm.
        other: the same, or none.
        named: by name.
    """

    ppo: Part = Part(0.5)
    other: Part | None = None
    named: dict[str, Part] | None = None


def test_every_key_is_listed_with_its_documentation_and_default():
    keys = {key.name: (key.default, key.help) for key in config_keys(Config)}
    assert list(keys) == ["seed", "ppo", "ppo.kl_coef", "other", "other.kl_coef", "named", "named.NAME.kl_coef"]
    assert keys["ppo.kl_coef"] == (0.5, "weight of the penalty.")
    assert keys["other.kl_coef"][0] == 0.1
    assert keys["seed"] == (0, "where randomness starts, told over two lines.")


def test_nearest_key_looks_at_the_whole_and_at_the_last_part():
    assert nearest_key("ppo.kl_coeff", Config) == "ppo.kl_coef"
    assert nearest_key("kl_coef", Config) == "ppo.kl_coef"
    assert nearest_key("named.x.kl_cof", Config) == "named.x.kl_coef"
    assert nearest_key("unrelated", Config) is None


# `rlhf compile` takes the configuration of the stage that it compiles.
@pytest.mark.parametrize("command", [command for command in STAGES if command != "compile"])
def test_every_key_of_a_stage_is_documented(command):
    stage = importlib.import_module(STAGES[command][0])
    assert is_dataclass(stage.Config) and stage.Config.__dataclass_params__.frozen
    undocumented = [key.name for key in config_keys(stage.Config) if not key.help]
    assert not undocumented, f"say in the docstring of the dataclass what these are for: {undocumented}"
    assert callable(stage.run)
