"""The command line, with a pause before each batch, so that a test can do something to it in the middle of a run."""

import sys
import time

from rlhf import cli
from rlhf.training import rows

batches = rows.batches


def slow_batches(*arguments, **options):
    for batch in batches(*arguments, **options):
        time.sleep(0.1)
        yield batch


if __name__ == "__main__":
    rows.batches = slow_batches
    sys.exit(cli.main())
