"""Starts the command line in a process that is set up for speed, which has to be done before the process starts.

Huge pages: training on a CPU allocates and frees large arrays all the time, and much of a step goes into the page faults;
with huge pages a step of the demo's pretraining took 24 % less time (2 cores). The C library reads the setting when a
process starts, so the command replaces itself once; where the C library is another one, nothing is done.

Compiled programs are kept in the user's cache folder, so that a run that is started again, or a stage that needs a
program another one has had, compiles nothing. A setting that the user has made is kept.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb"
COMPILATION_CACHE = "JAX_COMPILATION_CACHE_DIR"
CACHE_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # a stage has dozens of small programs
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 * 10**9),
}


def huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """What to set for memory in huge pages; nothing where that would change nothing or the user has decided."""
    tunables = environment.get(TUNABLES, "")
    if platform.libc_ver()[0] != "glibc" or HUGE_PAGES in tunables:
        return {}
    return {TUNABLES: ":".join(filter(None, [tunables, f"{HUGE_PAGES}=1"]))}


def compilation_cache(environment: Mapping[str, str], command: str = "") -> dict[str, str]:
    """What to set for compiled programs to be kept; nothing where the user has named a folder, or none (an empty name).

    Nor for `rlhf compile`: programs of devices that are not here cannot be loaded again, and it says how long compiling takes.
    """
    if COMPILATION_CACHE in environment or command == "compile":
        return {}
    caches = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".cache"
    return {COMPILATION_CACHE: str(Path(caches) / "rlhf" / "compiled"), **CACHE_SETTINGS}


def main() -> int:
    """The `rlhf` command; returns the exit status."""
    settings = huge_pages(os.environ) | compilation_cache(os.environ, *sys.argv[1:2])
    if settings:
        os.execve(sys.executable, [sys.executable, "-m", "rlhf", *sys.argv[1:]], {**os.environ, **settings})
    from rlhf.cli import main as run_command

    return run_command()
