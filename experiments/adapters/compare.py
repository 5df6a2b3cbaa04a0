"""Six adapters and full fine-tuning side by side on the embedded world: SFT, a reward model, and PPO in full against one base.

    python -m experiments.adapters.compare                  # after `make demo`; goes on where it was stopped

Writes a folder for each run, results.json with every number, and table.md with means and spreads over seeds. Each run starts from
the folders of the demo and writes nothing there.
"""

import argparse
import gc
import json
import threading
from pathlib import Path
from typing import Any

import jax

from experiments.study import checks, configure, finished, keep_compiled, table
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


def watched(folder: Path, stage: Any, config: Any) -> dict[str, Any]:
    """The measurements of a stage, with the most memory that its arrays took."""
    memory = PeakMemory()

    def run() -> None:
        with memory:
            stage.run(config)

    return finished(folder, run, lambda: {"peak_mb": memory.bytes / 1e6})


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
            files = [HERE / f"{task}.yaml", HERE / "kinds" / f"{kind}.yaml"]
            settings = {"output": folder, "seed": seed, "loop__steps": steps}
            config = configure(stage, files, arguments.demo, settings, arguments.small)
            measured = watched(folder, stage, config)
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
    of_safety = {
        "output": adapters["safety"],
        "data__path": f"{arguments.demo}/world/safety.jsonl",
        "evaluation_data__path": f"{arguments.demo}/world/safety_held_out.jsonl",
        "loop__steps": arguments.reward_steps,
    }
    files = [HERE / "reward.yaml", HERE / "kinds" / "lora.yaml"]
    watched(adapters["safety"], reward, configure(reward, files, arguments.demo, of_safety, arguments.small))
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
            own = {"output": folder, "seed": seed, "iterations": arguments.iterations}
            config = configure(ppo, [HERE / "ppo.yaml"], arguments.demo, own, settings, arguments.small_ppo)
            measured = watched(folder, ppo, config)
            points = checks(folder)
            row = {"task": "ppo", "kind": kind, "seed": seed}
            row |= {name: measured[name] for name in ("seconds", "peak_mb")}
            row |= {
                f"{name}_{when}": point[name]
                for when, point in (("before", points[0]), ("after", points[-1]))
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


def tables(rows: list[dict[str, Any]]) -> str:
    """A table for each task."""
    by_task = {task: [row | {"arm": row["kind"]} for row in rows if row["task"] == task] for task in COLUMNS}
    return "\n".join(table(by_task[task], columns, task) for task, columns in COLUMNS.items())


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
    keep_compiled(arguments.output)
    rows = compare_supervised(arguments, "sft") + compare_supervised(arguments, "reward") + compare_ppo(arguments)
    (arguments.output / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.output / "table.md").write_text(tables(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()
