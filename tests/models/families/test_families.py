import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rlhf.errors import UserError
from rlhf.models.cache import KVCache
from rlhf.models.families import FAMILIES, family_for, family_of
from rlhf.models.families.hf_config import HfConfig
from rlhf.models.hub import load_scorer, load_transformer, save_scorer, save_transformer
from rlhf.models.positions import positions_from_segments
from rlhf.models.weights import stored_tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 12
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    return [random.integers(3, 64, size=length) for length in (12, 7, 3)]


def test_logits_are_those_of_transformers(pair, rows, pad):
    for side in ("right", "left"):
        tokens, segments = pad(rows, LENGTH, side)
        found, expected = pair.logits(tokens, segments), pair.their_logits(tokens, segments)
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(found[segments > 0], expected[segments > 0], rtol=1e-4, atol=1e-4)


def test_packed_rows_are_read_as_if_each_were_alone(pair, rows, pad):
    packed = np.concatenate([rows[1], rows[2]])
    tokens, segments = np.zeros((2, 3, LENGTH), np.int32)
    tokens[0, : len(packed)], segments[0, : len(packed)] = packed, np.repeat([1, 2], [len(rows[1]), len(rows[2])])
    alone = pair.logits(*pad(rows, LENGTH, "right"))
    expected = np.concatenate([alone[1, : len(rows[1])], alone[2, : len(rows[2])]])
    np.testing.assert_allclose(pair.logits(tokens, segments)[0, : len(packed)], expected, rtol=1e-4, atol=1e-5)


def test_generation_through_the_cache_equals_the_full_forward(pair, rows, pad):
    prompts, steps = [row[: (len(row) + 1) // 2] for row in rows], 6
    prompt_tokens, prompt_segments = pad(prompts, LENGTH - steps, "left")

    @jax.jit
    def generate(state, tokens, segments):
        model = nnx.merge(pair.definition, state)
        cache = KVCache.create(model.config, model.compute, len(tokens), LENGTH)
        positions = positions_from_segments(segments)
        hidden, cache = model.decode(tokens, positions, segments > 0, cache)
        new = jnp.argmax(model.logits(hidden[:, -1]), axis=-1)

        def step(carry, _):
            new, position, cache = carry
            hidden, cache = model.decode(new[:, None], position, jnp.ones((len(new), 1), bool), cache)
            logits = model.logits(hidden[:, -1])
            return (jnp.argmax(logits, axis=-1), position + 1, cache), (new, logits)

        _, (written, logits) = jax.lax.scan(step, (new, positions[:, -1:] + 1, cache), length=steps)
        return written.T, logits.swapaxes(0, 1)

    written, logits = generate(pair.state, jnp.asarray(prompt_tokens), jnp.asarray(prompt_segments))
    tokens = np.concatenate([prompt_tokens, written], axis=1)
    segments = np.concatenate([prompt_segments, np.ones_like(written)], axis=1)
    full = pair.logits(tokens, segments)
    np.testing.assert_array_equal(written, full[:, -steps - 1 : -1].argmax(axis=-1))
    np.testing.assert_allclose(logits, full[:, -steps:], rtol=1e-4, atol=1e-4)


def test_writing_and_reading_gives_the_same_bits_and_the_same_model_to_transformers(pair, rows, pad, tmp_path):
    save_transformer(pair.ours, tmp_path, None)
    again = load_transformer(tmp_path)
    assert again.config == pair.ours.config
    assert again.config.family == pair.theirs.config.model_type
    for found, expected in zip(jax.tree.leaves(nnx.state(again)), jax.tree.leaves(pair.state), strict=True):
        np.testing.assert_array_equal(found, expected)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=pair.attention
    )
    assert not any(report.values()), report
    for (name, found), (_, expected) in zip(theirs.named_parameters(), pair.theirs.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
    tokens, segments = pad(rows, LENGTH, "left")
    with torch.no_grad():
        found = theirs.eval()(**pair.their_inputs(tokens, segments)).logits.numpy()
    np.testing.assert_allclose(found, pair.their_logits(tokens, segments), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_training_step_are_those_of_transformers(first_of_family, rows, pad):
    pair = first_of_family
    tokens, segments = pad(rows, LENGTH, "right")
    counted = (segments[:, 1:] > 0).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradients(state):
        model = nnx.merge(pair.definition, state)
        log_probs = model.token_log_probs(model(tokens, segments)[:, :-1], tokens[:, 1:], chunk_size=9)
        return -jnp.sum(log_probs * counted)

    family = family_of(pair.theirs.config.model_type, "")
    found = dict(stored_tensors(gradients(pair.state), family.tensors(pair.ours.config)))
    pair.theirs.zero_grad()
    logits = pair.theirs(**pair.their_inputs(tokens, segments)).logits[:, :-1]
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, torch.tensor(tokens[:, 1:, None]).long())[..., 0]
    (-(log_probs * torch.tensor(counted)).sum()).backward()
    expected = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    assert len(found) == len(expected)
    for name, gradient in found.items():
        theirs = {"embed_out.weight": "lm_head.weight"}.get(name, name)
        scale = float(expected[theirs].abs().max())
        np.testing.assert_allclose(gradient, expected[theirs], rtol=1e-3, atol=1e-4 * scale + 1e-5, err_msg=name)


def test_a_reward_model_of_transformers_gives_its_scores_here_and_back(first_of_family, rows, pad, tmp_path):
    options = first_of_family.theirs.config.to_dict() | {"num_labels": 1, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(**options, attn_implementation=first_of_family.attention)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    scorer = load_scorer(tmp_path / "theirs", rngs=nnx.Rngs(0))
    assert (float(scorer.shift[...]), float(scorer.scale[...])) == (0.0, 1.0)
    tokens, segments = pad(rows, LENGTH, "right")
    inputs = {name: torch.tensor(value).long() for name, value in (("input_ids", tokens), ("attention_mask", segments))}
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, 0].numpy()
    definition, state = nnx.split(scorer)
    scores = jax.jit(lambda state: nnx.merge(definition, state)(tokens, segments))(state)
    np.testing.assert_allclose(scores[np.arange(3), segments.sum(axis=1) - 1], expected, rtol=1e-4, atol=1e-4)

    save_scorer(scorer, tmp_path / "ours", None)
    again, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True, pad_token_id=0, attn_implementation=first_of_family.attention
    )
    assert not any(report.values()), report
    with torch.no_grad():
        np.testing.assert_allclose(again.eval()(**inputs).logits[:, 0].numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "prefix", "buffers"),
    [
        ("gpt2", "transformer.", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        ("bloom", "transformer.", []),
        ("opt", "model.", []),
        ("pythia", "", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"]),
    ],
)
def test_older_checkpoints_lack_the_beginning_of_names_and_hold_buffers(make_pair, tmp_path, name, prefix, buffers):
    pair = make_pair(name)
    tensors = load_file(pair.folder / "model.safetensors") | {buffer: np.ones((2, 2), np.float32) for buffer in buffers}
    shutil.copy(pair.folder / "config.json", tmp_path)
    save_file({name.removeprefix(prefix): value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    found = nnx.state(load_transformer(tmp_path))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, pair.state))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False is not supported"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm = True",
        ),
        ("falcon-40b", {"parallel_attn": False}, "parallel_attn = False is not supported"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm = True is not supported"),
        (
            "phi3",
            {"rope_parameters": LONG_ROPE},
            "'longrope' is not supported; supported: default, linear, llama3",
        ),
        ("qwen2.5", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("llama2", {"attention_multiplier": 0.1}, "attention_multiplier = 0.1 is not supported"),
        ("llama2", {"hidden_size": None}, "hidden_size"),
    ],
)
def test_options_that_the_network_cannot_compute_are_refused(variants, name, changes, message):
    model_type, options = variants[name]
    raw = transformers.AutoConfig.for_model(model_type, **options).to_dict() | changes
    with pytest.raises(UserError, match=message):
        FAMILIES[model_type].config_from_hf(raw, "config.json")


def test_options_that_nobody_knows_are_named(variants, caplog):
    model_type, options = variants["llama2"]
    FAMILIES[model_type].config_from_hf(options | {"secret_sauce": 3}, "config.json")
    assert "secret_sauce" in caplog.text


def test_a_model_keeps_its_family_while_that_can_express_it(make_pair):
    config = make_pair("qwen2.5").ours.config
    assert family_for(config) == (FAMILIES["qwen2"], None)
    assert family_for(dataclasses.replace(config, family=None)) == (FAMILIES["qwen2"], None)
    changed = dataclasses.replace(config, attention_bias=False)
    assert family_for(changed) == (FAMILIES["llama"], None)
    family, reason = family_for(dataclasses.replace(config, position="alibi"))
    assert family.model_type == "rlhf_decoder" and reason == "position = 'alibi' (qwen2: 'rope')"


def test_every_family_is_tried(variants):
    assert {model_type for model_type, _ in variants.values()} == FAMILIES.keys() - {"rlhf_decoder"}


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - {"rlhf_decoder"}))
def test_every_option_of_transformers_is_read_or_known_to_change_nothing(model_type):
    """Fails when a later transformers has a new option, so that somebody looks at what it does."""
    family = FAMILIES[model_type]
    options = HfConfig(transformers.AutoConfig.for_model(model_type).to_dict(), model_type, model_type, family.required)
    family.read(options)
    assert options.unread(family.inert) == []
