"""Models that are missing, damaged, of the wrong kind, or do not fit their tokenizer or one another."""

import json
import shutil
from pathlib import Path

import pytest
from flax import nnx

from rlhf.data.tokenizers import load_tokenizer
from rlhf.errors import UserError
from rlhf.models.config import ModelConfig
from rlhf.models.hub import save_transformer
from rlhf.models.transformer import Transformer
from rlhf.rewards.text import RewardModel

COMMANDS_WITH_POLICY = ["sft", "reward", "ppo", "best-of-n", "generate"]
COMMANDS_WITH_JUDGE = ["ppo", "best-of-n", "evaluate", "generate"]


def rewrite_config(folder: Path, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("chat_template*")]:
        path.unlink()


DAMAGES = {
    "mamba": (
        lambda folder: rewrite_config(folder, model_type="mamba"),
        ["config.json: model_type = 'mamba' is not supported; supported: llama, mistral"],
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["no model.safetensors and no model.safetensors.index.json", "found: "],
    ),
    "weights cut short": (
        lambda folder: truncate(folder / "model.safetensors"),
        ["model.safetensors cannot be read", "not complete"],
    ),
    "wrong shapes": (
        lambda folder: rewrite_config(folder, hidden_size=32),
        ["the tensors do not fit config.json", "of the wrong shape", "expected [16, 32], found [16, 16]"],
    ),
    "wrong type": (lambda folder: rewrite_config(folder, hidden_size="wide"), ["'hidden_size' expected int", "wide"]),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ["config.json:1: not valid JSON"]),
    "no tokenizer": (without_tokenizer, ["holds none; expected tokenizer.json, found config.json"]),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        ["tokenizer: none can be loaded from"],
    ),
    "nothing": (
        lambda folder: shutil.rmtree(folder),
        ["is no model: expected config.json there or in", "there is no such folder"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_folder(refused, working, tiny, tmp_path, name):
    damage, parts = DAMAGES[name]
    shutil.copytree(tiny.policy, tmp_path / "policy")
    damage(tmp_path / "policy")
    refused("sft", working["sft"] | {"model.init_from": tmp_path / "policy"}, *parts)


@pytest.fixture(scope="module")
def small_vocabulary(tiny, tmp_path_factory) -> str:
    """A model with fewer embedding rows than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("small")
    config = ModelConfig(vocab_size=100, width=16, layers=1, heads=2, mlp_width=16, context=48)
    save_transformer(Transformer(config, rngs=nnx.Rngs(0)), folder, load_tokenizer(tiny.policy))
    return str(folder)


@pytest.mark.parametrize("command", ["pretrain", *COMMANDS_WITH_POLICY])
def test_more_tokens_than_embeddings(refused, working, small_vocabulary, command):
    found = f"model.init_from {small_vocabulary}: the tokenizer has 2"
    refused(command, working[command] | {"model.init_from": small_vocabulary}, found, "embedding only 100 rows")


def test_more_tokens_than_embeddings_elsewhere(refused, working, tiny, small_vocabulary):
    fresh = {"tokenizer": tiny.policy, "model.architecture.vocab_size": 100, "model.architecture.layers": 1}
    settings = {key: value for key, value in working["pretrain"].items() if key != "model.init_from"}
    refused("pretrain", settings | fresh, "model.architecture.vocab_size: the tokenizer has", "embedding only 100 rows")
    policies = {"a": small_vocabulary}
    refused(
        "evaluate", working["evaluate"] | {"policies": policies}, f"policies.a {small_vocabulary}: the tokenizer has"
    )


@pytest.mark.parametrize("command", ["ppo", "best-of-n", "evaluate"])
@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_a_judge_of_another_tokenizer(refused, working, tiny, command, kind):
    refused(
        command,
        working[command] | {kind: tiny.foreign},
        f"{kind}: {tiny.policy} and {tiny.foreign} have different tokenizers",
    )


def test_other_models_of_another_tokenizer(refused, working, tiny):
    foreign_policy = str(Path(tiny.foreign).parent / "policy")
    refused("ppo", working["ppo"] | {"value_from": tiny.foreign}, "value_from: ", "different tokenizers")
    policies = {"a": tiny.policy, "b": foreign_policy}
    refused("evaluate", working["evaluate"] | {"policies": policies}, "policies.b: ", "different tokenizers")


@pytest.mark.parametrize("command", COMMANDS_WITH_JUDGE)
@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_a_language_model_is_no_judge(refused, working, tiny, command, kind):
    found = f"{kind}: {tiny.policy} holds a language model, not a reward model"
    refused(command, working[command] | {kind: tiny.policy}, found, "`rlhf reward` writes")


def test_a_language_model_is_no_judge_in_a_program(tiny):
    with pytest.raises(UserError, match="holds a language model, not a reward model"):
        RewardModel.load(tiny.policy)


@pytest.mark.parametrize("command", ["sft", "ppo", "best-of-n", "generate"])
def test_a_judge_is_no_policy(refused, working, tiny, command):
    found = f"{tiny.reward} holds a reward model, not a language model"
    refused(command, working[command] | {"model.init_from": tiny.reward}, found, "`rlhf sft` writes")


@pytest.mark.parametrize("setting", ["policies.other", "reference"])
def test_a_judge_is_no_policy_to_evaluate(refused, working, tiny, setting):
    refused("evaluate", working["evaluate"] | {setting: tiny.reward}, "holds a reward model, not a language model")


def test_no_model_at_all(refused, working):
    settings = {key: value for key, value in working["sft"].items() if key != "model.init_from"}
    refused("sft", settings, "neither init_from nor architecture is set", "set model.init_from")
