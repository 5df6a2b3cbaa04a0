"""Which implementation is chosen where, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.kernels import choice
from rlhf.models.kernels.choice import choose_kernel
from rlhf.models.transformer import Transformer
from rlhf.parallel.mesh import MeshConfig, make_mesh


@pytest.fixture
def on(monkeypatch):
    """Pretends that the devices are of a platform, and sets a mesh of one."""

    def on(platform: str):
        monkeypatch.setattr(choice, "_platform", lambda: platform)

    with jax.set_mesh(make_mesh(MeshConfig(data=1))):
        yield on


def narrow(call):
    arrays = {name: getattr(call, name).astype(jnp.bfloat16) for name in ("queries", "keys", "values")}
    return dataclasses.replace(call, **arrays)


def test_each_platform_has_its_kernel(on, make_call):
    call = narrow(make_call(128, 128))
    for platform, kernel in (("gpu", "cudnn"), ("tpu", "splash"), ("cpu", None)):
        on(platform)
        assert choose_kernel("auto", call, has_bias=False) == kernel
        assert choose_kernel("plain", call, has_bias=False) is None


@pytest.mark.parametrize(
    ("platform", "kernel", "change", "has_bias", "message"),
    [
        ("cpu", "cudnn", {}, False, "run on the platform cpu"),
        ("tpu", "cudnn", {}, False, "run on the platform tpu"),
        ("gpu", "cudnn", {}, True, "ALiBi"),
        ("tpu", "splash", {}, True, "ALiBi"),
        ("gpu", "cudnn", {"soft_cap": 2.0}, False, "attention.soft_cap"),
        ("gpu", "cudnn", {"queries": jnp.zeros((2, 128, 2, 2, 128))}, False, "float32, only in bfloat16"),
        ("gpu", "cudnn", {"queries": jnp.zeros((2, 128, 2, 2, 36), jnp.bfloat16)}, False, "heads of size 36"),
        ("gpu", "cudnn", {"queries": jnp.zeros((2, 127, 2, 2, 128), jnp.bfloat16)}, False, "127 queries"),
        ("tpu", "splash", {"segment_ids": None}, False, "know this mask"),
        (
            "tpu",
            "splash",
            {"queries": jnp.zeros((2, 100, 2, 2, 128))},
            False,
            "rows of 100 tokens, only multiples of 128",
        ),
    ],
)
def test_what_a_kernel_cannot_do_is_plain_or_refused(on, make_call, platform, kernel, change, has_bias, message):
    on(platform)
    call = dataclasses.replace(narrow(make_call(128, 128)), **change)
    if not message.startswith("run on"):
        assert choose_kernel("auto", call, has_bias=has_bias) is None
    with pytest.raises(UserError, match=message):
        choose_kernel(kernel, call, has_bias=has_bias)


def test_without_a_mesh_several_devices_have_no_kernel(monkeypatch, make_call):
    monkeypatch.setattr(choice, "_platform", lambda: "tpu")
    assert choose_kernel("auto", make_call(128, 128), has_bias=False) is None


def test_the_configuration_reaches_the_choice(make_model, hidden_states):
    model = make_model(compute=ComputeConfig(attention="splash"))
    with pytest.raises(UserError, match="splash, which cannot run on the platform cpu"):
        hidden_states(model, [[3, 4]], [[1, 1]])


def test_a_kernel_is_given_segments_only_where_they_are_all_of_the_mask(make_model, hidden_states, monkeypatch):
    seen = []

    def watch(asked, call, *, has_bias):
        seen.append((call.segment_ids is not None, call.window))

    monkeypatch.setattr("rlhf.models.attention.choose_kernel", watch)
    cases = [
        ({}, (True, None)),
        ({"attention__window": 3}, (True, 3)),
        ({"attention__window": 3, "attention__window_layers": (False,) * 3}, (True, None)),
        ({"attention__window": 3, "attention__window_layers": (True, False, True)}, (False, 3)),
    ]
    for choices, expected in cases:
        attention = {name.removeprefix("attention__"): value for name, value in choices.items()}
        model = make_model(seed=7, attention=dataclasses.replace(make_model().config.attention, **attention))
        hidden_states(model, [[3, 4]], [[1, 1]])
        assert seen.pop() == expected
        seen.clear()


def test_prompts_are_read_by_the_kernel_of_whole_rows_and_tokens_are_not(on):
    config = ModelConfig(vocab_size=16, width=256, layers=2, heads=2, kv_heads=1, mlp_width=16, context=256)
    model = Transformer(config, rngs=nnx.Rngs(0))
    tokens = jnp.ones((2, 128), jnp.int32)
    cache = model.new_cache(2, 128)
    on("tpu")
    calls = {
        "rows": lambda: model(tokens, tokens),
        "prompts": lambda: model.prefill(tokens, tokens, tokens > 0, 128),
        "one token": lambda: model.decode(tokens[:, :1], tokens[:, :1], tokens[:, :1] > 0, cache),
    }
    lowered = {name: jax.jit(call).trace().lower(lowering_platforms=("tpu",)).as_text() for name, call in calls.items()}
    assert {name: text.count("tpu_custom_call") for name, text in lowered.items()} == {
        "rows": 1, "prompts": 1, "one token": 0,
    }  # fmt: skip
