"""A pretended cloud: a `gcloud` on the PATH whose machines are folders, on which the real scripts of `tpu/remote` run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / "tpu"))


class Cloud:
    """The pretended cloud of one test.

    Args:
        folder: of everything it consists of.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir()
        (commands / "gcloud").symlink_to(HERE / "fake_gcloud.py")
        self.environment = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "FAKE_CLOUD": str(folder),
            "WANDB_API_KEY": "a-secret",
        }
        self.happens()

    def happens(self, **scenario) -> None:
        """Sets what will happen; see fake_gcloud.py."""
        (self.folder / "scenario.json").write_text(json.dumps(scenario))

    def command(self, name: str, *words: str) -> list[str]:
        """The words of one of the commands in tpu/."""
        return [str(REPOSITORY / "tpu" / name), *words]

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess:
        """Runs one of the commands in tpu/ to its end."""
        return subprocess.run(
            self.command(name, *words), env=self.environment, capture_output=True, text=True, timeout=300
        )

    def launch(self, program: str, *options: str, name: str = "pilot") -> subprocess.CompletedProcess:
        """Launches a line of shell as the program."""
        place = ["--project=lab", "--zone=us-west4-a", "--poll=0.05", "--type=v5e-16"]
        return self.run("launch", name, *place, *options, "--", "sh", "-c", program)

    def calls(self, *start: str) -> list[list[str]]:
        """What gcloud was asked, of the calls that begin with `compute tpus` and these words."""
        path = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if call[2 : 2 + len(start)] == list(start)]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    """A pretended cloud in which nothing goes wrong; see `Cloud.happens`."""
    return Cloud(tmp_path)
