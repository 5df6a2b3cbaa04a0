"""Compiles stages for TPU slices that are not there, one command after the other, and makes a table of what came out.

    python benchmarks/tpu_table.py                  # every row that has no result yet; stop it whenever you like
    python benchmarks/tpu_table.py NAME …           # these rows, again
    python benchmarks/tpu_table.py --list           # names and commands
    python benchmarks/tpu_table.py --table          # the tables, from the results that are there

Needs libtpu and no TPU; see tpu/README.md. A row is one `rlhf compile`, in a process of its own, and leaves
benchmarks/results/tpu/NAME.json. Rows of 4,096 tokens; PPO: prompts of 2,048 tokens and responses of 2,048, with policy,
reference, value model and two reward models.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "tpu"
GIBIBYTE = 2**30
LORA = ("--model.adapter.rank=16",)
# Over an axis of up to 32 chips the compiler multiplies by each part of a gathered matrix while it sends the next, in code of its
# own for each part. That takes it over 45 minutes of one core for the layer of a 7B model, and without it four. It also reads and
# writes the product once for each part: scoring three layers as wide as 70B's over `fsdp` 32 moves 2.6 times as much.
WHOLE_PRODUCTS = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"
GATHERED = "--ppo.rollout_weights=gathered"
"""Weights put together over `fsdp` for sampling: where a chip has room for the whole policy beside its parts of everything else."""


@dataclass(frozen=True)
class Slice:
    """A TPU slice.

    Attributes:
        topology: as `rlhf compile` takes it: generation and chips along each axis.
        chips: in all.
    """

    topology: str
    chips: int


@dataclass(frozen=True)
class Row:
    """One command.

    Attributes:
        model: file in configs/models.
        slice: what it is compiled for.
        stage: sft or ppo.
        lora: train adapters on one base, which all roles share, instead of whole models.
        options: of the stage, beyond what all rows have; all chips are one axis, `fsdp`, unless they say otherwise.
    """

    model: str
    slice: Slice
    stage: str
    lora: bool
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Tells the row from all others; the name of its file."""
        return f"{self.model}-{self.slice.topology.replace(':', '-')}-{self.stage}-{'lora' if self.lora else 'full'}"

    @property
    def command(self) -> str:
        """As typed into a shell."""
        return f"LIBTPU_INIT_ARGS={WHOLE_PRODUCTS} {shlex.join(self.words)}"

    @property
    def words(self) -> list[str]:
        """The command, from `rlhf` on."""
        model = f"configs/models/{self.model}.yaml"
        own = ["rlhf", "compile", "--topology", self.slice.topology, "--stage", self.stage, "--model", model]
        if self.stage == "ppo":
            own += ["--helpfulness", model, "--safety", model, "--max_prompt_length=2048", "--ppo.response_length=2048"]
        else:
            own += ["--max_length=4096"]
        has_mesh = any(option.startswith("--mesh.") for option in self.options)
        mesh = () if has_mesh else (f"--mesh.fsdp={self.slice.chips}",)
        return [*own, *mesh, *self.options, *(LORA if self.lora else ())]


def sft(rows: int, *options: str) -> tuple[str, ...]:
    """Options of SFT.

    Args:
        rows: of a step, over all chips.
        *options: others.
    """
    return (f"--loop.batch_size={rows}", *options)


def two_axes(fsdp: int, tensor: int) -> tuple[str, ...]:
    """Options of a mesh over one axis of which the policy is gathered while it stays divided over the other.

    So it fits where the whole would not, and for each token a chip reads its part alone.

    Args:
        fsdp: parts over the one.
        tensor: over the other.
    """
    return (f"--mesh.fsdp={fsdp}", f"--mesh.tensor={tensor}")


def ppo(rollout: int, minibatch: int, parts: int, *options: str) -> tuple[str, ...]:
    """Options of PPO.

    Args:
        rollout: responses of an iteration.
        minibatch: responses of a gradient step.
        parts: micro-batches of a minibatch; as many rows are scored at a time.
        *options: others.
    """
    return (
        f"--ppo.rollout_batch_size={rollout}",
        f"--ppo.minibatch_size={minibatch}",
        f"--ppo.micro_batches={parts}",
        f"--ppo.score_micro_batches={parts * rollout // minibatch}",
        "--ppo.epochs=1",
        *options,
    )


# By chips: Google's own names count cores for v5p, so that v5p-32 there is 16 chips.
V5E_8, V5E_64, V6E_64 = Slice("v5e:2x4", 8), Slice("v5e:8x8", 64), Slice("v6e:8x8", 64)
V5P_8, V5P_16 = Slice("v5p:2x2x2", 8), Slice("v5p:2x2x4", 16)
V5P_32, V5P_64, V5P_256 = Slice("v5p:2x4x4", 32), Slice("v5p:4x4x4", 64), Slice("v5p:4x8x8", 256)

CASES = (
    ("llama2-7b", V5E_64, {"sft": sft(64), "ppo": ppo(64, 64, 2, GATHERED, *two_axes(8, 8))}),
    ("opt-1.3b", V5E_8, {"sft": sft(64, "--loop.micro_batches=8"), "ppo": ppo(16, 8, 1, GATHERED)}),
    ("llama2-7b", V5P_16, {"sft": sft(64), "ppo": ppo(64, 64, 4, GATHERED, *two_axes(4, 4))}),
    ("llama2-13b", V5P_32, {"sft": sft(64), "ppo": ppo(64, 64, 2, GATHERED, *two_axes(4, 8))}),
    ("llama3.1-8b", V6E_64, {"sft": sft(64), "ppo": ppo(64, 64, 2, GATHERED, *two_axes(8, 8))}),
    ("llama2-70b", V5P_256, {"sft": sft(256), "ppo": ppo(256, 256, 4, GATHERED, *two_axes(32, 8))}),
)
GROWING = tuple(
    Row("llama2-7b", slice, stage, lora=False, options=options)
    for stage, of_rows in (("sft", sft), ("ppo", lambda rows: ppo(rows, rows, 1, GATHERED)))
    for slice, options in ((slice, of_rows(slice.chips)) for slice in (V5P_8, V5P_64, V5P_256))
)
"""The same work for each chip, a row, and ever more chips."""
TABLE = tuple(
    Row(model, where, stage, lora, options)
    for model, where, stages in CASES
    for stage, options in stages.items()
    for lora in (False, True)
)
ROWS = {row.name: row for row in (*TABLE, *GROWING)}


def compile_row(row: Row) -> bool:
    """Runs the command of a row and keeps what it says; returns whether it succeeded. A program that does not fit is a result."""
    print(row.command, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", *row.words, "--json"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        env=os.environ | {"LIBTPU_INIT_ARGS": WHOLE_PRODUCTS},
        check=False,
    )
    if done.returncode:
        print(f"{row.name}: exit status {done.returncode}", file=sys.stderr, flush=True)
        return False
    result = {
        "command": row.command,
        "libtpu": version("libtpu"),
        "jax": version("jax"),
        "programs": json.loads(done.stdout)["programs"],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{row.name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return True


def table() -> Iterator[str]:
    """Lines of a Markdown table with a line a program; a row without a result is there too, and says so."""
    yield "| model, chips, what is trained | program | memory of a chip, GiB | arithmetic | main memory | network | longest |"
    yield "|---|---|---|---|---|---|---|"
    for row in TABLE:
        what = f"{row.model}, {row.slice.topology}, {row.stage} {'LoRA' if row.lora else 'full'}"
        programs = _programs(row)
        if not programs:
            yield f"| {what} | not compiled | | | | | |"
        for program in programs:
            yield f"| {what} | {program['program']} | {_memory(program)} | {_times(program)} |"


def scaling_table() -> Iterator[str]:
    """The same of the rows whose work grows with the chips, and a chip's speed beside that in the smallest slice.

    At best the network works while the chip computes and reads; at worst it never does.
    """
    yield "| chips | program | memory of a chip, GiB | arithmetic | main memory | network | longest | speed, at best | at worst |"
    yield "|---|---|---|---|---|---|---|---|---|"
    first: dict[str, tuple[float, float]] = {}
    for row in GROWING:
        for program in _programs(row):
            cells = f"| {row.slice.chips} | {program['program']} | {_memory(program)} | {_times(program)} |"
            if "seconds" not in program:
                yield f"{cells} | |"
                continue
            seconds = program["seconds"]
            alone = max(seconds["arithmetic"], seconds["memory"])
            times = max(alone, seconds["network"]), alone + seconds["network"]
            kept = (was / now for was, now in zip(first.setdefault(program["program"], times), times, strict=True))
            yield f"{cells} {' | '.join(f'{100 * share:.1f} %' for share in kept)} |"


def _programs(row: Row) -> list[dict]:
    """What its command said, nothing if it has not run."""
    file = RESULTS / f"{row.name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["programs"] if file.is_file() else []


def _memory(program: dict) -> str:
    memory = program["memory"]
    needed = f"{memory['peak'] / GIBIBYTE:.1f} of {round(memory['capacity'] / GIBIBYTE, 2):g}"
    return needed if program["fits"] else f"**does not fit: {needed}**"


def _times(program: dict) -> str:
    if "seconds" not in program:
        return " | | | "
    seconds = program["seconds"]
    times = [f"{1e3 * seconds[kind]:,.0f} ms" for kind in ("arithmetic", "memory", "network")]
    return " | ".join([*times, program["bound"]])


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to compile, again too")
    parser.add_argument("--list", action="store_true", help="print names and commands, compile nothing")
    parser.add_argument("--table", action="store_true", help="print the tables, compile nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in ROWS]:
        parser.error(f"there are no rows {', '.join(unknown)}; --list names them all")
    if arguments.list:
        print("\n".join(f"{row.name}: {row.command}" for row in ROWS.values()))
    elif arguments.table:
        print("\n".join((*table(), "", *scaling_table())))
    else:
        waiting = [name for name in ROWS if not (RESULTS / f"{name}.json").is_file()]
        succeeded = [compile_row(ROWS[name]) for name in arguments.names or waiting]
        sys.exit(0 if all(succeeded) else 1)


if __name__ == "__main__":
    main()
