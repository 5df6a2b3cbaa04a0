"""Trains a byte-level BPE tokenizer on the documents, and on the dialogues whose words it must know too."""

from dataclasses import dataclass, field
from typing import Any

from rlhf.data.sources import DataConfig, load_documents
from rlhf.data.tokenizers import train_tokenizer
from rlhf.disk import explaining_full_disk
from rlhf.errors import UserError
from rlhf.parallel.processes import is_primary_process
from rlhf.stages.folder import begin_writing, close_folder, open_folder
from rlhf.tracking.console import say


@dataclass(frozen=True)
class Config:
    """Train a tokenizer.

    Attributes:
        output: folder to write; later stages read the tokenizer from it.
        data: documents to learn the merges from.
        vocab_size: number of tokens, special tokens and the 256 bytes included.
    """

    output: str = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    vocab_size: int = 8192


def run(config: Config) -> dict[str, Any]:
    """Trains the tokenizer and saves it in Hugging Face form."""
    folder = open_folder(config)
    texts = [document.text for document in load_documents(config.data)]
    tokenizer = train_tokenizer(texts, config.vocab_size)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"vocab_size is {config.vocab_size}, but bytes and special tokens alone make {len(tokenizer)}",
            fix=f"set vocab_size to at least {len(tokenizer)}.",
        )
    begin_writing(folder)
    if is_primary_process():
        with explaining_full_disk(folder.path):
            tokenizer.save_pretrained(folder.path)
    characters = sum(map(len, texts))
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    say(f"{len(tokenizer)} tokens; {characters / tokens:.2f} characters a token on the training text")
    return close_folder(folder, {"vocab_size": len(tokenizer), "characters_per_token": characters / tokens})
