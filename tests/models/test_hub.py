import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rlhf.errors import UserError
from rlhf.models import hub, weights
from rlhf.models.config import AttentionConfig, ComputeConfig, RopeConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import (
    load_scorer,
    load_transformer,
    read_config,
    resolve_model_folder,
    save_scorer,
    save_transformer,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PAD = 0
LLAMAS = {
    "grouped, tied": {},
    "untied": {"tied_embeddings": False, "kv_heads": None},
    "biases, wide heads, gelu": {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 12,
        "activation": "gelu",
        "rope": RopeConfig(theta=500.0),
    },
}
NOT_LLAMAS = {
    "learned positions": {"position": "learned", "tied_embeddings": False},
    "plain mlp": {"gated_mlp": False, "mlp_bias": True},
    "a window in one layer": {
        "position": "alibi",
        "attention": AttentionConfig(window=3, window_layers=(True, False, False)),
        "rope": RopeConfig(layers=(True, True, False)),
    },
}


@pytest.fixture(params=LLAMAS.values(), ids=LLAMAS.keys())
def llama(request, make_model):
    return make_model(**request.param)


def same_weights(found: nnx.Module, expected: nnx.Module) -> bool:
    found, expected = nnx.state(found), nnx.state(expected)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


def without_output_matrix(scorer: SequenceScorer) -> SequenceScorer:
    """A copy of a scorer without the matrix that it does not use and that is not saved."""
    copy = nnx.clone(scorer)
    if hasattr(copy.transformer, "head_kernel"):
        del copy.transformer.head_kernel
    return copy


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_transformers_computes_the_same_logits(llama, tmp_path, sequences, pad, hidden_states):
    save_transformer(llama, tmp_path / "model", None)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    for side in ("left", "right"):
        tokens, segments = pad(sequences, 12, side)
        with torch.no_grad():
            positions = torch.tensor((np.cumsum(segments, axis=1) - 1).clip(0))
            mask = torch.tensor(segments)
            expected = theirs.eval()(torch.tensor(tokens), attention_mask=mask, position_ids=positions).logits.numpy()
        found = llama.logits(hidden_states(llama, tokens, segments))
        np.testing.assert_allclose(found[segments > 0], expected[segments > 0], rtol=1e-4, atol=1e-4)


def test_what_transformers_saves_is_read(tmp_path, sequences, pad, hidden_states):
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, rope_theta=777.0, attention_bias=True, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = load_transformer(tmp_path)
    tokens, segments = pad(sequences, 12, "right")
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(segments)).logits.numpy()
    found = ours.logits(hidden_states(ours, tokens, segments))
    np.testing.assert_allclose(found[segments > 0], expected[segments > 0], rtol=1e-4, atol=1e-4)


def test_writing_and_reading_gives_the_same_bits(llama, tmp_path):
    save_transformer(llama, tmp_path / "a", None)
    first = load_transformer(tmp_path / "a")
    assert first.config == dataclasses.replace(llama.config, family="llama")
    assert same_weights(first, llama)
    save_transformer(first, tmp_path / "b", None)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("choices", NOT_LLAMAS.values(), ids=NOT_LLAMAS.keys())
def test_an_architecture_of_our_own_is_written_with_a_warning(make_model, tmp_path, choices, caplog):
    model = make_model(**choices)
    save_transformer(model, tmp_path / "model", None)
    assert "transformers cannot" in caplog.text and next(iter(choices)) in caplog.text
    assert read_config(tmp_path)["model_type"] == "rlhf_decoder"
    again = load_transformer(tmp_path)
    assert again.config == model.config
    assert same_weights(again, model)
    scorer = SequenceScorer(again, rngs=nnx.Rngs(0))
    save_scorer(scorer, tmp_path / "scorer", None)
    assert same_weights(load_scorer(tmp_path / "scorer", rngs=nnx.Rngs(1)), without_output_matrix(scorer))


def test_shards_are_written_and_read(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SHARD_BYTES", 8000)
    model = make_model(tied_embeddings=False)
    save_transformer(model, tmp_path / "model", None)
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(sum(t.nbytes for t in load_file(tmp_path / "model" / name).values()) <= 8000 for name in files)
    assert same_weights(load_transformer(tmp_path), model)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / files[1]).unlink()
    with pytest.raises(UserError, match=files[1]):
        load_transformer(tmp_path)


def test_parameters_are_read_in_the_dtype_asked_for(make_model, tmp_path):
    half = ComputeConfig(dtype="bfloat16", parameter_dtype="bfloat16")
    save_transformer(make_model(), tmp_path / "full", None)
    model = load_transformer(tmp_path / "full", half)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
    save_transformer(model, tmp_path / "half", None)
    assert read_config(tmp_path / "half")["dtype"] == "bfloat16"
    assert same_weights(load_transformer(tmp_path / "half", half), model)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(load_transformer(tmp_path / "half")))} == {
        jnp.dtype("float32")
    }


def test_transformers_computes_the_same_scores(make_model, tmp_path, sequences, pad):
    scorer = SequenceScorer(make_model(tied_embeddings=False, attention_bias=True), rngs=nnx.Rngs(1))
    save_scorer(scorer, tmp_path, None, {"accuracy": 0.7})
    change_config(tmp_path, pad_token_id=PAD)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens, segments = pad(sequences, 12, "right")
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens), attention_mask=torch.tensor(segments)).logits[:, 0].numpy()
    last = segments.sum(axis=1) - 1
    found = np.asarray(scorer(tokens, segments))[np.arange(len(last)), last]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert read_config(tmp_path)["rlhf_reward"] == {"shift": 0.0, "scale": 1.0, "accuracy": 0.7}


def test_a_scorer_keeps_its_statistics(make_model, tmp_path):
    scorer = SequenceScorer(make_model(tied_embeddings=False), rngs=nnx.Rngs(1))
    scorer.shift.set_value(jnp.float32(0.3))
    scorer.scale.set_value(jnp.float32(1.7))
    save_scorer(scorer, tmp_path / "a", None)
    again = load_scorer(tmp_path / "a", rngs=nnx.Rngs(2))
    assert (again.shift[...], again.scale[...]) == (jnp.float32(0.3), jnp.float32(1.7))
    assert same_weights(again, without_output_matrix(scorer))


def test_a_language_model_gets_a_fresh_head(make_model, tmp_path):
    model = make_model(tied_embeddings=False)
    save_transformer(model, tmp_path, None)
    scorer = load_scorer(tmp_path, rngs=nnx.Rngs(2), head_init="zeros")
    assert not scorer.kernel[...].any()
    assert not hasattr(scorer.transformer, "head_kernel")
    assert same_weights(scorer.transformer.blocks, model.blocks)
    first, second = (load_scorer(tmp_path, rngs=nnx.Rngs(seed)).kernel[...] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_a_scorer_is_no_language_model(make_model, tmp_path):
    save_scorer(SequenceScorer(make_model(), rngs=nnx.Rngs(1)), tmp_path, None)
    with pytest.raises(UserError, match="scorer"):
        load_transformer(tmp_path)


def test_a_stage_folder_stands_for_its_model(make_model, tmp_path):
    save_transformer(make_model(), tmp_path / "sft/model", None)
    assert (
        resolve_model_folder(tmp_path / "sft") == resolve_model_folder(tmp_path / "sft/model") == tmp_path / "sft/model"
    )
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_model_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        resolve_model_folder(tmp_path / "elsewhere")


def test_older_configs_are_read(make_model, tmp_path):
    save_transformer(make_model(rope=RopeConfig(theta=321.0)), tmp_path, None)
    change_config(tmp_path, rope_parameters=None, rope_theta=123.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert load_transformer(tmp_path).config.rope == RopeConfig(theta=123.0, scaling="linear", factor=2.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba"}, "mamba.*supported: llama, .*falcon"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}},
            "yarn.*supported: default, linear",
        ),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"sliding_window": 128}, "sliding_window = 128"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "mish"}, "mish.*supported: silu"),
    ],
)
def test_what_cannot_be_computed_is_refused(make_model, tmp_path, changes, named):
    save_transformer(make_model(), tmp_path, None)
    change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=named):
        load_transformer(tmp_path)


def test_tensors_that_do_not_fit_are_all_named(make_model, tmp_path):
    save_transformer(make_model(), tmp_path, None)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    tensors["model.norm.weight"] = np.ones(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as refused:
        load_transformer(tmp_path)
    message = str(refused.value)
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "not part of the model: model.extra.weight" in message
    assert "model.norm.weight (expected [32], found [3])" in message


def test_a_tied_checkpoint_may_hold_a_copy_of_the_embedding(make_model, tmp_path):
    save_transformer(make_model(), tmp_path, None)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert same_weights(load_transformer(tmp_path), make_model())


def test_missing_and_broken_files_are_named(make_model, tmp_path):
    save_transformer(make_model(), tmp_path, None)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.gguf")
    with pytest.raises(UserError, match=r"no model\.safetensors.*weights\.gguf"):
        load_transformer(tmp_path)
    (tmp_path / "weights.gguf").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        load_transformer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json:1: not valid JSON"):
        load_transformer(tmp_path)


def _disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def _disk_full_in_rust(*_, **__):
    raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failure", [_disk_full, _disk_full_in_rust])
def test_a_full_disk_leaves_the_former_model_in_place(make_model, tmp_path, monkeypatch, failure):
    former = make_model(seed=1)
    save_transformer(former, tmp_path / "model", None)
    with monkeypatch.context() as patched:
        patched.setattr(weights, "save_file", failure)
        with pytest.raises(UserError, match="disk is full"):
            save_transformer(make_model(seed=2), tmp_path / "model", None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert same_weights(load_transformer(tmp_path), former)
    save_transformer(make_model(seed=2), tmp_path / "model", None)
    assert same_weights(load_transformer(tmp_path), make_model(seed=2))


def test_too_little_space_is_noticed_before_anything_is_written(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    monkeypatch.setattr(weights, "save_file", lambda *_, **__: pytest.fail("wrote"))
    with pytest.raises(UserError, match="are free"):
        save_transformer(make_model(), tmp_path / "model", None)
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_the_former_model_in_place(make_model, tmp_path, monkeypatch):
    former = make_model(seed=1)
    save_transformer(former, tmp_path / "model", None)
    monkeypatch.setattr(weights, "save_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_transformer(make_model(seed=2), tmp_path / "model", None)
    assert same_weights(load_transformer(tmp_path), former)


def test_a_real_model_gives_the_logits_it_was_published_with(shared, tmp_path):
    folder = shared / "models/stories260k"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = load_transformer(folder)
    tokens = np.array([tokenizer("Once upon a time, there was a little girl named Lily.").input_ids])
    logits = np.asarray(model.logits(model(tokens, np.ones_like(tokens))))[0, -1]
    np.testing.assert_allclose(logits[:6], [-3.8517, 4.9812, -3.8526, -3.8520, -3.8516, -3.8528], atol=2e-4)
    assert logits.argmax() == 338
    save_transformer(model, tmp_path, tokenizer)
    assert same_weights(load_transformer(tmp_path), model)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("A cat.").input_ids == tokenizer("A cat.").input_ids
    assert read_config(tmp_path)["eos_token_id"] == tokenizer.eos_token_id


def test_a_real_model_has_the_loss_it_was_published_with(shared, pad, hidden_states):
    folder = shared / "models/stories260k"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = (shared / "data/pretrain/tinystories_sample.txt").read_text()
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
    model = load_transformer(folder)
    tokens, segments = pad([tokenizer(story).input_ids[:512] for story in stories], 512, "right")
    log_probs = jax.nn.log_softmax(model.logits(hidden_states(model, tokens, segments)))[:, :-1]
    losses = -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    assert len(stories) == 5
    assert abs(losses.mean(where=segments[:, 1:] > 0) - 1.266) < 2e-3
