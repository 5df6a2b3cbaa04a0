"""Six adapters and full fine-tuning side by side on the embedded world: SFT, a reward model, and PPO in full against one base.

    python experiments/adapters/compare.py                  # after `make demo`; goes on where it was stopped

Writes a folder for each run, results.json with every number, and table.md with means and spreads over seeds. Each run starts from
the folders of the demo and writes nothing there.
"""

import argparse
import gc
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from rlhf.config_files import load_config
from rlhf.models.adapters.description import base_size
from rlhf.models.adapters.insert import parameter_count
from rlhf.models.source import ModelSource, load_policy
from rlhf.stages import ppo, reward, sft

HERE = Path(__file__).parent
KINDS = ("full", "lora", "prefix", "prompt", "bottleneck", "ia3", "bitfit")


class PeakMemory:
    """The most that arrays on the devices have taken while this was entered, sampled ten times a second; each buffer counts once.

    What a compiled program needs while it runs is not among them.
    """

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        self.before, self.bytes, self._done = live_bytes(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.bytes = max(self.bytes, live_bytes() - self.before)


def live_bytes() -> int:
    """Bytes of all arrays that live on the devices, each buffer counted once."""
    buffers = {}
    for array in jax.live_arrays():
        try:
            for shard in array.addressable_shards:
                buffers[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
        except (RuntimeError, ValueError):  # deleted or donated between the listing and the look
            continue
    return sum(buffers.values())


def finished(folder: Path, run: Callable[[], Any]) -> dict[str, Any]:
    """The measurements of a run: those written before, or those of running it now."""
    file = folder / "measured.json"
    if not file.is_file():
        start = time.perf_counter()
        with PeakMemory() as memory:
            run()
        measured = {"seconds": time.perf_counter() - start, "peak_mb": memory.bytes / 1e6}
        file.write_text(json.dumps(measured))
    return json.loads(file.read_text()) | json.loads((folder / "summary.json").read_text())


def configure(stage: Any, name: str, overlays: list[Path], demo: str, **settings: Any) -> Any:
    """A stage's configuration from its file, what a kind of adapter changes in it, and settings by dotted key."""
    text = (HERE / f"{name}.yaml").read_text(encoding="utf-8").replace("runs/demo", demo)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        words = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        return load_config(stage.Config, [file.name, *map(str, overlays)], words)


def trained_parameters(source: ModelSource) -> int:
    """How many parameters of a source's policy are trained."""
    model = load_policy(source, 0)
    return base_size(model) if model.adapter_config is None else parameter_count(model)


def compare_supervised(arguments: argparse.Namespace, task: str) -> list[dict[str, Any]]:
    """One row a kind and seed of SFT or of the helpfulness model."""
    stage, steps = {"sft": (sft, arguments.sft_steps), "reward": (reward, arguments.reward_steps)}[task]
    rows = []
    for kind in KINDS:
        for seed in range(arguments.seeds):
            folder = arguments.output / task / f"{kind}_{seed}"
            overlay = [HERE / "kinds" / f"{kind}.yaml"]
            config = configure(
                stage, task, overlay, arguments.demo, output=folder, seed=seed, loop__steps=steps, **arguments.small
            )
            measured = finished(folder, lambda stage=stage, config=config: stage.run(config))
            row = {"task": task, "kind": kind, "seed": seed, "held_out_loss": measured["best_held_out_loss"]}
            row |= {name: measured[name] for name in ("seconds", "peak_mb", "tokens_per_second")}
            row["trained"] = trained_parameters(config.model)
            if task == "reward":
                row["accuracy"] = measured["evaluation"]["accuracy"]["value"]
            rows.append(row)
    return rows


def compare_ppo(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a seed of PPO with five whole models, and of PPO in which LoRAs share the SFT policy."""
    adapters = {
        "helpfulness": arguments.output / "reward" / "lora_0",
        "safety": arguments.output / "reward" / "lora_safety",
    }
    safety = configure(
        reward,
        "reward",
        [HERE / "kinds" / "lora.yaml"],
        arguments.demo,
        output=adapters["safety"],
        data__path=f"{arguments.demo}/world/safety.jsonl",
        evaluation_data__path=f"{arguments.demo}/world/safety_held_out.jsonl",
        loop__steps=arguments.reward_steps,
        **arguments.small,
    )
    finished(adapters["safety"], lambda: reward.run(safety))
    lora = {
        "model__adapter__kind": "lora",
        "model__adapter__targets": "[query,key,value,output,gate,up,down]",
        "policy_optimizer__learning_rate": 1.0e-3,
        "value_optimizer__learning_rate": 2.0e-3,
        **adapters,
    }
    rows = []
    for kind, settings in (("full", {}), ("lora", lora)):
        for seed in range(arguments.seeds):
            folder = arguments.output / "ppo" / f"{kind}_{seed}"
            config = configure(
                ppo,
                "ppo",
                [],
                arguments.demo,
                output=folder,
                seed=seed,
                iterations=arguments.iterations,
                **settings,
                **arguments.small_ppo,
            )
            measured = finished(folder, lambda config=config: ppo.run(config))
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            checks = [line for line in lines if "held_out/gold_score" in line]
            row = {"task": "ppo", "kind": kind, "seed": seed}
            row |= {name: measured[name] for name in ("seconds", "peak_mb")}
            row |= {
                f"{name}_{when}": line[f"held_out/{name}"]
                for when, line in (("before", checks[0]), ("after", checks[-1]))
                for name in ("gold_score", "reward", "kl")
            }
            row["trained"] = trained_parameters(config.model)
            rows.append(row)
    return rows


COLUMNS = {
    "sft": {"trained": "{:,.0f}", "held_out_loss": "{:.3f}", "peak_mb": "{:.1f}", "seconds": "{:.0f}"},
    "reward": {
        "trained": "{:,.0f}",
        "accuracy": "{:.3f}",
        "held_out_loss": "{:.3f}",
        "peak_mb": "{:.1f}",
        "seconds": "{:.0f}",
    },
    "ppo": {
        "trained": "{:,.0f}",
        "gold_score_before": "{:.3f}",
        "gold_score_after": "{:.3f}",
        "kl_after": "{:.2f}",
        "peak_mb": "{:.1f}",
        "seconds": "{:.0f}",
    },
}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds of each column, with the standard deviation where it is not 0, as Markdown."""
    lines = []
    for task, columns in COLUMNS.items():
        lines += [f"| {task} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for kind in KINDS:
            chosen = [row for row in rows if row["task"] == task and row["kind"] == kind]
            if chosen:
                cells = [cell([row[name] for row in chosen], form) for name, form in columns.items()]
                lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def cell(values: list[float], form: str) -> str:
    """`mean ± deviation`."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = form.format(statistics.mean(values))
    return f"{mean} ± {form.format(deviation)}" if deviation else mean


def main() -> None:
    """Runs what has not been run, writes results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="runs/demo", help="folder of a finished pipeline on the embedded world")
    parser.add_argument("--output", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sft-steps", type=int, default=150)
    parser.add_argument("--reward-steps", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=12, help="of PPO")
    parser.add_argument(
        "--tiny", action="store_true", help="small batches and few prompts, to see that everything works"
    )
    arguments = parser.parse_args()
    arguments.small = (
        {"loop__batch_size": 4, "loop__evaluate_every": 2, "optimizer__warmup_steps": 1} if arguments.tiny else {}
    )
    arguments.small_ppo = (
        {"ppo__rollout_batch_size": 8, "ppo__minibatch_size": 8, "evaluation_prompts": 8} if arguments.tiny else {}
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    # Seeds differ in data order and draws alone, so that a program is compiled for the first and read back for the others.
    jax.config.update("jax_compilation_cache_dir", str((arguments.output / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    rows = compare_supervised(arguments, "sft") + compare_supervised(arguments, "reward") + compare_ppo(arguments)
    (arguments.output / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.output / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
