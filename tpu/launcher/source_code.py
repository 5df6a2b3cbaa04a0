"""The working tree as an archive: every file that git tracks, as it is now, committed or not."""

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from launcher.problems import LaunchError

LARGE_BYTES = 50 * 10**6


@dataclass(frozen=True)
class SourceCode:
    """What goes to the machines.

    Attributes:
        revision: the commit, with "+changes" where files differ from it.
        files: paths that go along, relative to the repository.
        left_behind: files that git neither tracks nor ignores; they stay here.
    """

    root: Path
    revision: str
    files: list[str]
    left_behind: list[str]

    def write_archive(self, path: Path) -> int:
        """Writes a .tar.gz with the files and a file REVISION; returns its size in bytes."""
        with tarfile.open(path, "w:gz") as archive:
            for name in self.files:
                archive.add(self.root / name, arcname=name, recursive=False)
            content = f"{self.revision}\n".encode()
            entry = tarfile.TarInfo("REVISION")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return path.stat().st_size


def read_source_code(root: Path) -> SourceCode:
    """Looks at the working tree; changes nothing.

    Raises:
        LaunchError: the folder is no git repository.
    """
    tracked = _git(root, "ls-files", "-z")
    files = [name for name in tracked.split("\0") if name and (root / name).exists()]
    changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no").strip())
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    return SourceCode(
        root=root,
        revision=_git(root, "rev-parse", "--short=12", "HEAD").strip() + ("+changes" if changed else ""),
        files=files,
        left_behind=[name for name in others.split("\0") if name],
    )


def _git(root: Path, *words: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise LaunchError("the program git was not found", fix="install git.") from error
    except subprocess.CalledProcessError as error:
        raise LaunchError(
            f"{root}: {error.stderr.strip()}",
            fix="launch from a clone of the repository; git says which files belong to it.",
        ) from error
    return result.stdout
