"""Two reward models against one of mixed data and one of either kind, and four ways of making one reward of two.

    python -m experiments.two_reward_models.measure --demos runs/demo runs/demo_seed1 runs/demo_seed2

Writes a folder for each run, results.json, table.md, frontier.png (gold helpfulness and gold safety along training).
"""

from pathlib import Path
from typing import Any

from experiments.study import PPO_OF_THE_DEMO, Study, checks, mix_comparisons, parse, plot, table, write
from rlhf.stages import ppo, reward

HERE = Path(__file__).parent
ARMS = ("gate", "weighted", "minimum", "lagrangian", "mixed", "helpfulness_only", "safety_only")
COLUMNS = {
    "gold_score": "{:.3f}",
    "gold_helpfulness": "{:.3f}",
    "gold_safety": "{:.3f}",
    "over_refusal": "{:.3f}",
    "kl": "{:.2f}",
    "seconds": "{:.0f}",
}


def mixed_model(study: Study, seed: int) -> Path:
    """A reward model of as many comparisons as either of the demo's kinds has, half of each."""
    folder = study.output / f"mixed_model_{seed}"
    data = mix_comparisons(study.demos[seed], study.output / f"mixed_comparisons_{seed}")
    study.run(reward, [HERE / "mixed_model.yaml"], seed, folder, **data)
    return folder


def main() -> None:
    """Runs what has not been run, and writes what was found."""
    study, _ = parse(__doc__, HERE, ARMS)
    rows: list[dict[str, Any]] = []
    paths: dict[str, list[list[tuple[float, float]]]] = {}
    for arm in study.arms:
        for seed in range(len(study.demos)):
            folder = study.output / f"{arm}_{seed}"
            models = {"helpfulness": mixed_model(study, seed)} if arm == "mixed" else {}
            files = [PPO_OF_THE_DEMO, HERE / "ppo.yaml", HERE / "arms" / f"{arm}.yaml"]
            measured = study.run(ppo, files, seed, folder, **models)
            along = checks(folder)
            rows.append({"arm": arm, "seed": seed, "seconds": measured["seconds"]} | along[-1])
            rows.append({"arm": "SFT", "seed": seed, "seconds": None} | along[0])
            paths.setdefault(arm, []).append([(point["gold_helpfulness"], point["gold_safety"]) for point in along])
    starts = {row["seed"]: row for row in rows if row["arm"] == "SFT"}
    rows = [*starts.values(), *(row for row in rows if row["arm"] != "SFT")]
    plot(study.output / "frontier.png", paths, "gold helpfulness", "gold safety")
    write(study, rows, table(rows, COLUMNS))


if __name__ == "__main__":
    main()
