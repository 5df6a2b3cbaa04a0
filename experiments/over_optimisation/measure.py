"""Over-optimisation: reward models of less data or a smaller network, optimised by best-of-n and by PPO, and what gold says of it.

    python -m experiments.over_optimisation.measure --demos runs/demo runs/demo_seed1 runs/demo_seed2

Writes a folder for each run, results.json, table.md (with the fitted forms of 2210.10760), best_of_n.png and ppo.png.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from experiments.study import PPO_OF_THE_DEMO, Study, against_root_kl, checks, parse, plot, table, write
from rlhf.report.frontier_runs import read_curves
from rlhf.stages import best_of_n, ppo, pretrain, reward, sft
from rlhf.stages.frontier import fit_curve, initial_value

HERE = Path(__file__).parent
PARTS = (8, 4, 2, 1)
ARMS = tuple(f"{size} 1/{part}" for size in ("small", "base") for part in PARTS)
OPTIMISED_BY_PPO = (8, 1)
PROXY, GOLD = "helpfulness_score", "gold_helpfulness"
COLUMNS = {
    "accuracy": "{:.3f}",
    "gold_of_1": "{:.3f}",
    "best_gold": "{:.3f}",
    "best_n": "{:.0f}",
    "gold_of_most": "{:.3f}",
    "alpha": "{:.3f}",
    "beta": "{:.3f}",
    "ppo_best_gold": "{:.3f}",
    "ppo_last_gold": "{:.3f}",
    "ppo_kl": "{:.2f}",
    "ppo_alpha": "{:.3f}",
    "ppo_beta": "{:.3f}",
}


def small_policy(study: Study, seed: int) -> Path:
    """A quarter of the demo's network, pretrained and fine-tuned as that was: what small reward models start from."""
    folders = [study.output / f"{name}_small_{seed}" for name in ("pretrain", "sft")]
    study.run(pretrain, [HERE / "small" / "pretrain.yaml"], seed, folders[0])
    study.run(sft, [HERE / "small" / "sft.yaml"], seed, folders[1], model__init_from=folders[0])
    return folders[1]


def proxy_model(study: Study, size: str, part: int, seed: int) -> tuple[Path, float]:
    """A reward model of a part of the demo's comparisons, and its accuracy on held-out ones."""
    start = small_policy(study, seed) if size == "small" else f"{study.demos[seed]}/sft"
    with Path(study.demos[seed], "world", "helpfulness.jsonl").open(encoding="utf-8") as file:
        records = sum(1 for _ in file)
    folder = study.output / f"reward_{size}_{part}_{seed}"
    settings = {"model__init_from": start, "data__limit": records // part}
    measured = study.run(reward, [HERE / "reward.yaml"], seed, folder, **settings)
    return folder, measured["evaluation"]["accuracy"]["value"]


def fitted(folder: Path, prefix: str) -> dict[str, float | None]:
    """α and β of the form of the run's kind, by gold."""
    (curve,) = read_curves([folder], [GOLD])
    fit = fit_curve(curve, GOLD, initial_value(curve, GOLD))
    return {f"{prefix}{name}": fit and getattr(fit, name) for name in ("alpha", "beta")}


def best_of_n_points(folder: Path) -> list[dict[str, float]]:
    """KL, proxy and gold for each n, and n."""
    curve = json.loads((folder / "best_of_n.json").read_text(encoding="utf-8"))
    return [
        {"n": entry["n"]} | {name: entry[name]["value"] for name in ("kl", PROXY, GOLD)} for entry in curve.values()
    ]


def measure_arm(study: Study, arm: str, seed: int) -> tuple[dict[str, Any], dict[str, list[dict[str, float]]]]:
    """The row of an arm and seed, and the points of best-of-n and, where it is run, of PPO."""
    size, part = arm.split(" 1/")
    model, accuracy = proxy_model(study, size, int(part), seed)
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"arm": arm, "seed": seed, "accuracy": accuracy}
    folder = study.output / f"best_of_n_{size}_{part}_{seed}"
    study.run(best_of_n, [HERE / "best_of_n.yaml"], seed, folder, helpfulness=model)
    points = {"best_of_n": best_of_n_points(folder)}
    best = max(points["best_of_n"], key=lambda point: point[GOLD])
    row |= {"gold_of_1": points["best_of_n"][0][GOLD], "gold_of_most": points["best_of_n"][-1][GOLD]}
    row |= {"best_gold": best[GOLD], "best_n": best["n"]} | fitted(folder, "")
    if int(part) in OPTIMISED_BY_PPO:
        folder = study.output / f"ppo_{size}_{part}_{seed}"
        study.run(ppo, [PPO_OF_THE_DEMO, HERE / "ppo.yaml"], seed, folder, helpfulness=model)
        points["ppo"] = checks(folder)
        row |= {"ppo_best_gold": max(point[GOLD] for point in points["ppo"])} | fitted(folder, "ppo_")
        row |= {"ppo_last_gold": points["ppo"][-1][GOLD], "ppo_kl": points["ppo"][-1]["kl"]}
    return row, points


def main() -> None:
    """Runs what has not been run, and writes what was found."""
    study, _ = parse(__doc__, HERE, ARMS)
    rows = []
    paths: dict[str, dict[str, list]] = {"best_of_n": {}, "ppo": {}}
    for arm in study.arms:
        for seed in range(len(study.demos)):
            row, points = measure_arm(study, arm, seed)
            rows.append(row)
            for method, of_run in points.items():
                paths[method].setdefault(arm, []).append(against_root_kl(of_run, GOLD))
    for method, lines in paths.items():
        if lines:
            plot(study.output / f"{method}.png", lines, "√KL", "gold helpfulness")
    lost = [row["best_gold"] - row["gold_of_most"] for row in rows]
    text = table(rows, COLUMNS, "proxy")
    write(study, rows, f"{text}\nLost by the most samples against the best n, over all: {statistics.mean(lost):.3f}\n")


if __name__ == "__main__":
    main()
