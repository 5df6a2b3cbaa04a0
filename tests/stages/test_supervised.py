"""Pretraining and supervised fine-tuning: both learn a handful of texts by heart, and only what they are meant to learn."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.data.sources import DataConfig
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.source import ModelSource
from rlhf.parallel.mesh import MeshConfig
from rlhf.stages import generate, pretrain, sft
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig

DEMONSTRATIONS = [
    {"prompt": "What is the capital of France?", "completion": "Paris."},
    {"prompt": "What is the capital of Japan?", "completion": "Tokyo, of course."},
    {"prompt": "Who are you?", "completion": "A model."},
    {"prompt": "How do I break in?", "completion": "I will not say."},
]


def write_lines(path: Path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def losses(folder: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def config(folders, tmp_path_factory) -> sft.Config:
    root = tmp_path_factory.mktemp("sft")
    return sft.Config(
        output=str(root / "out"),
        model=ModelSource(init_from=folders.policy),
        data=DataConfig(path=write_lines(root / "demonstrations.jsonl", DEMONSTRATIONS)),
        max_length=64,
        packing=False,
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=5, weight_decay=0.0),
        loop=LoopConfig(steps=80, epochs=None, batch_size=4, evaluate_every=1000, checkpoint_every=1000),
        mesh=MeshConfig(data=1),
    )


@pytest.fixture(scope="module")
def learned(config):
    sft.run(config)
    return config.output


def test_sft_learns_its_demonstrations_by_heart(learned):
    history = losses(learned)
    assert history[0] > 2 and history[-1] < 0.1


def test_the_model_answers_as_demonstrated_and_stops(learned):
    for record in DEMONSTRATIONS:
        result = generate.run(
            generate.Config(
                model=ModelSource(init_from=learned),
                prompt=record["prompt"],
                sampling=SamplingConfig(temperature=0.0),
                response_length=24,
            )
        )
        assert result["responses"] == [{"prompt": record["prompt"], "response": record["completion"]}]


def test_the_loss_is_on_the_answers_only(config, tmp_path):
    """Prompts that come at random cannot be learned; the loss does not know them."""
    random_prompts = [{"prompt": f"{17 * n * n % 89} {31 * n % 97} {n}?", "completion": "Yes."} for n in range(32)]
    data = DataConfig(path=write_lines(tmp_path / "data.jsonl", random_prompts))
    sft.run(replace(config, output=str(tmp_path / "out"), data=data))
    assert losses(str(tmp_path / "out"))[-1] < 0.05


def test_packing_changes_rows_but_not_the_loss(config, tmp_path):
    held_out = {}
    for packing in (False, True):
        output = str(tmp_path / str(packing))
        loop = replace(config.loop, steps=1, batch_size=1, evaluate_every=1)
        short = replace(config, loop=loop, optimizer=OptimizerConfig(), evaluation_data=config.data)
        sft.run(replace(short, output=output, packing=packing, max_length=128))
        lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
        held_out[packing] = next(value for name, value in lines[0].items() if name.endswith("loss"))
    assert lines[0]["step"] == 0
    assert held_out[True] == pytest.approx(held_out[False], abs=1e-5)


def test_pretraining_learns_documents_by_heart(folders, tmp_path):
    texts = [{"text": f"{record['prompt']} {record['completion']}"} for record in DEMONSTRATIONS]
    config = pretrain.Config(
        output=str(tmp_path / "out"),
        model=ModelSource(init_from=folders.policy),
        data=DataConfig(path=write_lines(tmp_path / "documents.jsonl", texts)),
        row_length=32,
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=5, weight_decay=0.0),
        loop=LoopConfig(steps=100, epochs=None, batch_size=2, evaluate_every=1000, checkpoint_every=1000),
        mesh=MeshConfig(data=1),
    )
    pretrain.run(config)
    history = losses(config.output)
    # Two thirds of a text follow from its beginning; how the four begin cannot be known.
    assert history[0] > 3 and history[-1] < 0.6
