"""The command restarts itself once, set up for speed, and keeps what the user has set."""

import os
import platform
import subprocess
import sys

import pytest

from rlhf import launch

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")


@glibc
def test_asks_for_huge_pages_and_keeps_other_settings():
    settings = launch.huge_pages({"HOME": "x", "GLIBC_TUNABLES": "glibc.malloc.perturb=1"})
    assert settings == {"GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1"}


@glibc
def test_huge_pages_are_left_alone_when_the_user_has_decided():
    assert launch.huge_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) == {}


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert launch.huge_pages({}) == {}


def test_compiled_programs_go_to_the_users_cache_folder():
    assert launch.compilation_cache({"HOME": "/h"})["JAX_COMPILATION_CACHE_DIR"] == "/h/.cache/rlhf/compiled"
    assert (
        launch.compilation_cache({"HOME": "/h", "XDG_CACHE_HOME": "/c"})["JAX_COMPILATION_CACHE_DIR"]
        == "/c/rlhf/compiled"
    )


@pytest.mark.parametrize("folder", ["/elsewhere", ""])
def test_the_users_own_compilation_cache_is_kept(folder):
    assert launch.compilation_cache({"HOME": "/h", "JAX_COMPILATION_CACHE_DIR": folder}) == {}


def test_programs_of_devices_that_are_not_here_are_not_kept():
    assert launch.compilation_cache({"HOME": "/h"}, "compile") == {}
    assert launch.compilation_cache({"HOME": "/h"}, "ppo")


@pytest.mark.parametrize(("command", "keeps"), [("compile", False), ("ppo", True)])
def test_the_command_line_says_whether_programs_are_kept(monkeypatch, command, keeps):
    class Replaced(Exception):
        """The process would be another one now."""

    def execve(_path, _words, environment):
        raise Replaced(launch.COMPILATION_CACHE in environment)

    monkeypatch.setattr(sys, "argv", ["rlhf", command])
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(launch, "huge_pages", lambda _: {launch.TUNABLES: ""})
    monkeypatch.delenv(launch.COMPILATION_CACHE, raising=False)
    with pytest.raises(Replaced, match=str(keeps)):
        launch.main()


def test_a_program_compiled_by_an_earlier_process_is_taken_from_the_cache(tmp_path):
    program = (
        "import jax\nfrom rlhf.training.compilations import CompilationCounter\n"
        "with CompilationCounter() as counter:\n    jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((4, 4)))\n"
        "print(counter.count, counter.from_cache)"
    )
    environment = {**os.environ, **launch.compilation_cache({"XDG_CACHE_HOME": str(tmp_path)})}
    counts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        counts.append(tuple(map(int, done.stdout.split())))
    (count, from_cache), again = counts
    assert count > 0 and from_cache == 0
    assert again == (count, count)


def test_the_command_passes_arguments_and_exit_status_on():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "rlhf", "no-such-command"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
