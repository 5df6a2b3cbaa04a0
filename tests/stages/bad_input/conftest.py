"""A tiny policy, reward model and data sets, written once, and the command line as a user meets it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flax import nnx

from rlhf import cli
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import train_tokenizer
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import save_scorer, save_transformer
from rlhf.models.transformer import Transformer

CONTEXT = 48
QUESTIONS = [f"What is {number} plus one?" for number in range(8)]


@dataclass(frozen=True)
class Finished:
    """What a user sees of a command that has ended.

    Attributes:
        status: exit status.
        message: standard error.
        output: standard output.
    """

    status: int
    message: str
    output: str


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    spelt = {key: value if isinstance(value, str | Path) else json.dumps(value) for key, value in settings.items()}
    return [f"--{key}={value}" for key, value in spelt.items()]


@pytest.fixture
def rlhf(capfd):
    """Runs a command with settings by dotted key."""

    def run(command: str, settings: Mapping[str, Any], *words: str) -> Finished:
        capfd.readouterr()
        status = cli.main([command, *words_of(settings), *words])
        captured = capfd.readouterr()
        return Finished(status, captured.err, captured.out)

    return run


@pytest.fixture
def refused(rlhf):
    """Runs a command that must fail with exit status 2 and one message that has all the parts and says what to do."""

    def run(command: str, settings: Mapping[str, Any], *parts: str) -> str:
        finished = rlhf(command, settings)
        print(f"{command}: {finished.message}")
        assert finished.status == 2
        for part in (*parts, "What to do: "):
            assert part in finished.message
        assert "Traceback" not in finished.message and finished.message.count("What to do: ") == 1
        return finished.message

    return run


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Writes records as JSON lines and returns the path as text."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def architecture(vocab_size: int, width: int = 16) -> ModelConfig:
    """A network that compiles in no time."""
    return ModelConfig(vocab_size=vocab_size, width=width, layers=1, heads=2, mlp_width=16, context=CONTEXT)


def write_models(folder: Path, vocab_size: int, texts: Sequence[str]) -> tuple[str, str]:
    """Writes a policy and a reward model of one tokenizer, whose vocabulary has room for some merges; returns their folders."""
    tokenizer = train_tokenizer(texts, vocab_size)
    apply_template(tokenizer, "user_ai")
    transformer = Transformer(architecture(vocab_size), rngs=nnx.Rngs(0))
    policy, reward = folder / "policy", folder / "reward"
    save_transformer(transformer, policy, tokenizer)
    save_scorer(SequenceScorer(transformer, rngs=nnx.Rngs(1)), reward, tokenizer)
    return str(policy), str(reward)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """Folders and files that fit together; `foreign` is a reward model of another tokenizer. Tests do not write to them."""
    folder = tmp_path_factory.mktemp("tiny")
    policy, reward = write_models(folder, 290, QUESTIONS)
    _, foreign = write_models(folder / "foreign", 280, ["entirely different words, entirely different merges"] * 4)
    pairs = [{"prompt": question, "chosen": "It is more.", "rejected": "No."} for question in QUESTIONS]
    return SimpleNamespace(
        policy=policy,
        reward=reward,
        foreign=foreign,
        documents=write_lines(
            folder / "documents.jsonl", [{"text": f"{question} It is more."} for question in QUESTIONS]
        ),
        demonstrations=write_lines(
            folder / "demonstrations.jsonl",
            [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs],
        ),
        comparisons=write_lines(folder / "comparisons.jsonl", pairs),
        prompts=write_lines(folder / "prompts.jsonl", [{"prompt": question} for question in QUESTIONS]),
    )


@pytest.fixture
def working(tiny, tmp_path) -> dict[str, dict[str, Any]]:
    """For each command, settings with which it would work; a test spoils one of them."""
    return settings_of(tiny, tmp_path / "out")


def settings_of(tiny: SimpleNamespace, output: Path) -> dict[str, dict[str, Any]]:
    """For each command, settings with which it works."""
    shared = {"output": output, "mesh.data": 1}
    training = shared | {"loop.batch_size": 4, "loop.steps": 2, "model.init_from": tiny.policy, "max_length": CONTEXT}
    sampling = {"max_prompt_length": 32, "data.path": tiny.prompts}
    return {
        "pretrain": shared
        | {
            "loop.batch_size": 2,
            "loop.steps": 2,
            "model.init_from": tiny.policy,
            "row_length": 32,
            "data.path": tiny.documents,
        },
        "sft": training | {"data.path": tiny.demonstrations, "packing": False},
        "reward": training | {"data.path": tiny.comparisons},
        "ppo": shared
        | sampling
        | {
            "model.init_from": tiny.policy,
            "rules": ["length_near:3"],
            "iterations": 2,
            "ppo.rollout_batch_size": 4,
            "ppo.minibatch_size": 2,
            "ppo.epochs": 1,
            "ppo.response_length": 4,
        },
        "best-of-n": shared
        | sampling
        | {
            "model.init_from": tiny.policy,
            "helpfulness": tiny.reward,
            "n": [1, 2],
            "response_length": 4,
            "batch_size": 8,
        },
        "evaluate": shared
        | sampling
        | {
            "policies": {"sft": tiny.policy},
            "helpfulness": tiny.reward,
            "response_length": 4,
            "batch_size": 8,
            "samples_per_prompt": 1,
        },
        "generate": {"model.init_from": tiny.policy, "prompt": "What is 1 plus one?", "response_length": 4},
    }


# Commands that train, with four batches and a checkpoint after each.
LAST, EVERY = 4, {"sft": {"loop.steps": 4, "loop.checkpoint_every": 1}, "ppo": {"iterations": 4, "checkpoint_every": 1}}


@pytest.fixture(scope="session")
def finished_runs(tiny, tmp_path_factory) -> dict[str, Path]:
    """For each command that trains, the folder of a finished run. Tests do not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    for command, settings in EVERY.items():
        words = words_of(settings_of(tiny, folder / command)[command] | settings)
        assert cli.main([command, *words]) == 0
    return {command: folder / command for command in EVERY}


@dataclass(frozen=True)
class Run:
    """A copy of a finished run, to be spoiled.

    Attributes:
        command: that made it.
        settings: with which the same command continues it.
        folder: its folder.
        finished: the folder that it was copied from.
    """

    command: str
    settings: dict[str, Any]
    folder: Path
    finished: Path

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / "checkpoints" / str(step)

    def forget(self, *names: str) -> None:
        """Deletes files and folders."""
        for name in names:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def same_result(self) -> bool:
        """Whether the run has come to the same parameters and metrics, byte for byte, as the uninterrupted one."""
        results = ["model/model.safetensors", "metrics.jsonl"]
        return all((self.folder / name).read_bytes() == (self.finished / name).read_bytes() for name in results)


@pytest.fixture(params=EVERY)
def run(request, finished_runs, tiny, tmp_path) -> Run:
    """A copy of a finished run of each command that trains."""
    command, folder = request.param, tmp_path / "run"
    shutil.copytree(finished_runs[command], folder)
    settings = settings_of(tiny, folder)[command] | EVERY[command]
    return Run(command, settings, folder, finished_runs[command])
