"""What can go wrong between a laptop and a TPU, told as what happened and what to do."""

import re


class LaunchError(Exception):
    """A problem that the user can do something about.

    Args:
        message: what happened.
        fix: what to do.

    Attributes:
        exit_code: of the command that ends with it.
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str):
        super().__init__(f"{message}\n  -> {fix}")


class CommandFailed(Exception):
    """An external command that ended with an error.

    Attributes:
        command: its words.
        exit_code: how it ended.
        errors: what it wrote to standard error.
    """

    def __init__(self, command: list[str], exit_code: int, errors: str):
        self.command = command
        self.exit_code = exit_code
        self.errors = errors.strip()
        super().__init__(f"{' '.join(command[:5])} … ended with {exit_code}:\n{self.errors}")


CAPACITY_FIX = (
    "wait (the same command goes on waiting), or try another zone, a smaller --type, and --spot or without it;"
    " `gcloud compute tpus locations list` and `gcloud compute tpus accelerator-types list --zone=ZONE` say what is where."
)

# First match wins: a disabled service also says "permission denied", and a quota also says "resource exhausted".
EXPLANATIONS: list[tuple[str, str, str]] = [
    (
        r"SERVICE_DISABLED|has not been used in project|API .*(not enabled|is disabled)",
        "the Cloud TPU service is not enabled in project {project}",
        "gcloud services enable tpu.googleapis.com --project={project}",
    ),
    (
        r"[Qq]uota",
        "the quota of project {project} does not allow {what} in {zone}",
        "ask for more at https://console.cloud.google.com/iam-admin/quotas (service: Cloud TPU API; spot chips have a quota of"
        " their own), delete requests that you no longer need (suspended and failed ones count too:"
        " `gcloud compute tpus queued-resources list --zone={zone}`), or choose a smaller --type or another --zone.",
    ),
    (
        r"no (more )?capacity|[Ii]nsufficient (reserved )?capacity|[Ss]tockout|RESOURCE_EXHAUSTED",
        "no capacity in {zone} for {what}",
        CAPACITY_FIX,
    ),
    (
        r"do(es)? not currently have an active account|gcloud auth login|Reauthentication|invalid_grant",
        "gcloud is not logged in",
        "gcloud auth login",
    ),
    (
        r"PERMISSION_DENIED|[Pp]ermission .*denied|does not have permission",
        "your account may not do this in project {project}",
        "have an owner of the project give you the roles TPU Admin (roles/tpu.admin) and Service Account User"
        " (roles/iam.serviceAccountUser), or choose another --project.",
    ),
    (
        r"[Aa]ccelerator ?[Tt]ype|[Uu]nsupported|[Ii]nvalid (zone|location)|Location .* not found|Unknown zone|runtime ?[Vv]ersion",
        "{zone} does not offer {what}",
        "see `gcloud compute tpus accelerator-types list --zone={zone}` and `gcloud compute tpus versions list --zone={zone}`"
        " (--runtime-version sets another one), or choose another --zone.",
    ),
]


def explain(error: CommandFailed, *, project: str, zone: str, what: str) -> LaunchError:
    """What a failed `gcloud` command means, in the user's terms.

    Args:
        error: the command and what it wrote.
        project: of the request.
        zone: of the request.
        what: the hardware that was asked for.
    """
    for pattern, message, fix in EXPLANATIONS:
        if re.search(pattern, error.errors):
            names = {"project": project, "zone": zone, "what": what}
            return LaunchError(f"{message.format(**names)}\n{error.errors}", fix=fix.format(**names))
    return LaunchError(str(error), fix="read what gcloud says above; `--dry-run` prints the commands to try by hand.")
