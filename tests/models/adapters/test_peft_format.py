"""LoRA folders against PEFT itself: the same logits from folders that either has written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rlhf.errors import UserError
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import load_scorer, load_transformer, save_adapter, save_scorer
from rlhf.models.partition import AdapterParam

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = np.random.default_rng(0).integers(3, 48, size=(2, 9))
SIZES = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": (
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64),
        ["q_proj", "down_proj"],
    ),
    "gpt2": (
        transformers.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=64, **SPECIAL),
        ["c_attn", "mlp.c_proj"],
    ),
    "gpt_neox": (transformers.GPTNeoXConfig(**SIZES, max_position_embeddings=64), ["query_key_value", "dense_h_to_4h"]),
    "phi3": (
        transformers.Phi3Config(**SIZES, **SPECIAL, num_key_value_heads=2, max_position_embeddings=64),
        ["qkv_proj", "gate_up_proj"],
    ),
}
VARIANTS = {
    "dora": {"use_dora": True},
    "rank-stabilised with patterns": {
        "use_rslora": True,
        "rank_pattern": {r".*(layers|h)\.1\..*": 3},
        "alpha_pattern": {r".*(layers|h)\.0\..*": 5},
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(folder of a base with drawn weights, target modules)."""
    config, targets = FAMILIES[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.15 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp(request.param) / "base"
    model.save_pretrained(folder)
    return folder, targets


@pytest.fixture(scope="module")
def logits():
    def run(model) -> np.ndarray:
        definition, state = nnx.split(model)

        @jax.jit
        def forward(state):
            model = nnx.merge(definition, state)
            return model.logits(model(jnp.asarray(TOKENS), jnp.ones_like(TOKENS)))

        return np.asarray(forward(state))

    return run


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def load_in_peft(base, adapter):
    return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)


@pytest.mark.parametrize("variant", VARIANTS)
def test_folders_of_peft_are_read_and_written_again(variant, family, tmp_path, logits):
    base, targets = family
    options = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets, **VARIANTS[variant])
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), options)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = torch_logits(theirs)
    assert np.abs(expected - torch_logits(theirs.get_base_model())).max() < 1e-6  # PEFT changes the model in place
    with theirs.disable_adapter():
        assert np.abs(expected - torch_logits(theirs)).max() > 0.1

    ours = load_transformer(tmp_path / "theirs")
    np.testing.assert_allclose(logits(ours), expected, atol=1e-5)
    save_adapter(ours, tmp_path / "again", None, base)
    written, read = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "theirs"))
    assert written.keys() == read.keys()
    assert all(np.array_equal(written[name], read[name]) for name in read)
    np.testing.assert_allclose(torch_logits(load_in_peft(base, tmp_path / "again")), expected, atol=1e-5)


def test_adapters_of_our_own_are_read_by_peft_as_by_us(family, tmp_path, logits):
    """Query and value alone, other ranks and factors in places: modules that hold several projections get them all."""
    base, _ = family
    config = AdapterConfig(
        rank=4,
        alpha=3.0,
        targets=("query", "value", "down"),
        rank_pattern={"layers.0.attention.query": 2, "layers.1.mlp.down": 0},
        alpha_pattern={"value": 9.0},
    )
    ours = insert(load_transformer(base), config, nnx.Rngs(0))
    for number, (path, variable) in enumerate(nnx.to_flat_state(nnx.state(ours, AdapterParam))):
        if path[-1] == "up":
            noise = 0.2 * jax.random.normal(jax.random.key(number), variable.shape)
            rank = jnp.array([2, 4] if "query" in path else [4, 0] if "down" in path else [4, 4])
            used = jnp.arange(variable.shape[1]) < rank[:, None]
            variable.set_value(jnp.where(used.reshape(*used.shape, *(1 for _ in variable.shape[2:])), noise, 0))
    save_adapter(ours, tmp_path, None, base)
    expected = logits(ours)
    assert np.abs(expected - logits(load_transformer(base))).max() > 0.1
    np.testing.assert_allclose(torch_logits(load_in_peft(base, tmp_path)), expected, atol=1e-5)
    np.testing.assert_allclose(logits(load_transformer(tmp_path)), expected, atol=1e-5)


@pytest.fixture
def llama_adapter(make_model, tmp_path):
    """(base folder, folder of a reward model's LoRA)."""
    base = make_model(attention_bias=True, mlp_bias=True)
    save_scorer(SequenceScorer(base, rngs=nnx.Rngs(0)), tmp_path / "base", None)
    scorer = SequenceScorer(insert(base, AdapterConfig(targets=("key",)), nnx.Rngs(1)), rngs=nnx.Rngs(2))
    scorer.transformer.blocks.attention.key.adapter.up.set_value(
        0.3 * jax.random.normal(jax.random.key(0), scorer.transformer.blocks.attention.key.adapter.up.shape)
    )
    scorer.shift[...], scorer.scale[...] = 0.25, 2.0
    save_adapter(scorer, tmp_path / "adapter", None, tmp_path / "base")
    return tmp_path / "base", tmp_path / "adapter"


def test_a_reward_models_adapter_holds_its_head_and_its_shift(llama_adapter):
    base, folder = llama_adapter
    ours = load_scorer(folder, rngs=nnx.Rngs(9))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    theirs.config.pad_token_id = 0
    theirs = peft.PeftModel.from_pretrained(theirs, folder)
    raw = torch_logits(theirs)[:, 0]
    scores = np.asarray(ours(jnp.asarray(TOKENS), jnp.ones_like(TOKENS)))[:, -1]
    np.testing.assert_allclose(scores, (raw - 0.25) * 2, atol=1e-5)
    fresh = load_scorer(base, rngs=nnx.Rngs(9))
    assert np.abs(scores - np.asarray(fresh(jnp.asarray(TOKENS), jnp.ones_like(TOKENS)))[:, -1]).max() > 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"peft_type": "LOHA"}, "type 'LOHA' are not supported"),
        ({"base_model_name_or_path": "./gone"}, "base is ./gone, which is no folder"),
    ],
)
def test_options_that_are_refused(llama_adapter, changes, message):
    file = llama_adapter[1] / "adapter_config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    with pytest.raises(UserError, match=message):
        load_scorer(llama_adapter[1], rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors | {"base_model.model.lm_head.lora_A.weight": np.zeros((8, 32))}, "lm_head"),
        (lambda tensors: {name: value[:, :-1] for name, value in tensors.items()}, "do not fit the base"),
        (lambda tensors: {name: tensors[name] for name in tensors if "lora_B" not in name}, "not all there"),
        (
            lambda tensors: {name: tensors[name] for name in tensors if "score" not in name},
            "needs a head of 32 numbers",
        ),
    ],
)
def test_tensors_that_are_refused(llama_adapter, change, message):
    file = llama_adapter[1] / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(UserError, match=message):
        load_scorer(llama_adapter[1], rngs=nnx.Rngs(0))
