"""The command restarts itself once, with huge pages, and keeps what the user has set."""

import os
import platform
import subprocess
import sys

import pytest

from rlhf import launch

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")


@glibc
def test_asks_for_huge_pages_and_keeps_other_settings():
    environment = launch.environment_with_huge_pages({"HOME": "x", "GLIBC_TUNABLES": "glibc.malloc.perturb=1"})
    assert environment == {"HOME": "x", "GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1"}


@glibc
def test_does_not_start_again_when_the_user_has_decided():
    assert launch.environment_with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert launch.environment_with_huge_pages({}) is None


def test_the_command_passes_arguments_and_exit_status_on():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "rlhf", "no-such-command"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
