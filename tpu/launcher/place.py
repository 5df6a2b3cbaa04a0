"""Which project and zone, and the `gcloud` commands for something that lies there."""

from dataclasses import dataclass

from launcher.external import Runner
from launcher.problems import LaunchError


@dataclass(frozen=True)
class Place:
    """Where the TPUs are.

    Attributes:
        project: Google Cloud project.
        zone: zone, for example us-west4-a.
    """

    project: str
    zone: str

    def gcloud(self, *words: str) -> list[str]:
        """A `gcloud compute tpus` command."""
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.zone}", f"--project={self.project}", "--quiet"]


def find_place(runner: Runner, project: str | None, zone: str | None) -> Place:
    """The project and zone that were given, or else those that gcloud is set to.

    Raises:
        LaunchError: one of them is not known.
    """
    return Place(
        project=project or _setting(runner, "core/project", "--project", "gcloud config set project PROJECT"),
        zone=zone or _setting(runner, "compute/zone", "--zone", "gcloud config set compute/zone ZONE"),
    )


def _setting(runner: Runner, name: str, option: str, command: str) -> str:
    assumed = name.rpartition("/")[2].upper()
    value = runner.read(["gcloud", "config", "get-value", name, "--quiet"], assumed=assumed).strip()
    if not value or value == "(unset)":
        raise LaunchError(
            f"{option} is not given, and gcloud has no default", fix=f"give {option}, or run `{command}`."
        )
    return value
