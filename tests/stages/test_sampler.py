"""The sampler that best-of-n and evaluate share follows every one of their keys."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.generation.sampling import SamplingConfig
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.rewards.combine import CombineConfig
from rlhf.stages import best_of_n, evaluate, sampler


@pytest.fixture(params=[best_of_n.Config, evaluate.Config], ids=["best-of-n", "evaluate"])
def config(request):
    return request.param()


@pytest.fixture
def settings_of(monkeypatch):
    """What the sampler of a configuration is made with."""
    monkeypatch.setattr(sampler, "ScoredSampler", lambda *models, **settings: settings)

    def settings_of(config, devices: int = 1) -> dict:
        mesh = make_mesh(MeshConfig(data=devices))
        return sampler.configured_sampler(config, SimpleNamespace(), SimpleNamespace(), mesh, reward_models={})

    return settings_of


@pytest.mark.parametrize("devices", [1, 2])
def test_prompts_enter_where_a_response_has_ended_on_one_device_alone(config, settings_of, devices):
    assert settings_of(config, devices)["refill"] == (devices == 1)


@pytest.mark.parametrize(
    ("key", "value", "setting"),
    [
        ("sampling", SamplingConfig(top_k=3), "sampling"),
        ("response_length", 5, "max_new_tokens"),
        ("combine", CombineConfig(threshold=0.3), "combine"),
        ("batch_size", 6, "batch_size"),
        ("minimum_length", 2, "minimum_new_tokens"),
        ("stop_strings", ("e",), "stop_strings"),
        ("rollout_weights", "gathered", "rollout_weights"),
    ],
)
def test_settings_are_the_keys(config, settings_of, key, value, setting):
    assert settings_of(config)[setting] != value
    assert settings_of(replace(config, **{key: value}))[setting] == value


def test_stop_strings_count_after_the_minimum_or_after_a_length_of_their_own(config, settings_of):
    assert settings_of(replace(config, minimum_length=2))["stop_minimum"] == 2
    assert settings_of(replace(config, minimum_length=2, stop_after=3))["stop_minimum"] == 4


def test_a_batch_that_the_devices_cannot_share_is_refused(config, settings_of):
    with pytest.raises(UserError, match="batch_size is 7"):
        settings_of(replace(config, batch_size=7), devices=2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"minimum_length": 6}, "minimum_length is 6, response_length 6"),
        ({"stop_after": 6}, "stop_after is 6, response_length 6"),
        ({"stop_strings": ("",)}, "stop_strings holds an empty string"),
    ],
)
def test_ends_that_cannot_be_are_refused(config, keys, message):
    with pytest.raises(UserError, match=message):
        replace(config, response_length=6, **keys)
