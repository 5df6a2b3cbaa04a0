"""The whole road in one folder: from raw text to a PPO policy beside best-of-n, measured and reported.

    world ▶ tokenizer ▶ pretrain ▶ sft ▶ helpfulness, safety ▶ ppo ▶ best_of_n ▶ evaluate ▶ report

Each stage writes its own folder and reads those before it. A stage that has finished is not run again, and one that was interrupted
goes on from its last checkpoint, so the same command continues a pipeline.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from rlhf.config_files import config_dict, save_config
from rlhf.data.sources import DataConfig
from rlhf.errors import UserError
from rlhf.parallel.processes import is_primary_process, wait_for_all
from rlhf.report.artefacts import read_json, read_lines
from rlhf.report.summary_table import print_summary
from rlhf.report.write import write_report
from rlhf.stages import best_of_n as best_of_n_stage
from rlhf.stages import evaluate as evaluate_stage
from rlhf.stages import ppo as ppo_stage
from rlhf.stages import pretrain as pretrain_stage
from rlhf.stages import reward as reward_stage
from rlhf.stages import sft as sft_stage
from rlhf.stages import tokenizer as tokenizer_stage
from rlhf.stages import world as world_stage
from rlhf.stages.folder import write_json
from rlhf.tracking.console import say


@dataclass(frozen=True)
class Config:
    """Run all stages in order. Folders and seeds inside the stages are set by the pipeline; so are models and data left unset,
    and how responses end in best_of_n and evaluate, which is as in ppo unless they say otherwise.

    Attributes:
        output: folder of the run; each stage gets a folder in it.
        seed: of every stage.
        world: the embedded world's data; null to bring data of your own, named in each stage.
        tokenizer: train a tokenizer; null to take the one that comes with the pretrained model.
        pretrain: pretrain a model; null to start from `sft.model.init_from`.
        sft: supervised fine-tuning.
        helpfulness: the helpfulness reward model.
        safety: the safety reward model.
        ppo: reinforcement learning from both.
        best_of_n: the baseline.
        evaluate: what came of it.
    """

    output: str = "runs/pipeline"
    seed: int = 0
    world: world_stage.Config | None = None
    tokenizer: tokenizer_stage.Config | None = None
    pretrain: pretrain_stage.Config | None = None
    sft: sft_stage.Config = field(default_factory=sft_stage.Config)
    helpfulness: reward_stage.Config = field(default_factory=reward_stage.Config)
    safety: reward_stage.Config = field(default_factory=reward_stage.Config)
    ppo: ppo_stage.Config = field(default_factory=ppo_stage.Config)
    best_of_n: best_of_n_stage.Config = field(default_factory=best_of_n_stage.Config)
    evaluate: evaluate_stage.Config = field(default_factory=evaluate_stage.Config)


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline with its final configuration.

    Attributes:
        name: of the stage and of its folder.
        module: with `run`.
        config: resolved.
    """

    name: str
    module: ModuleType
    config: Any


def run(config: Config) -> dict[str, Any]:
    """Runs what has not been run, writes summary.json, frontier.json and report.html; returns the summary."""
    output = Path(config.output)
    steps = plan(config)
    refuse_stale(steps)
    wait_for_all("the pipeline begins")
    seconds = {}
    for number, step in enumerate(steps, start=1):
        finished = read_json(Path(step.config.output) / "summary.json")
        say(f"\n[{number}/{len(steps)}] {step.name}" + (": finished before" if finished else ""), style="bold")
        summary = finished or step.module.run(step.config)
        seconds[step.name] = (
            summary["seconds"] if finished else read_json(Path(step.config.output) / "summary.json")["seconds"]
        )
    summary = summarize(config, seconds)
    write_json(output / "frontier.json", frontier(output))
    write_json(output / "summary.json", summary)
    if is_primary_process():
        save_config(config, output / "config.yaml")
        print_summary(summary, report=write_report(output))
    return summary


def plan(config: Config) -> list[Step]:
    """The stages to run, with folders, seeds, models and data filled in where the configuration leaves them open.

    Raises:
        UserError: a stage is left without a model or data.
    """
    steps: list[Step] = []

    def folder(name: str) -> str:
        return str(Path(config.output) / name)

    def add(name: str, module: ModuleType, stage_config: Any, **settings: Any) -> None:
        settings = {key: value for key, value in settings.items() if is_open(stage_config, key)}
        if hasattr(stage_config, "seed"):
            settings["seed"] = config.seed
        steps.append(Step(name, module, replace(stage_config, output=folder(name), **settings)))

    def data(current: DataConfig | None, name: str) -> DataConfig:
        return stage_data(config, current or DataConfig(), name)

    def held_out(current: DataConfig | None, name: str) -> DataConfig | None:
        return data(current, f"{name}_held_out") if config.world is not None else current

    if config.world is not None:
        seeded = replace(config.world, world=replace(config.world.world, seed=config.seed))
        add("world", world_stage, seeded)
    if config.tokenizer is not None:
        add("tokenizer", tokenizer_stage, replace(config.tokenizer, data=data(config.tokenizer.data, "documents")))
    if config.pretrain is not None:
        documents = data(config.pretrain.data, "documents")
        own = {"tokenizer": folder("tokenizer")} if config.tokenizer is not None else {}
        add("pretrain", pretrain_stage, replace(config.pretrain, data=documents), **own)
    start = folder("pretrain") if config.pretrain is not None else config.sft.model.init_from
    add("sft", sft_stage, replace(starting_from(config.sft, start), data=data(config.sft.data, "demonstrations")))
    for kind in ("helpfulness", "safety"):
        stage = starting_from(getattr(config, kind), folder("sft"))
        stage = replace(
            stage,
            data=data(stage.data, kind),
            evaluation_data=held_out(stage.evaluation_data, kind),
            demonstrations=stage.demonstrations or steps_config(steps, "sft").data,
        )
        add(kind, reward_stage, stage)
    judges = {"helpfulness": folder("helpfulness"), "safety": folder("safety")}
    policy = replace(
        starting_from(config.ppo, folder("sft")),
        data=data(config.ppo.data, "prompts"),
        evaluation_data=held_out(config.ppo.evaluation_data, "prompts"),
    )
    add("ppo", ppo_stage, policy, **judges)
    # A policy that learned to end in one way is compared with answers that end in the same.
    ends = {key: getattr(config.ppo.ppo, key) for key in ("minimum_length", "stop_strings", "stop_after")}
    unseen = data(config.best_of_n.data, "prompts_held_out")
    baseline = replace(starting_from(config.best_of_n, folder("sft")), data=unseen)
    add("best_of_n", best_of_n_stage, baseline, **judges, **ends)
    comparisons = config.evaluate.comparisons or {kind: held_out_comparisons(config, kind) for kind in judges}
    add(
        "evaluate",
        evaluate_stage,
        replace(config.evaluate, data=data(config.evaluate.data, "prompts_held_out"), comparisons=comparisons),
        policies={"pretrained": start, "sft": folder("sft"), "ppo": folder("ppo")},
        reference=folder("sft"),
        **judges,
        **ends,
    )
    require_inputs(config, steps)
    return steps


def stage_data(config: Config, current: DataConfig, name: str) -> DataConfig:
    """The data of a stage: what it names itself, or that part of the world, or else what both reward models learn from.

    Comparisons serve every stage: their preferred answers are demonstrations and their questions prompts. All stages hold out the
    same prompts, the share that `helpfulness.data.held_out` says.
    """
    if current.path:
        return current
    if config.world is not None:
        return replace(current, path=str(Path(config.output) / "world" / f"{name}.jsonl"))
    preferences = config.helpfulness.data
    paths = [path for kind in (config.helpfulness, config.safety) for path in as_list(kind.data.path) if path]
    return replace(preferences, path=paths) if name not in ("helpfulness", "safety") else current


def as_list(path: str | list[str]) -> list[str]:
    """One path or several, as several."""
    return [path] if isinstance(path, str) else path


def held_out_comparisons(config: Config, kind: str) -> DataConfig:
    """The comparisons of a kind that its reward model was not trained on."""
    stage = getattr(config, kind)
    if config.world is not None:
        return stage_data(config, stage.evaluation_data or DataConfig(), f"{kind}_held_out")
    return stage.evaluation_data or stage.data


def require_inputs(config: Config, steps: list[Step]) -> None:
    """Refuses a pipeline in which a stage has nothing to start from, before any stage runs."""
    if config.pretrain is None and config.sft.model.init_from is None:
        raise UserError(
            "there is no model to start from: neither pretrain nor sft.model.init_from is set",
            fix="set sft.model.init_from to the folder of a language model, or pretrain.model to one to train first.",
        )
    without_data = [
        f"{step.name}.data.path" for step in steps if hasattr(step.config, "data") and not step.config.data.path
    ]
    if without_data:
        raise UserError(
            f"there is no world to take data from, and these are not set: {', '.join(without_data)}",
            fix="set them, or set world={} to use the embedded world.",
        )


def is_open(stage_config: Any, key: str) -> bool:
    """Whether a stage's configuration leaves a key to the pipeline."""
    return not getattr(stage_config, key)


def starting_from(stage_config: Any, folder: str | None) -> Any:
    """The stage's configuration with its model from the folder, unless it names another."""
    if stage_config.model.init_from is not None:
        return stage_config
    return replace(stage_config, model=replace(stage_config.model, init_from=folder))


def steps_config(steps: list[Step], name: str) -> Any:
    """The resolved configuration of a stage planned before."""
    return next(step.config for step in steps if step.name == name)


def refuse_stale(steps: list[Step]) -> None:
    """Refuses to go on where a folder holds what another configuration made, or what was made before its inputs were made anew."""
    newest = 0.0
    for position, step in enumerate(steps):
        folder = Path(step.config.output)
        saved, finished = folder / "config.yaml", folder / "summary.json"
        if saved.is_file() and yaml.safe_load(saved.read_text(encoding="utf-8")) != config_dict(step.config):
            raise stale(steps[position:], f"{folder} was made with another configuration ({saved})")
        if finished.is_file():
            if finished.stat().st_mtime < newest:
                raise stale(steps[position:], f"{folder} was made before what it depends on")
            newest = finished.stat().st_mtime
        elif any((Path(later.config.output) / "summary.json").is_file() for later in steps[position + 1 :]):
            raise stale(steps[position + 1 :], f"{folder} is not finished, but stages after it are")


def stale(steps: list[Step], message: str) -> UserError:
    """The error that names the folders to delete."""
    folders = " ".join(step.config.output for step in steps if Path(step.config.output).exists())
    return UserError(message, fix=f"choose another output, or delete what is to be made again: {folders}")


def summarize(config: Config, seconds: dict[str, float]) -> dict[str, Any]:
    """The content of the pipeline's summary.json, from what the stages wrote."""
    output = Path(config.output)
    evaluation = read_json(output / "evaluate" / "evaluation.json")
    best = read_json(output / "best_of_n" / "summary.json")["estimates"]
    policies = evaluation["policies"]
    ordered = {name: policies[name] for name in policies if name != "ppo"} | best | {"ppo": policies["ppo"]}
    return {
        "policies": ordered,
        "reward_models": evaluation["reward_models"],
        "seconds": seconds,
        "seed": config.seed,
        "config": config_dict(config),
    }


def frontier(output: Path) -> list[dict[str, Any]]:
    """Reward and gold score against KL: PPO at each check on held-out prompts, and best-of-n for powers of two."""
    points = []
    for line in read_lines(output / "ppo" / "metrics.jsonl"):
        if "held_out/kl" in line:
            point = {name: line.get(f"held_out/{name}") for name in ("kl", "reward", "gold_score")}
            points.append({"policy": "ppo", "label": f"iteration {line['step']}", **point})
    for estimate in (read_json(output / "best_of_n" / "best_of_n.json") or {}).values():
        point = {name: estimate[name]["value"] for name in ("kl", "reward", "gold_score") if name in estimate}
        points.append({"policy": "best_of_n", "label": f"n = {estimate['n']}", "kl_is_bound": True, **point})
    return points
