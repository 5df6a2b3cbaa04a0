"""Which details of PPO matter: all of them, and each left out.

    python -m experiments.implementation_details.measure --demos runs/demo runs/demo_seed1 runs/demo_seed2

Writes a folder for each run, results.json, table.md (means, and differences to the run with everything, paired by seed) and
frontier.png (gold score against √KL).
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from experiments.study import PPO_OF_THE_DEMO, against_root_kl, at_kl, checks, parse, plot, table, write
from rlhf.stages import ppo

HERE = Path(__file__).parent
EVERYTHING = "everything"
ARMS = (
    EVERYTHING,
    "without_whitening",
    "without_value_clip",
    "without_reward_normalisation",
    "without_adaptive_kl",
    "without_value_from_reward_model",
    "without_pretraining",
)
COLUMNS = {
    "gold_score": "{:.3f}",
    "reward": "{:.2f}",
    "kl": "{:.2f}",
    "gold at KL 0.5": "{:.3f}",
    "explained_variance": "{:.2f}",
    "seconds": "{:.0f}",
}
COMPARED = ("gold_score", "reward", "gold at KL 0.5")


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval by Student's t; infinite for one seed."""
    count = len(differences)
    if count < 2:
        return differences[0], math.inf
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return statistics.mean(differences), float(half)


def effects(rows: Sequence[dict[str, Any]]) -> str:
    """What leaving each detail out changes, against the run with everything of the same seed, as Markdown."""
    whole = {row["seed"]: row for row in rows if row["arm"] == EVERYTHING}
    lines = ["| left out | " + " | ".join(COMPARED) + " |", "|---" * (len(COMPARED) + 1) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != EVERYTHING):
        cells = []
        for name in COMPARED:
            pairs = [
                (row[name], whole[row["seed"]][name]) for row in rows if row["arm"] == arm and row["seed"] in whole
            ]
            differences = [after - before for after, before in pairs if after is not None and before is not None]
            cells.append("{:+.3f} ± {:.3f}".format(*interval(differences)) if differences else "–")
        lines.append(f"| {arm.removeprefix('without_')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what has not been run, and writes what was found."""
    study, _ = parse(__doc__, HERE, ARMS)
    rows, paths = [], {}
    for arm in study.arms:
        for seed in range(len(study.demos)):
            folder = study.output / f"{arm}_{seed}"
            files = [PPO_OF_THE_DEMO, HERE / "everything.yaml"]
            files += [] if arm == EVERYTHING else [HERE / "arms" / f"{arm}.yaml"]
            measured = study.run(ppo, files, seed, folder)
            points = checks(folder)
            row = {"arm": arm, "seed": seed, "seconds": measured["seconds"]} | points[-1]
            rows.append(row | {"gold at KL 0.5": at_kl(points, "gold_score", 0.5)} | last_explained(folder))
            paths.setdefault(arm, []).append(against_root_kl(points, "gold_score"))
    plot(study.output / "frontier.png", paths, "√KL", "gold score")
    write(
        study,
        rows,
        table(rows, COLUMNS) + "\nDifferences to everything, 95 % intervals over seeds:\n\n" + effects(rows),
    )


def last_explained(folder: Path) -> dict[str, float]:
    """The share of the returns' variance that the value model explained in the last iteration."""
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {"explained_variance": last["val/explained_variance"]}


if __name__ == "__main__":
    main()
