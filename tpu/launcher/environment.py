"""The variables that the program is given on the machines."""

import os
from collections.abc import Mapping

from launcher.problems import LaunchError

# Accounts of the user that go along when they are set; they travel in a file that only the user can read.
PASSED_ON = ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE", "WANDB_BASE_URL", "HF_TOKEN")
SEVERAL_RUNS = ("pipeline",)  # subcommands whose stages are a wandb run each


def job_environment(
    name: str, run_id: str, program: list[str], settings: list[str], own: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """All variables of a job.

    One experiment is one run in wandb, however often it is started again: the program keeps the id beside its first
    checkpoint, and this gives it the same one before there is a checkpoint. A pipeline's stages are a run each, of one group.

    Args:
        name: of the launch.
        run_id: of its wandb run.
        program: its words.
        settings: `NAME=VALUE`, or `NAME` for its value here.
        own: variables of this process.

    Raises:
        LaunchError: a variable is asked for that is not set here.
    """
    variables = {"PYTHONUNBUFFERED": "1", "WANDB_RESUME": "allow", "WANDB_RUN_GROUP": name}
    if not any(word in SEVERAL_RUNS for word in program[:2]):
        variables["WANDB_RUN_ID"] = run_id
    variables |= {key: own[key] for key in PASSED_ON if key in own}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals and key not in own:
            raise LaunchError(f"--env {key}: there is no such variable here", fix=f"write --env {key}=VALUE.")
        variables[key] = value if equals else own[key]
    return variables
