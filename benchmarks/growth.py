"""How the time of a PPO iteration grows with its prompts, its responses and its models, each over a factor of four.

    python benchmarks/growth.py [--repeats 2] [--json FILE]

Compared are the seconds and the necessary operations (products.py): where time follows the operations, nothing grows faster
than it must. Prompts and parameters multiply them; a response of twice the length does not, for the prompt stays. Sizes that are
compared run in turns in one process, so that a slow minute of the machine meets all of them. Counted are the compilations of the
first iteration.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rlhf.launch import huge_pages

PROMPTS, NEW_TOKENS = 16, 64


def sizes() -> dict[str, list[tuple[str, dict]]]:
    """By what grows: the sizes that are compared, each with a label and the arguments of the work."""
    from shapes import SHAPES

    m1 = SHAPES["m1"]
    shapes = {
        "half": replace(m1, width=192, mlp_width=512, layers=4, heads=4),
        "m1": m1,
        "double": replace(m1, width=432, mlp_width=1152, layers=8, heads=9),
    }
    small = {"config": m1, "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
    return {
        "prompts": [(str(count), small | {"prompts": count}) for count in (PROMPTS, 2 * PROMPTS, 4 * PROMPTS)],
        "response length": [(str(tokens), small | {"new_tokens": tokens}) for tokens in (32, 64, 128)],
        "parameters": [(f"{parameters(shape) / 1e6:.1f} M", small | {"config": shape}) for shape in shapes.values()],
    }


def parameters(config) -> int:
    """Of one network, the embedding included, norms not."""
    from products import weight_bytes

    return weight_bytes(config, 1)


def measure(works: list[tuple[str, dict]], repeats: int) -> list[dict]:
    """Seconds, operations and compilations of each of the sizes."""
    import jax
    from shapes import SHAPES
    from works import ppo

    from rlhf.models.config import ComputeConfig
    from rlhf.training.compilations import CompilationCounter

    made, figures = [], []
    # What every work compiles besides its own programs is compiled by one that nobody counts.
    jax.block_until_ready(ppo(SHAPES["tiny"], ComputeConfig(remat="dots"), prompts=PROMPTS, new_tokens=4).run())
    for label, arguments in works:
        work = ppo(compute=ComputeConfig(remat="dots"), **arguments)
        with CompilationCounter() as compilations:
            jax.block_until_ready(work.run())
        made.append(work)
        operations = sum(product.flops for product in work.products)
        figures.append({"size": label, "gigaflops": operations / 1e9, "compilations": compilations.count, "runs": []})
    for _ in range(repeats):
        for work, figure in zip(made, figures, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(work.run())
            figure["runs"].append(time.perf_counter() - start)
    for figure in figures:
        figure["seconds"] = statistics.median(figure["runs"])
        figure["gigaflops_per_second"] = figure["gigaflops"] / figure["seconds"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each size")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    settings = huge_pages(os.environ)
    if settings:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})
    results = {}
    print("| what grows | size | seconds | times the first | operations, times the first | compilations |")
    print("|---|---|---|---|---|---|")
    for what, works in sizes().items():
        results[what] = measure(works, arguments.repeats)
        print("\n".join(rows(what, results[what])), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def rows(what: str, figures: list[dict]) -> Iterator[str]:
    """Lines of a Markdown table."""
    for figure in figures:
        slower, larger = (figure[name] / figures[0][name] for name in ("seconds", "gigaflops"))
        cells = (
            what,
            figure["size"],
            f"{figure['seconds']:.2f}",
            f"{slower:.2f}",
            f"{larger:.2f}",
            str(figure["compilations"]),
        )
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
