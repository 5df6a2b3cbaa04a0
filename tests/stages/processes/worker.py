"""One process of a run: stages in a row, as one of several processes or alone.

    worker.py JOB.json INDEX COUNT PORT

The job names stages with their settings, and a folder for what this process has to say of itself: which rows of which batch it
has read, and which files it has opened to write.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

from rlhf.config_files import load_config
from rlhf.parallel.processes import ProcessesConfig, joined
from rlhf.training import rows


def note_files(written: set[str]) -> None:
    """Notes the path of every file that is opened to be written from here on."""

    def look(event, arguments):
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.add(str(arguments[0]))

    sys.addaudithook(look)


def note_batches(read: list[np.ndarray]) -> None:
    """Notes the tokens of every training and evaluation row that is read from here on."""
    batches = rows.batches

    def noted(*arguments, **options):
        for batch in batches(*arguments, **options):
            read.append(batch.tokens)
            yield batch

    rows.batches = noted


def main(job_file: str, index: str, count: str, port: str) -> None:
    job = json.loads(Path(job_file).read_text())
    processes = ProcessesConfig(silence_timeout=60)
    if int(count) > 1:
        processes = ProcessesConfig(coordinator=f"127.0.0.1:{port}", count=int(count), index=int(index))
    written, read = set(), []
    with joined(processes):
        note_files(written)
        note_batches(read)
        for stage, settings in job["stages"]:
            module = importlib.import_module(f"rlhf.stages.{stage}")
            spelt = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
            module.run(load_config(module.Config, [], [f"{key}={value}" for key, value in spelt.items()]))
    notes = Path(job["notes"])
    np.savez(notes / f"read_{index}.npz", *read)
    (notes / f"written_{index}.json").write_text(json.dumps(sorted(written)))


if __name__ == "__main__":
    main(*sys.argv[1:])
