"""`python3 -m launcher COMMAND …`; the files beside this folder call it."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (a laptop may have an older one)
    sys.exit(f"Python 3.11 or newer is needed; python3 is {sys.version.split()[0]}")

from launcher.command_line import main

sys.exit(main(sys.argv[1:]))
