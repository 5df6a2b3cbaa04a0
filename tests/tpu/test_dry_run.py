"""`--dry-run` of what looks at a launch or ends it: the commands of the real thing, printed, and none of them run."""

import shlex

import pytest

COMMANDS = {
    "status": ("status", "pilot"),
    "output": ("logs", "pilot"),
    "last lines": ("logs", "pilot", "--all"),
    "a command": ("ssh", "pilot", "--", "ls", "-l"),
    "ending it at once": ("delete", "pilot", "--now"),
    "ending it": ("delete", "pilot"),
}


def dry_run(cloud, name: str, *words: str) -> list[list[str]]:
    """The words of the commands that a dry run prints, as the stand-in for gcloud would note them."""
    result = cloud.run(name, "--dry-run", *words)
    assert result.returncode == 0, result.stderr
    printed = [shlex.split(line) for line in result.stdout.splitlines()]
    assert printed and all(words[0] == "gcloud" for words in printed)
    return [[word for word in words[1:] if word != "--quiet"] for words in printed]


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_of_a_launch_that_nobody_remembers(cloud, words):
    first, second, *asked = dry_run(cloud, *words)
    assert (first, second) == (["config", "get-value", "core/project"], ["config", "get-value", "compute/zone"])
    assert asked and all({"pilot", "--zone=ZONE", "--project=PROJECT"} < set(command) for command in asked)
    assert not (cloud.folder / "calls.jsonl").exists() and not (cloud.folder / "home").exists()


def test_of_a_launch_that_is_there_it_is_what_the_command_does(cloud):
    assert cloud.launch("true", "--keep").returncode == 0
    remembered = sorted((cloud.folder / "home").rglob("*"))
    for words in COMMANDS.values():
        before = cloud.calls()
        expected = dry_run(cloud, *words)
        assert cloud.calls() == before and sorted((cloud.folder / "home").rglob("*")) == remembered
        if "--now" not in words:  # it would leave nothing to end for the one after it
            assert cloud.run(*words).returncode == 0
            assert cloud.calls()[len(before) :] == expected
