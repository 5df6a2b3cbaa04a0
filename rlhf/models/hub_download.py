"""Models by their name on the Hugging Face hub."""

import re
from pathlib import Path

from rlhf.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.safetensors", "tokenizer.model", "spiece.model", "merges.txt", "vocab.txt", "*.jinja")
_TORCH_FILES = ("pytorch_model*.bin",)
_NOT_THOSE_IN_SUBFOLDERS = ("*/*",)


def is_hub_name(path: str | Path) -> bool:
    """Whether a path has the form organisation/name and is no place on this machine: neither it nor the folder before."""
    path = Path(path)
    return bool(_HUB_NAME.fullmatch(str(path))) and not path.exists() and not path.parent.exists()


def download_model(name: str) -> Path:
    """The local copy of a model on the hub, fetched if it is not there yet: configuration, tokenizer, and weights.

    Args:
        name: organisation/name.

    Raises:
        UserError: there is no such model, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_NOT_THOSE_IN_SUBFOLDERS))

    try:
        folder = fetch(_FILES)
        return folder if any(folder.glob("*.safetensors")) else fetch(_FILES + _TORCH_FILES)
    except GatedRepoError as error:
        raise UserError(
            f"{name}: the Hugging Face hub gives this model only to those who have accepted its terms",
            fix=f"accept them at https://huggingface.co/{name} and log in with `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: there is no such folder here, and no such model on the Hugging Face hub (or it is private)",
            fix="check the spelling; for a private model log in with `hf auth login`.",
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"{name}: there is no such folder here, and the Hugging Face hub cannot be reached"
            f" ({str(error).splitlines()[0]})",
            fix="give the path of a folder, or fetch the model where there is a network: `hf download` keeps it for later.",
        ) from error
