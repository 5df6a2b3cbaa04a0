"""The whole road once on a tiny scale: what it writes, that it goes on where it stopped, and each stage alone from its folders."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from rlhf.cli import main
from rlhf.models.source import ModelSource
from rlhf.rl.config import PPOConfig
from rlhf.stages import best_of_n, evaluate, ppo, sft, world
from rlhf.stages.pipeline import Config, plan

pytestmark = pytest.mark.slow

STAGES = ("world", "tokenizer", "pretrain", "sft", "helpfulness", "safety", "ppo", "best_of_n", "evaluate")
POLICIES = ("pretrained", "sft", "best_of_1", "best_of_2", "best_of_4", "ppo")
MEASURES = ("gold_score", "gold_helpfulness", "gold_safety", "over_refusal", "kl")
ONE_DEVICE = {"data": 1}
SUPERVISED = {"mesh": ONE_DEVICE, "loop": {"steps": 3, "batch_size": 4}}
ARCHITECTURE = {"vocab_size": 400, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24, "context": 192}
CONFIG = {
    "seed": 1,
    "world": {
        "world": {
            "documents": 60,
            "demonstrations": 24,
            "helpfulness_rankings": 24,
            "safety_rankings": 24,
            "held_out_comparisons": 16,
            "prompts": 24,
            "held_out_prompts": 12,
        }
    },
    "tokenizer": {"vocab_size": 400},
    "pretrain": SUPERVISED | {"model": {"architecture": ARCHITECTURE}, "row_length": 64},
    "sft": SUPERVISED | {"max_length": 192, "too_long": "skip"},
    "helpfulness": SUPERVISED | {"max_length": 192, "too_long": "skip"},
    "safety": SUPERVISED | {"max_length": 192, "too_long": "skip"},
    "ppo": {
        "mesh": ONE_DEVICE,
        "iterations": 2,
        "evaluate_every": 1,
        "evaluation_prompts": 8,
        "max_prompt_length": 160,
        "ppo": {"rollout_batch_size": 8, "minibatch_size": 4, "epochs": 1, "response_length": 6},
    },
    "best_of_n": {
        "mesh": ONE_DEVICE,
        "n": [1, 2, 4],
        "response_length": 6,
        "max_prompt_length": 160,
        "batch_size": 16,
    },
    "evaluate": {
        "mesh": ONE_DEVICE,
        "samples_per_prompt": 2,
        "response_length": 6,
        "max_prompt_length": 160,
        "batch_size": 16,
        "max_length": 192,
    },
}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def output(config_file, tmp_path_factory) -> Path:
    """Folder of a finished pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    assert main(["pipeline", f"--config={config_file}", f"--output={folder}"]) == 0
    return folder


@pytest.fixture
def command(capfd, tmp_path):
    """Runs a command that must succeed, with its output in a new folder; returns the folder and what was printed."""

    def run(stage: str, *words: str, output: bool = True) -> tuple[Path, str]:
        capfd.readouterr()
        own = [f"--output={tmp_path / 'out'}", "--mesh.data=1"] if output else []
        status = main([stage, *own, *words])
        printed = capfd.readouterr()
        assert status == 0, printed.err
        return tmp_path / "out", printed.out

    return run


def test_summary_has_every_policy_with_every_measure(output):
    summary = read(output / "summary.json")
    assert set(summary) == {"policies", "reward_models", "seconds", "seed", "config"}
    assert tuple(summary["policies"]) == POLICIES
    for policy, entry in summary["policies"].items():
        for measure in MEASURES:
            interval = entry[measure]
            assert interval["low"] <= interval["value"] <= interval["high"], (policy, measure)
            if measure != "kl":
                assert 0 <= interval["low"] <= interval["high"] <= 1, (policy, measure)
    assert summary["policies"]["sft"]["kl"] == {"value": 0, "low": 0, "high": 0}
    assert summary["policies"]["best_of_1"]["kl"]["value"] == 0
    assert summary["policies"]["best_of_4"]["kl"]["value"] == pytest.approx(1.3863 - 0.75, abs=1e-3)
    assert summary["policies"]["ppo"]["kl"]["value"] != 0
    assert set(summary["policies"]["ppo"]["by_language"]) == {"en", "zh"}


def test_summary_has_the_reward_models_the_seconds_and_the_configuration(output):
    summary = read(output / "summary.json")
    assert set(summary["reward_models"]) == {"helpfulness", "safety"}
    for entry in summary["reward_models"].values():
        accuracy = entry["accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        assert 0.5 <= entry["accuracy_limit"] <= 1
        assert 0 <= entry["ece"] <= 1
        assert set(entry["cross"]) == {"helpfulness", "safety"}
    assert tuple(summary["seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert summary["seed"] == 1
    assert summary["config"]["ppo"]["ppo"]["response_length"] == 6
    assert summary["config"]["output"] == str(output)


def test_every_stage_has_the_pipelines_seed_and_reads_the_folders_before_it(output):
    for stage in STAGES:
        resolved = yaml.safe_load((output / stage / "config.yaml").read_text(encoding="utf-8"))
        assert resolved["output"] == str(output / stage)
        assert resolved.get("seed", 1) == 1
        assert "seconds" in read(output / stage / "summary.json")
    ppo = yaml.safe_load((output / "ppo" / "config.yaml").read_text(encoding="utf-8"))
    assert ppo["model"]["init_from"] == str(output / "sft")
    assert (ppo["helpfulness"], ppo["safety"]) == (str(output / "helpfulness"), str(output / "safety"))
    assert ppo["data"]["path"] == str(output / "world" / "prompts.jsonl")
    assert ppo["evaluation_data"]["path"] == str(output / "world" / "prompts_held_out.jsonl")


def test_answers_that_are_compared_end_as_the_policy_learned_to():
    same = {"minimum_length": 2, "stop_strings": ("\n",), "stop_after": 5}

    def ends_of(**stages) -> dict[str, dict]:
        steps = {step.name: step.config for step in plan(Config(**stages))}
        return {name: {key: getattr(steps[name], key) for key in same} for name in ("best_of_n", "evaluate")}

    model = ModelSource(init_from="model")
    said = {"world": world.Config(), "sft": sft.Config(model=model), "ppo": ppo.Config(ppo=PPOConfig(**same))}
    assert ends_of(**said) == {"best_of_n": same, "evaluate": same}
    others = ends_of(
        **said, best_of_n=best_of_n.Config(stop_strings=("!",)), evaluate=evaluate.Config(minimum_length=3)
    )
    assert others == {"best_of_n": same | {"stop_strings": ("!",)}, "evaluate": same | {"minimum_length": 3}}


def test_frontier_has_ppo_at_every_check_and_best_of_n_at_the_powers_of_two(output):
    points = read(output / "frontier.json")
    assert [point["label"] for point in points if point["policy"] == "ppo"] == [
        "iteration 0",
        "iteration 1",
        "iteration 2",
    ]
    best = [point for point in points if point["policy"] == "best_of_n"]
    assert [point["label"] for point in best] == ["n = 1", "n = 2", "n = 4"]
    assert [point["reward"] for point in best] == sorted(point["reward"] for point in best)
    assert all({"kl", "reward", "gold_score"} <= set(point) for point in points)


class References(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        fetching = {"src", "srcset", "poster"} | ({"href"} if tag == "link" else set())
        self.found += [value for name, value in attributes if name in fetching and value]


def test_report_needs_no_other_file(output):
    page = (output / "report.html").read_text(encoding="utf-8")
    references = References()
    references.feed(page)
    assert all(reference.startswith("data:") for reference in references.found)
    assert not re.search(r"url\((?!['\"]?(data:|#))|@import", page)
    assert "best-of-4" in page.lower().replace("_", "-").replace(" ", "-")


def test_running_again_runs_no_stage_again(output, config_file, capsys):
    def state():
        files = [path for stage in STAGES for path in (output / stage).rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in files}

    before, summary = state(), read(output / "summary.json")
    assert main(["pipeline", f"--config={config_file}", f"--output={output}"]) == 0
    assert state() == before
    assert capsys.readouterr().err.count("finished before") == len(STAGES)
    assert read(output / "summary.json") == summary


def test_another_configuration_is_refused_with_the_folders_to_delete(output, config_file, capsys):
    changed = ["pipeline", f"--config={config_file}", f"--output={output}", "--ppo.ppo.epochs=2"]
    assert main(changed) == 2
    message = capsys.readouterr().err
    assert str(output / "ppo" / "config.yaml") in message
    told = message[message.index("What to do") :]
    for stage in ("ppo", "best_of_n", "evaluate"):
        assert str(output / stage) in told
    for stage in ("world", "sft", "safety"):
        assert str(output / stage) not in told


def test_generate_prints_the_answer(output, command):
    words = [
        "--prompt=What is the capital of France?",
        "--response_length=6",
        f"--helpfulness={output / 'helpfulness'}",
    ]
    _, printed = command("generate", f"--model.init_from={output / 'ppo'}", *words, output=False)
    printed_form = r"USER: What is the capital of France\?\nAI: (.+)\n    \[helpfulness [+-]\d+\.\d\d\]\n"
    assert re.fullmatch(printed_form, printed, re.DOTALL)


def test_world_and_tokenizer_alone_write_the_same_as_in_the_pipeline(output, tmp_path):
    words = [f"--world.{name}={value}" for name, value in CONFIG["world"]["world"].items()]
    assert main(["world", f"--output={tmp_path / 'world'}", "--world.seed=1", *words]) == 0
    documents = tmp_path / "world" / "documents.jsonl"
    assert documents.read_bytes() == (output / "world" / "documents.jsonl").read_bytes()
    assert main(["tokenizer", f"--output={tmp_path / 'own'}", f"--data.path={documents}", "--vocab_size=400"]) == 0
    names = "own/tokenizer.json", "tokenizer/tokenizer.json"
    assert (tmp_path / names[0]).read_bytes() == (output / names[1]).read_bytes()


def test_pretrain_alone(output, command):
    folder, _ = command(
        "pretrain",
        f"--tokenizer={output / 'tokenizer'}",
        "--model.architecture={vocab_size: 400, width: 16, layers: 2, heads: 2, mlp_width: 24, context: 192}",
        f"--data.path={output / 'world' / 'documents.jsonl'}",
        "--row_length=64",
        "--loop.steps=3",
        "--loop.batch_size=4",
        "--seed=1",
    )
    weights = (output / "pretrain" / "model" / "model.safetensors").read_bytes()
    assert (folder / "model" / "model.safetensors").read_bytes() == weights


def test_sft_alone(output, command):
    folder, _ = command(
        "sft",
        f"--model.init_from={output / 'pretrain'}",
        f"--data.path={output / 'world' / 'demonstrations.jsonl'}",
        "--loop.steps=2",
        "--loop.batch_size=4",
        "--too_long=skip",
        "--max_length=192",
    )
    before, after = (path / "model" / "model.safetensors" for path in (output / "pretrain", folder))
    assert before.read_bytes() != after.read_bytes()


def test_reward_alone(output, command):
    folder, _ = command(
        "reward",
        f"--model.init_from={output / 'sft'}",
        f"--data.path={output / 'world' / 'safety.jsonl'}",
        f"--evaluation_data.path={output / 'world' / 'safety_held_out.jsonl'}",
        "--loop.steps=2",
        "--loop.batch_size=4",
        "--too_long=skip",
        "--max_length=192",
    )
    assert 0 <= read(folder / "evaluation.json")["accuracy"]["value"] <= 1


def test_best_of_n_alone(output, command):
    folder, _ = command(
        "best-of-n",
        f"--model.init_from={output / 'sft'}",
        f"--safety={output / 'safety'}",
        f"--data.path={output / 'world' / 'prompts_held_out.jsonl'}",
        "--n=[1,3]",
        "--response_length=6",
        "--max_prompt_length=160",
        "--batch_size=16",
    )
    assert set(read(folder / "summary.json")["estimates"]) == {"best_of_1", "best_of_3"}
    assert set(read(folder / "best_of_n.json")) == {"best_of_1", "best_of_2", "best_of_3"}


def test_evaluate_alone(output, command):
    folder, _ = command(
        "evaluate",
        f'--policies={{"mine": "{output / "ppo"}"}}',
        f"--reference={output / 'sft'}",
        f"--data.path={output / 'world' / 'prompts_held_out.jsonl'}",
        "--samples_per_prompt=2",
        "--response_length=6",
        "--max_prompt_length=160",
        "--batch_size=16",
        "--seed=1",
    )
    alone = read(folder / "evaluation.json")["policies"]["mine"]
    in_pipeline = read(output / "summary.json")["policies"]["ppo"]
    for measure in MEASURES:
        assert alone[measure] == in_pipeline[measure]


def test_ppo_alone_with_nothing_but_a_rule(output, command):
    folder, _ = command(
        "ppo",
        f"--model.init_from={output / 'sft'}",
        '--rules=["length_near:3"]',
        f"--data.path={output / 'world' / 'prompts.jsonl'}",
        "--iterations=1",
        "--max_prompt_length=160",
        "--ppo.rollout_batch_size=8",
        "--ppo.minibatch_size=4",
        "--ppo.epochs=1",
        "--ppo.response_length=6",
    )
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert line["objective/helpfulness"] == line["objective/safety"] == 0
    assert line["rule/length_near:3"] > 0


def test_report_alone(output):
    report = (output / "report.html").read_bytes()
    (output / "report.html").unlink()
    assert main(["report", f"--run={output}"]) == 0
    assert (output / "report.html").read_bytes() == report


def test_a_stage_that_is_missing_is_made_again_unless_later_ones_depend_on_it(output, config_file, tmp_path, capsys):
    summary, again = read(output / "summary.json"), ["pipeline", f"--config={config_file}", f"--output={output}"]
    (output / "safety").rename(tmp_path / "safety")
    assert main(again) == 2
    told = capsys.readouterr().err.partition("What to do")[2]
    assert str(output / "evaluate") in told and str(output / "sft") not in told
    (tmp_path / "safety").rename(output / "safety")

    shutil.rmtree(output / "evaluate")
    assert main(again) == 0
    assert capsys.readouterr().err.count("finished before") == len(STAGES) - 1
    remade = read(output / "summary.json")
    assert remade["policies"] == summary["policies"] and remade["reward_models"] == summary["reward_models"]
